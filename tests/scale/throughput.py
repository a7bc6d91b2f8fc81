"""Measure how many runs per hour a machine finishes, one after another and several at once.

    python -m tests.scale.throughput --jobs 1,2,4 --threads 1
    python -m tests.scale.throughput --device cuda --runs-per-card 1,2,4,8 --model resnet20 --epochs 20

The script runs the same study once for each number, in separate stores: several seeds of one method that trains a
quantized network. For each number it prints the seconds from the start of the first run to the end of the last, the
runs per hour, their ratio to those of the first number, the seconds of one run, and whether the results are the same.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The throughput with a number of runs at once.

    Attributes:
        at_once: Number of runs at once; with CUDA, on each GPU.
        runs: Number of all runs.
        seconds: Seconds from the start of the first run to the end of the last.
        runs_an_hour: Runs per hour.
        ratio: Ratio to the runs per hour of the first number.
        seconds_a_run: Mean seconds that a run spent on its own work.
        same_results: Whether accuracies and costs equal those of the first number.
    """

    at_once: int
    runs: int
    seconds: float
    runs_an_hour: float
    ratio: float
    seconds_a_run: float
    same_results: bool


def specification(asked: argparse.Namespace) -> str:
    """Return the specification: seeds of uniform precision, trained from scratch."""
    return f"""
name = "throughput"
methods = ["fixed"]
budgets = ["4bit"]
seeds = {list(range(asked.seeds))}
device = "{asked.device}"
threads = {asked.threads}
compile = "off"
task = {{dataset = "{asked.dataset}", model = "{asked.model}", init = "scratch"}}
finetune = {{epochs = {asked.epochs}, batch_size = {asked.batch_size}, lr = 0.01}}
"""


def work(folder: Path, asked: argparse.Namespace, at_once: int) -> Path:
    """Run the study with a number of runs at once; return its store."""
    folder.mkdir(parents=True)
    spec, store = folder / "spec.toml", folder / "store"
    spec.write_text(specification(asked))
    jobs = ["--jobs", str(at_once)]
    if asked.device.startswith("cuda"):
        jobs = ["--jobs", str(at_once * asked.cards), "--runs-per-card", str(at_once)]
    data = [] if asked.data_dir is None else ["--data-dir", str(asked.data_dir)]
    command = [sys.executable, "-m", "bench", "run", "--spec", str(spec), "--store", str(store), *jobs, *data]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the study with {at_once} runs at once did not go well:\n{done.stdout}")
    return store


def span(store: Path) -> float:
    """Return the seconds from the start of the first run to the end of the last."""
    began = min(path.stat().st_mtime for path in store.glob("runs/*/spec.json"))
    return max(path.stat().st_mtime for path in store.glob("runs/*/record.json")) - began


def inside(store: Path) -> float:
    """Return the mean seconds that runs spent on their own work."""
    records = [json.loads(path.read_text()) for path in store.glob("runs/*/record.json")]
    return sum(float(record["times"]["total_seconds"]) for record in records) / len(records)


def results(store: Path) -> pd.DataFrame:
    """Return the accuracy and cost of each run, by seed."""
    table = pd.read_csv(store / "studies" / "throughput" / "runs.csv").sort_values("seed")
    return table[[name for name in ("seed", "top1", "top5", "bops") if name in table]].reset_index(drop=True)


def measure(folder: Path, asked: argparse.Namespace, numbers: list[int]) -> list[Throughput]:
    """Measure all numbers, one after another; print each line at once."""
    found: list[Throughput] = []
    stores: list[Path] = []
    for index, at_once in enumerate(numbers):
        store = work(folder / f"{index}", asked, at_once)
        seconds = span(store)
        pace = 3600 * asked.seeds / seconds
        stores.append(store)
        found.append(
            Throughput(
                at_once=at_once,
                runs=asked.seeds,
                seconds=round(seconds, 1),
                runs_an_hour=round(pace, 1),
                ratio=round(pace / (found[0].runs_an_hour if found else pace), 2),
                seconds_a_run=round(inside(store), 1),
                same_results=results(store).equals(results(stores[0])),
            )
        )
        print(json.dumps(asdict(found[-1])), flush=True)  # noqa: T201
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default="1,2", help="numbers of runs at once on the CPU, separated by commas")
    parser.add_argument(
        "--runs-per-card",
        default="1,2,4",
        help="numbers of runs at once on a GPU, separated by commas, with --device cuda",
    )
    parser.add_argument("--cards", type=int, default=1, help="number of GPUs, with --device cuda")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run")
    parser.add_argument("--seeds", type=int, default=8, help="number of all runs")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    asked = parser.parse_args()
    numbers = asked.runs_per_card if asked.device.startswith("cuda") else asked.jobs
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        measure(Path(folder), asked, [int(number) for number in numbers.split(",")])


if __name__ == "__main__":
    main()
