"""Measure what a study's size costs the harness itself, on stores with made-up results: from planning to archives.

    python -m tests.scale.study_size [--write] [--only STEP,…] [--folder DIR] [RUNS …]

Each study has ten methods at one budget and as many seeds as the number of runs needs. Its results are made up, so that
nothing is trained; everything else is the harness's own code. Of more than 10,000 runs, the store has
the records alone, which is all that the steps measured there read. Times are seconds of the processor, which depend
less on what else a machine does; memory is the peak of the process. `--write` puts the table into docs/performance.md.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.store.files import manifest

METHODS = (
    *("fixed", "full_precision", "random", "greedy", "width"),
    *("sbs", "sbs_q", "sbs_p", "dnas", "multi_path"),
)
STEPS = ("plan", "start", "status", "scheduler", "report", "page", "sync", "clean", "archive")
LARGEST = {"report": 10_000, "page": 10_000, "sync": 1_000, "clean": 10_000, "archive": 10_000, "scheduler": 10_000}
"""Largest number of runs for steps that are not measured beyond it."""
WITH_FILES = 10_000
"""Largest number of runs that get policies and curves beside their records."""
WORDS = {
    "plan": "planning",
    "start": "what `--dry-run` does after its measurements",
    "status": "`bench status`",
    "scheduler": "the scheduler, on results that are there",
    "report": "`bench report`",
    "page": "`bench report --out`, the page alone",
    "sync": "`bench sync` of a new database",
    "clean": "`bench clean`",
    "archive": "`bench archive`",
}
_DOCS = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
_BLOCK = re.compile(r"(<!-- study size -->\n).*?(<!-- end -->)", re.DOTALL)


def make_store(root: Path, runs: int) -> None:
    """Make a store with the results of a study."""
    import random

    from bench.execution.records import close, new_record
    from bench.execution.task_loader import TaskLoader
    from bench.planning.builder import stored_specification
    from bench.planning.plan import phases
    from bench.planning.units import TuningUnit, kind_of
    from bench.store.files import Store, checked_bytes, write_bytes
    from bench.store.outcomes import Outcome
    from bench.study import study_document
    from tests.scale.report_time import curves, policy

    plan = planned(runs)
    store = Store(root)
    checksum = TaskLoader(plan.spec, None).task.data.checksum
    rng = random.Random(0)  # noqa: S311  (figures that look real, no secrets)
    records: dict[Any, dict[str, Any]] = {}
    files = {"policy.json": policy(rng), "curves.json": list(curves(rng)), "search.json": {"history": []}}
    contents = {name: json.dumps(document).encode() for name, document in files.items()}
    listed: dict[str, Any] = {}
    for kind, units in phases(plan):
        for unit in units:
            folder = store.unit(kind, unit.identity)
            like = (kind_of(unit), getattr(unit, "method", ""))
            if like not in records:
                records[like] = new_record(unit, checksum, None)
            record = {**records[like], "id": unit.identity, "seed": unit.seed}
            if isinstance(unit, TuningUnit):
                record |= {"knobs": {"strength": 0.1}, "chosen_trial": 0, "trials_used": 1, "tuning_seconds": 9.0}
            else:
                record |= figures(rng)
            if kind == "runs" and runs <= WITH_FILES:
                for name, content in contents.items():
                    write_bytes(folder / name, content, durable=False)
                listed = listed or manifest(folder, contents)
                record |= {"files": listed}
            if kind == "runs":
                record |= {"tuning": None if unit.tuning is None else unit.tuning.identity}
            close(record, Outcome(status="done"))
            write_bytes(folder / "record.json", checked_bytes(record), durable=False)
            write_bytes(folder / "spec.json", checked_bytes(stored_specification(unit)), durable=False)
    document = study_document(plan, checksum, ("bench", "run"))
    write_bytes(store.study(plan.spec.name) / "study.json", checked_bytes(document), durable=False)


def figures(rng: Any) -> dict[str, Any]:
    """Return made-up figures of a run or pretraining."""
    cost = 39e6 * (1 + 0.02 * rng.random())
    metrics = {"top1": 60 + rng.gauss(0, 0.5), "top5": 90.0, "validation_top1": 61.0, "bops": cost, "cost": cost}
    more = {"memory_kb": 33.0, "raw_cost": cost, "repaired_gates": 1, "repair_share": 0.01}
    times = {"search_seconds": 12.5, "finetune_seconds": 20.0, "total_seconds": 33.0}
    return {"metrics": metrics | more, "times": times, "within_budget": True, "knobs": {}}


def planned(runs: int) -> Any:
    """Plan a study with a number of runs."""
    from bench.planning.plan import make_plan
    from bench.spec.sources import build

    seeds = list(range(max(1, runs // len(METHODS))))
    task = {"dataset": "synthetic", "model": "resnet8", "train_images": 96}
    values: dict[str, Any] = {"name": "large", "methods": list(METHODS), "seeds": seeds, "task": task}
    return make_plan(build([values | {"budgets": ["4bit"], "device": "cpu", "threads": 1, "baseline": "fixed"}]))


class Steps:
    """The steps that are measured, on one store."""

    def __init__(self, root: Path, runs: int) -> None:
        self.root, self.runs = root, runs

    @cached_property
    def plan(self) -> Any:
        """Plan of the study."""
        return planned(self.runs)

    @cached_property
    def store(self) -> Any:
        """Store with its results."""
        from bench.store.files import Store

        return Store(self.root)

    @cached_property
    def document(self) -> dict[str, Any]:
        """Document of the study."""
        document: dict[str, Any] = self.store.load_study("large")
        return document

    def prepare(self, step: str) -> None:
        """Make what a step begins with, so that it is not measured."""
        if step in ("start", "scheduler"):
            _ = self.plan
        _ = self.document

    def plan_(self) -> None:
        """Plan the study."""
        planned(self.runs)

    def start(self) -> None:
        """Do what a command does between planning and the first unit."""
        from bench.study import notes_before, study_document

        notes_before(self.plan, self.store, study_document(self.plan, self.document["data_checksum"]))

    def scheduler(self) -> None:
        """Pass all units through the scheduler, which finds that they have results."""
        from bench.execution.scheduler import run_units
        from bench.execution.settings import RunSettings
        from bench.execution.study_run import StudyRun
        from bench.planning.plan import phases

        settings, checksum = RunSettings(store=self.store, data_dir=None, jobs=4), self.document["data_checksum"]
        run = StudyRun(spec=self.plan.spec, settings=settings, data_checksum=checksum, session="session-x")
        for _, units in phases(self.plan):
            if any(outcome.status != "done" for _, outcome in run_units(run, units)):
                raise RuntimeError("a result that is there was not used")

    def page(self) -> None:
        """Make all reports and their page."""
        from bench.plugins.registry import load
        from bench.reporting.report import make_document
        from bench.results.tables import StudyResults

        load("forms", "html").render(make_document(StudyResults(self.store, self.document)), 120)

    def sync(self) -> None:
        """Send everything to a new database."""
        from bench.reporting.mlflow.tracker import Tracker

        database = f"sqlite:///{self.root.absolute()}/new.db"
        Tracker(database, self.store.root, patient=True).sync(self.store, self.document)

    def status(self) -> None:
        """Print the state of every unit."""
        self._command("status", "large")

    def report(self) -> None:
        """Print the comparison."""
        self._command("report", "large")

    def clean(self) -> None:
        """Look for what can be removed."""
        self._command("clean")

    def archive(self) -> None:
        """Write an archive."""
        file = self.root / "large.tar.gz"
        file.unlink(missing_ok=True)
        self._command("archive", "large", str(file))

    def _command(self, *words: str) -> None:
        """Run a command in this process, without what it prints."""
        from click.testing import CliRunner

        from bench.cli.main import bench

        answer = CliRunner().invoke(bench, [*words, "--store", str(self.store.root)], standalone_mode=False)
        if answer.exception is not None:
            raise answer.exception


def measure(step: str, folder: Path, runs: int) -> None:
    """Print the seconds of the processor that a step takes, and the peak memory of this process in MB."""
    for steps in (Steps(folder / "small", len(METHODS)), Steps(folder / "store", runs)):
        steps.prepare(step)
        work: Callable[[], None] = getattr(steps, "plan_" if step == "plan" else step)
        began = time.process_time()
        work()  # the small store first: imports are no cost of the size
        seconds = time.process_time() - began
    sys.stdout.write(json.dumps({"seconds": seconds, "memory": peak_memory()}))


def peak_memory() -> float:
    """Return the peak memory of this process in MB; that of the process that started it does not count."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit("the system does not state the peak memory of a process")
    return int(found[1]) / 1024


