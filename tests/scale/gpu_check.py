"""Check the harness on a GPU within some twelve minutes, and keep everything in one folder.

    python -m tests.scale.gpu_check --out gpu-check --data-dir DIR
    python -m tests.scale.gpu_check --out gpu-check --device cpu     # the same steps, small, to try the script

The steps: the tests that need a GPU; `bench doctor`; times of search steps in single precision and bfloat16, with and
without compilation; and one seed of `fixed` and `sbs` with the paper's schedule, both on the GPU at once. Each step has
a time limit. What it prints goes to a file of its own; a study that was stopped at its limit continues when the script
is started again. `summary.json` has the command, exit status and seconds of every step.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 30.0
"""Seconds that a step gets after an interrupt, before it is killed."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the check.

    Attributes:
        name: Name of the step, and of the file with what it prints.
        arguments: Arguments of Python.
        limit: Seconds after which it is interrupted.
    """

    name: str
    arguments: Sequence[str]
    limit: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a step.

    Attributes:
        name: Name of the step.
        command: What was executed.
        status: Exit status; `None` if it was stopped at its limit.
        seconds: Seconds that it took.
    """

    name: str
    command: Sequence[str]
    status: int | None
    seconds: float


def steps(asked: argparse.Namespace) -> Iterator[Step]:
    """List the steps, the most telling first."""
    small = asked.device == "cpu"
    yield Step(name="doctor", arguments=["-m", "bench", "doctor", "--store", str(asked.out / "store")], limit=60)
    tests = ["-m", "pytest", "-q", "-n", "0", "-m", "cuda", "tests", "-p", "no:cacheprovider"]
    yield Step(name="tests", arguments=tests, limit=120)
    for model, precision in (("resnet20", "fp32"), ("resnet20", "bf16"), ("resnet18", "fp32"), ("resnet18", "bf16")):
        speed = [
            "-m",
            "bench",
            "speed",
            "--methods",
            "fixed" if small else "fixed,sbs,dnas",
            "--model",
            model,
            "--json",
        ]
        speed += ["--device", asked.device, "--precision", precision, "--rounds", "2" if small else "10"]
        speed += ["--compile", "off", "--batch-size", "8"] if small else ["--compile", "both"]
        yield Step(name=f"speed-{model}-{precision}", arguments=speed, limit=90)
    yield Step(name="study", arguments=["-m", "bench", "run", *_study(asked)], limit=asked.study_seconds)


def _study(asked: argparse.Namespace) -> list[str]:
    """Return the options of the study: the paper's schedule on a GPU, a few updates on a CPU."""
    common = ["--name", "gpu-check", "--methods", "fixed,sbs", "--seeds", "1", "--budget", "4bit", "--jobs", "2"]
    common += ["--store", str(asked.out / "store"), "--device", asked.device]
    if asked.device == "cpu":
        return [*common, "--set", "pretrain.epochs=1", "--set", "search.epochs=1", "--set", "finetune.epochs=1"]
    data = (
        ["--preset", "cifar100-paper", "--data-dir", str(asked.data_dir)] if asked.data_dir else ["--schedule", "paper"]
    )
    return [*common, *data, "--runs-per-card", "2", "--set", "precision=bf16", "--set", "compile=on"]


def run(step: Step, folder: Path) -> Outcome:
    """Run a step, and interrupt it at its limit."""
    command = [sys.executable, *step.arguments]
    began = time.monotonic()
    with (folder / f"{step.name}.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        status: int | None = None
        try:
            status = process.wait(step.limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
            process.kill()
            process.wait()
    return Outcome(name=step.name, command=command, status=status, seconds=round(time.monotonic() - began, 1))


def main() -> None:
    """Run all steps, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--data-dir", type=Path, default=None, help="folder with CIFAR-100; without it, digits are used"
    )
    parser.add_argument("--study-seconds", type=float, default=240, help="time limit of the study")
    asked = parser.parse_args()
    asked.out = asked.out.resolve()
    asked.out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for step in steps(asked):
        outcomes.append(run(step, asked.out))
        (asked.out / "summary.json").write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
        last = outcomes[-1]
        state = "stopped at its limit" if last.status is None else f"exit status {last.status}"
        print(f"{last.name}: {state}, {last.seconds:.0f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
