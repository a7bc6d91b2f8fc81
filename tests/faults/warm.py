"""A process that has imported everything that `bench` needs, and runs commands one after the other in forks of itself.

It reads jobs as lines of JSON, and answers each with the exit status of the command.
"""

import json
import os
import sys

_HANGING_SECONDS = 300


def main() -> None:
    """Run commands until the input ends."""
    import mlflow.tracking._tracking_service.utils
    import optuna
    import torch._inductor

    import bench.execution.stages
    import bench.study
    import reports.comparison  # noqa: F401
    from bench.__main__ import main as bench_main
    from tests.faults import points

    del mlflow, optuna, torch, bench
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if not process:
            break
        _, status = os.waitpid(process, 0)
        sys.stdout.write(json.dumps({"status": os.waitstatus_to_exitcode(status)}) + "\n")
        sys.stdout.flush()
    else:
        return
    os.setsid()
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    silence = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((silence, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.environ.update(job["environment"])
    sys.argv = ["bench", *job["arguments"]]
    import signal

    signal.alarm(_HANGING_SECONDS)
    if job.get("fault") is not None:
        points.install(**job["fault"])
    bench_main()


if __name__ == "__main__":
    main()