def measured(step: str, folder: Path, runs: int) -> dict[str, float]:
    """Measure a step in a process of its own."""
    words = ("--step", step, "--folder", str(folder), str(runs))
    ended = subprocess.run(
        [sys.executable, "-m", "tests.scale.study_size", *words], capture_output=True, text=True, check=True
    )
    figures: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def table(rows: Mapping[str, Mapping[int, Mapping[str, float]]], counts: Sequence[int]) -> str:
    """Return the table of all steps: seconds for each number of runs, and peak memory for the largest."""
    lines = ["| what | " + " | ".join(f"{count:,} runs" for count in counts) + " | memory |"]
    lines.append("| --- | " + "---: | " * (len(counts) + 1))
    for step, figures in rows.items():
        cells = [f"{figures[count]['seconds']:.2g} s" if count in figures else "" for count in counts]
        memory = max((each["memory"] for each in figures.values()), default=0)
        lines.append(f"| {WORDS[step]} | {' | '.join(cells)} | {memory:,.0f} MB |")
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    """Measure each step at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", default=",".join(STEPS))
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--folder", type=Path, help="folder that keeps the stores for the next time")
    parser.add_argument("counts", nargs="*", type=int, default=[1000, 10_000, 100_000])
    asked = parser.parse_args()
    if asked.step:
        measure(asked.step, asked.folder, asked.counts[0])
        return
    rows: dict[str, dict[int, dict[str, float]]] = {step: {} for step in asked.only.split(",")}
    for count in asked.counts:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if asked.folder is None else asked.folder / str(count)
            for name, size in (("small", len(METHODS)), ("store", count)):
                if not (folder / name).exists():
                    make_store(folder / name, size)
            for step, figures_of in rows.items():
                if count <= LARGEST.get(step, count):
                    figures_of[count] = measured(step, folder, count)
                    sys.stdout.write(f"{count:7} runs, {WORDS[step]}: {figures_of[count]}\n")
                    sys.stdout.flush()
    made = table(rows, asked.counts)
    sys.stdout.write(f"{made}\n")
    if asked.write:
        _DOCS.write_text(_BLOCK.sub(lambda found: f"{found[1]}\n{made}\n\n{found[2]}", _DOCS.read_text()))


if __name__ == "__main__":
    main()
