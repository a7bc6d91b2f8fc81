"""Measure the cost of the harness itself, without training, by number of runs.

    python -m tests.scale.harness_cost --runs 10,100,1000 --jobs 8
    python -m tests.scale.harness_cost --runs 200 --compare 200 --cluster 4    # on a Dask cluster, a worker killed

For each number of runs, a study of tiny runs is run with several workers. The script checks that no run was lost or
repeated, that no message was about a locked database, and that `results.csv` equals that of a single worker. It prints:

* seconds before the first unit starts and after the last one has ended;
* harness seconds of a unit: (time between these × workers − seconds that units spent on their own work) / units;
* seconds from the end of one run to the end of the next, in the first and in the last tenth of the study, which must
  not grow with the number of finished runs;
* the largest resident memory of the parent process, and its CPU seconds for each run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

_SEEDS = 5
_KILLED_AFTER_SECONDS = 40.0
_NOT_COMPARED = ("search_seconds_mean", "tuning_seconds", "peak_memory_mb")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The harness's cost of one study.

    Attributes:
        runs, units, jobs: Numbers of runs, of runs and pretrainings, and of workers.
        wall_seconds: Seconds from the start to the end of the command.
        before_seconds, after_seconds: Seconds before the first unit and after the last.
        harness_seconds: Harness seconds of each unit, on the worker that it occupied.
        first_tenth, last_tenth: Seconds between the ends of successive runs, in these parts of the study.
        parent_megabytes: Largest resident memory of the command's own process.
        parent_cpu_seconds: CPU seconds of the command's own process, for each run.
    """

    runs: int
    units: int
    jobs: int
    wall_seconds: float
    before_seconds: float
    after_seconds: float
    harness_seconds: float
    first_tenth: float
    last_tenth: float
    parent_megabytes: float
    parent_cpu_seconds: float


def specification(runs: int) -> str:
    """Return the specification of a study with a number of runs that take a fraction of a second each."""
    budgets = [f"{0.02 + 0.0001 * index:.4f}x" for index in range(-(-runs // _SEEDS))]
    return f"""
name = "cost"
methods = ["fixed"]
budgets = {json.dumps(budgets)}
seeds = {list(range(min(runs, _SEEDS)))}
device = "cpu"
threads = 1
task = {{dataset = "synthetic", model = "resnet8", validation_fraction = 0.2, train_images = 32, init = "scratch"}}
finetune = {{epochs = 1, batch_size = 32, lr = 0.01}}
"""


def work(folder: Path, runs: int, jobs: int, more: list[str]) -> tuple[Path, float, float, Any]:
    """Run the study in a process of its own; return its store, start, end, and resource usage."""
    folder.mkdir(parents=True)
    spec, store = folder / "spec.toml", folder / "store"
    spec.write_text(specification(runs))
    command = [sys.executable, "-m", "bench", "run", "--spec", str(spec), "--store", str(store), "--jobs", str(jobs)]
    began = time.time()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen([*command, *more], stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    ended = time.time()
    said = (folder / "output.txt").read_text()
    if os.waitstatus_to_exitcode(status) != 0 or "locked" in said:
        raise SystemExit(f"the study of {runs} runs with {jobs} workers did not go well:\n{said}")
    return store, began, ended, usage


def records(store: Path, kind: str) -> list[dict[str, Any]]:
    """Return all records of one kind of unit."""
    return [json.loads(path.read_text()) for path in store.glob(f"{kind}/*/record.json")]


def check(store: Path, runs: int, lost_workers: int) -> None:
    """Check that every run was done once; for each lost worker, one may have been started again."""
    found = records(store, "runs")
    again = sum(record["attempt"] - 1 for record in found + records(store, "pretrained"))
    if len(found) != runs or any(record["status"] != "done" for record in found) or again > lost_workers:
        raise SystemExit(f"{store}: {len(found)} of {runs} runs, or some not done, or {again} started again")
    if set(store.glob("leases/*.json")):
        raise SystemExit(f"{store}: leases were left")


def measure(store: Path, began: float, ended: float, usage: Any, runs: int, jobs: int) -> Cost:
    """Return the cost of a study that ran between two moments of the wall clock."""
    units = records(store, "runs") + records(store, "pretrained")
    busy = sum(unit["times"]["total_seconds"] for unit in units)
    first = min(path.stat().st_mtime for path in store.glob("*/*/spec.json"))
    ends = sorted(path.stat().st_mtime for path in store.glob("runs/*/record.json"))
    tenth = max(2, len(ends) // 10)
    return Cost(
        runs=runs,
        units=len(units),
        jobs=jobs,
        wall_seconds=round(ended - began, 1),
        before_seconds=round(first - began, 1),
        after_seconds=round(ended - ends[-1], 1),
        harness_seconds=round(((ends[-1] - first) * jobs - busy) / len(units), 3),
        first_tenth=round((ends[tenth - 1] - ends[0]) / (tenth - 1), 3),
        last_tenth=round((ends[-1] - ends[-tenth]) / (tenth - 1), 3),
        parent_megabytes=round(usage.ru_maxrss / 1024, 1),
        parent_cpu_seconds=round((usage.ru_utime + usage.ru_stime) / runs, 3),
    )


def same_results(first: Path, second: Path) -> bool:
    """Return whether two stores have the same `results.csv`, apart from times and memory."""
    tables = [
        pd.read_csv(store / "studies/cost/results.csv").drop(columns=list(_NOT_COMPARED)) for store in (first, second)
    ]
    return bool(tables[0].equals(tables[1]))


@contextmanager
def cluster(workers: int) -> Iterator[list[str]]:
    """Start a Dask cluster, one of whose workers is killed after a while; yield the options to use it."""
    if not workers:
        yield []
        return
    from distributed import LocalCluster

    with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as made:
        victim = next(iter(made.workers.values())).process.pid
        timer = threading.Timer(_KILLED_AFTER_SECONDS, lambda: os.kill(victim, signal.SIGKILL))
        timer.start()
        yield ["--backend", "dask", "--scheduler", made.scheduler_address]
        timer.cancel()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="10,100,1000")
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument(
        "--compare", type=int, default=10, help="largest study that is compared with that of one worker"
    )
    parser.add_argument(
        "--cluster", type=int, default=0, help="number of workers of a Dask cluster, one of which is killed"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harness-cost-") as folder:
        for runs in map(int, asked.runs.split(",")):
            with cluster(asked.cluster) as options:
                store, began, ended, usage = work(Path(folder) / f"{runs}", runs, asked.jobs, options)
            check(store, runs, lost_workers=min(asked.cluster, 1))
            print(json.dumps(asdict(measure(store, began, ended, usage, runs, asked.jobs))), flush=True)  # noqa: T201
            if runs <= asked.compare:
                alone, *_ = work(Path(folder) / f"{runs}-alone", runs, 1, [])
                print(f"same results.csv with one worker: {same_results(store, alone)}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
