"""Whole studies: what they leave, what they repeat, and what interrupts them."""

import csv
import json
import math
import shutil
import statistics
from collections.abc import Callable, Iterator
from io import StringIO
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from bench.compression.policy import uniform
from bench.errors import BenchError
from bench.execution import context as unit_context
from bench.execution.stages import finetuning, pretraining, runs, search, trials
from bench.method import Capabilities, Method, SearchJob, SearchResult
from bench.planning.plan import Plan, make_plan, phases
from bench.planning.units import title
from bench.plugins.registry import load
from bench.results.differences import DIFFERENCE_COLUMNS, result_lines
from bench.results.tables import RESULT_COLUMNS, RUN_COLUMNS, StudyResults
from bench.store import files as store_module
from bench.store import leases as leases_module
from bench.store.files import Store, load_state, read_json
from bench.store.leases import Leases
from bench.training import checkpoints as checkpoints_module

TIMES = ["search_seconds_mean", "tuning_seconds", "peak_memory_mb"]


# --- comparing stores ---


def outcome(store: Store, plan: Plan) -> dict[str, Any]:
    """Every number of a plan's units that does not tell the time."""
    found: dict[str, Any] = {}
    for kind, units in phases(plan):
        for unit in units:
            folder, record = store.unit(kind, unit.identity), store.record(kind, unit.identity) or {}
            found[f"{unit.identity} record"] = {key: record.get(key) for key in ("status", "metrics", "knobs")}
            for name in ("policy.json", "raw_policy.json", "curves.json", "search.json"):
                found[f"{unit.identity} {name}"] = read_json(folder / name)
            for file in sorted((folder / "trials").glob("*/trial.json")):
                found[f"{unit.identity} trial {file.parent.name}"] = read_json(file) | {"seconds": None}
            if kind == "tuning" and record.get("status") == "done":
                assert len(list((folder / "trials").glob("*/trial.json"))) == record["trials_used"]
    return found


def assert_same(one: Store, other: Store, plan: Plan) -> None:
    """Both stores have the same numbers and, bit by bit, the same networks."""
    assert outcome(one, plan) == outcome(other, plan)
    for kind, name in (("pretrained", "model.pt"), ("runs", "network.pt")):
        for unit in next(units for found, units in phases(plan) if found == kind):
            states = [load_state(store.unit(kind, unit.identity) / name) for store in (one, other)]  # type: ignore[arg-type]
            assert states[0].keys() == states[1].keys()
            assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def snapshot(root: Path) -> dict[str, bytes]:
    """The content of every unit's files."""
    files = [path for kind in ("pretrained", "tuning", "runs") for path in (root / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


# --- what a study leaves ---


def test_a_study_is_described_in_its_folder(finished: Any) -> None:
    document = read_json(finished.store.study("tiny") / "study.json")
    assert document == finished.store.load_study(None) == finished.document | {"checksum": document["checksum"]}
    assert document["runs"] == [unit.identity for unit in finished.plan.runs]
    assert document["tunings"] == [unit.identity for unit in finished.plan.tunings]
    assert document["spec"] == finished.spec.model_dump(mode="json")
    assert document["created"] and document["command"].startswith("bench")
    files = {path.name for path in finished.store.study("tiny").iterdir()}
    assert files == {"study.json", "runs.csv", "results.csv", "table.md", "table.csv", "table.tex"}


def test_runs_csv_has_one_line_a_run(finished: Any) -> None:
    with (finished.store.study("tiny") / "runs.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0])[: len(RUN_COLUMNS)] == RUN_COLUMNS
    assert [line["id"] for line in lines] == finished.document["runs"]
    for line in lines:
        record = finished.record(f"{line['method']} {line['seed']}")
        assert (line["status"], line["budget"]) == ("done", record["budget"] or "")
        assert float(line["top1"]) == record["metrics"]["top1"]
        assert float(line["bops"]) == record["metrics"]["bops"]
        if record["knobs"]:
            assert float(line["knob_strength"]) == record["knobs"]["strength"]


def test_results_csv_has_one_line_a_cell_with_means_and_deviations(finished: Any) -> None:
    with (finished.store.study("tiny") / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == (*RESULT_COLUMNS, *DIFFERENCE_COLUMNS)
    assert [line["method"] for line in lines] == list(finished.spec.methods)
    for line in lines:
        records = [finished.record(f"{line['method']} {seed}") for seed in (0, 1)]
        assert (line["model"], line["dataset"], line["n"], line["n_failed"]) == ("resnet8", "synthetic", "2", "0")
        for figure in ("top1", "top5", "bops"):
            values = [record["metrics"][figure] for record in records]
            assert float(line[f"{figure}_mean"]) == pytest.approx(statistics.mean(values))
            assert float(line[f"{figure}_std"]) == pytest.approx(statistics.stdev(values), abs=1e-9)
        seconds = [record["times"]["search_seconds"] for record in records]
        assert float(line["search_seconds_mean"]) == pytest.approx(statistics.mean(seconds))
        inside = [record["within_budget"] for record in records]
        assert line["within_budget"] == ("" if None in inside else str(all(inside)))
        assert (float(line["tuning_seconds"]) > 0) == (line["method"] in ("sbs", "dnas"))


def test_the_watcher_is_told_of_all_the_work(finished: Any) -> None:
    watcher, epochs = (
        finished.watcher,
        {"pretrain": 3, "tune": 2 * 2 * 2, "run": 2 * (2 + 2 + 2 + 2)},
    )  # fine-tuning makes up for a search
    assert watcher.planned == watcher.finished_epochs == sum(epochs.values())
    counted = {kind: sum(title.startswith(kind) for title, _ in finished.epochs) for kind in epochs}
    assert counted == epochs
    assert len(watcher.outcomes) == 3 + 2 + 8
    assert set(watcher.outcomes.values()) == {"done"}


def test_the_tracking_view_is_made_before_and_filled_after(finished: Any) -> None:
    assert finished.tracker.calls[0] == "prepare"
    assert finished.tracker.calls[-1] == "log"


# --- repeating ---


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trains, searches or evaluates fails."""
    for module in (pretraining, search, finetuning, trials, runs):
        for name in {"fit", "evaluate", "SearchJob", "compress", "calibrate"} & vars(module).keys():
            monkeypatch.setattr(module, name, None)


@pytest.mark.usefixtures("no_work")
def test_the_same_study_again_does_nothing(tiny: SimpleNamespace, finished: Any, copied: Path) -> None:
    before = snapshot(copied)
    again = tiny.work(tiny.spec(), copied)
    assert snapshot(copied) == before
    assert again.watcher.outcomes.keys() == finished.watcher.outcomes.keys() - {
        title(unit) for unit in again.plan.pretrainings
    }
    assert set(again.watcher.outcomes.values()) == {"done"}
    assert again.watcher.stored == {unit.identity for unit in (*again.plan.tunings, *again.plan.runs)}
    assert again.watcher.finished_epochs == again.watcher.planned > 0


@pytest.mark.usefixtures("no_work")
def test_the_same_study_again_needs_no_pretrained_networks(tiny: SimpleNamespace, copied: Path) -> None:
    shutil.rmtree(copied / "pretrained")
    again = tiny.work(tiny.spec(), copied)
    assert set(again.watcher.outcomes.values()) == {"done"}
    assert not (copied / "pretrained").exists()


@pytest.mark.usefixtures("no_work")
def test_a_smaller_study_of_another_name_uses_what_is_there(tiny: SimpleNamespace, finished: Any, copied: Path) -> None:
    again = tiny.work(tiny.spec({"name": "other", "methods": ["fixed", "sbs"], "seeds": [1]}), copied)
    assert again.store.studies() == ["tiny", "other"]
    frame = StudyResults(again.store, again.document).runs
    assert list(frame["top1"]) == [finished.record(f"{name} 1")["metrics"]["top1"] for name in ("fixed", "sbs")]


# --- stale results ---


def age(store: Store, plan: Plan) -> None:
    """Let all results look as if an earlier version had made them, which identified sources differently."""
    for kind, units in phases(plan):
        for unit in units:
            record = store.record(kind, unit.identity) or {}
            sources = {key: "0" * 64 for key in record["fingerprint"] if key.endswith("_source")}
            store.write_record(kind, unit.identity, record | {"fingerprint": record["fingerprint"] | sources})


def test_a_study_of_an_earlier_version_is_announced_as_stale_and_made_again(
    tiny: SimpleNamespace, finished: Any, copied: Path
) -> None:
    spec = tiny.spec({"methods": ["fixed"], "seeds": [0]})
    age(Store(copied), make_plan(spec))
    shutil.rmtree(copied / "studies")
    again = tiny.work(spec, copied)
    earlier = "will be made again by the next run: made by an earlier version of the harness, which identified"
    assert again.watcher.notes == [
        f"1 result is stale and {earlier} model sources differently",
        f"1 result is stale and {earlier} method and model sources differently",
    ]
    assert again.watcher.outcomes == {"pretrain seed 0": "done", "run fixed 4bit seed 0": "done"}
    assert again.record("fixed 0")["metrics"] == finished.record("fixed 0")["metrics"]
    assert len(list(copied.glob("*/*.stale-1"))) == 2
    assert tiny.work(spec, copied).watcher.notes == []


@pytest.mark.usefixtures("no_work")
def test_results_that_a_changed_study_leaves_out_are_announced(tiny: SimpleNamespace, copied: Path) -> None:
    again = tiny.work(tiny.spec({"methods": ["fixed", "full_precision"]}), copied)
    assert again.watcher.notes == [
        "7 results of the stored study 'tiny' do not belong to it any more, because its specification or the options "
        "of a method have changed; they stay in the store"
    ]


# --- interruptions ---

PART: dict[str, Any] = {"methods": ["sbs", "fixed", "full_precision"], "seeds": [0]}


POINTS = [
    ("pretrain for tuning", pretraining, "fit", 0),
    ("pretrain for tuning", unit_context, "save_state", 0),
    ("pretrain seed 0", Store, "write_record", 1),  # when all else is there
    ("tune sbs 4bit trial 1", trials, "evaluate", 0),
    ("tune sbs 4bit trial 2", search, "SearchJob", 0),
    ("tune sbs 4bit trial 2", finetuning, "fit", 0),
    ("tune sbs 4bit trial 2", Store, "write_record", 2),  # the tuning's own
    ("run sbs 4bit seed 0", finetuning, "fit", 0),
    ("run sbs 4bit seed 0", unit_context, "save_state", 0),  # after the test split was read
    ("run fixed 4bit seed 0", unit_context, "write_json", 0),
]
"""Where the user interrupts: in which unit, at which call of what."""
KEPT = [
    ("pretrain for tuning", "save_state"),
    ("pretrain seed 0", "write_record"),
    ("tune sbs 4bit trial 1", "evaluate"),
    ("tune sbs 4bit trial 2", "fit"),
    ("run sbs 4bit seed 0", "fit"),
    ("run sbs 4bit seed 0", "save_state"),
    ("run fixed 4bit seed 0", "write_json"),
]
"""Of these points, the ones where epochs have gone into checkpoints."""


@pytest.mark.parametrize("checkpoints", [True, False])
def test_an_interrupted_study_goes_on_as_if_nothing_had_been(
    tiny: SimpleNamespace, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoints: bool
) -> None:
    for module in (checkpoints_module, search):
        monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.0 if checkpoints else math.inf)
    spec, root = tiny.spec(PART), tmp_path / "store"
    for unit, owner, name, when in POINTS:
        watcher = tiny.Recorder()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, interrupting(getattr(owner, name), watcher, unit, when))
            with pytest.raises(KeyboardInterrupt):
                tiny.work(spec, root, watcher=watcher)
        assert list((root / "leases").glob("*.json")) == []
        assert bool(list(root.rglob("checkpoints/*.pt"))) == (checkpoints and (unit, name) in KEPT), (unit, name)
        assert (root / "studies" / "tiny" / "results.csv").exists()  # what is there can be looked at
    resumed = tiny.work(spec, root)
    assert not list(root.rglob("checkpoints"))
    assert_same(resumed.store, finished.store, resumed.plan)
    expected = result_lines(StudyResults(finished.store, resumed.document)).drop(columns=TIMES).to_csv(index=False)
    found = pd.read_csv(root / "studies" / "tiny" / "results.csv").drop(columns=TIMES)
    pd.testing.assert_frame_equal(found, pd.read_csv(StringIO(expected)))


def interrupting(original: Callable[..., Any], watcher: Any, unit: str, when: int) -> Callable[..., Any]:
    """The function, but for its call number `when` in a unit, at which the user interrupts."""
    calls: Iterator[int] = count()

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if watcher.unit == unit and next(calls) == when:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    return wrapped


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "backend"), [(1, "threading"), (2, "threading"), (2, "loky")])
def test_processes_of_their_own_give_the_same_numbers(
    tiny: SimpleNamespace, finished: Any, tmp_path: Path, jobs: int, backend: str
) -> None:
    from joblib.externals.loky import get_reusable_executor

    spec = tiny.spec({"methods": ["dnas", "fixed"], "seeds": [0], "tuning": {"trials": 2}})
    try:
        worked = tiny.work(spec, tmp_path / "store", jobs=jobs, backend=backend, isolated=True)
    finally:
        get_reusable_executor().shutdown(wait=True)
    assert worked.watcher.unit == ""  # nothing was worked on in this process
    assert len(list((tmp_path / "store").rglob("output.log"))) == 2 + 2 + 2
    assert list((tmp_path / "store" / "leases").glob("*.json")) == []
    assert set(worked.watcher.outcomes.values()) == {"done"}
    assert worked.watcher.finished_epochs == worked.watcher.planned
    assert_same(worked.store, finished.store, worked.plan)


@pytest.mark.slow
def test_the_work_of_a_dead_machine_is_taken_over(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever works on a unit has not watched its dead holder as long as the command has."""
    spec = tiny.spec({"methods": ["fixed"], "seeds": [0]})
    plan = make_plan(spec)
    leases = Leases(tmp_path / "store")
    (tmp_path / "store" / "leases").mkdir(parents=True)
    for kind, units in phases(plan):
        for unit in units:
            lease = leases.acquire(f"{kind}-{unit.identity}", title(unit))
            assert lease is not None
            document = read_json(lease.path)
            lease.path.write_text(json.dumps(document | {"holder": document["holder"] | {"host": "elsewhere"}}))
    monkeypatch.setattr(leases_module, "PATIENCE_SECONDS", 1.5)
    worked = tiny.work(spec, tmp_path / "store", jobs=2, isolated=True)
    assert set(worked.watcher.outcomes.values()) == {"done"}
    assert list((tmp_path / "store" / "leases").glob("*.json")) == []


# --- failures ---


class Broken(Method):
    """Fails for one seed."""

    summary = "for tests"
    capabilities = Capabilities(budget="direct")

    def search(self, job: SearchJob) -> SearchResult:
        if job.seed == 0:
            raise ValueError("something is\nwrong here")
        return SearchResult(policy=uniform(job.task.network, 4), state=job.pretrained)


def test_a_failing_method_does_not_stop_the_others(
    tiny: SimpleNamespace, copied: Path, plugin: Callable[..., None]
) -> None:
    plugin("methods", "broken", Broken)
    worked = tiny.work(tiny.spec({"methods": ["broken", "fixed"]}), copied)
    told = worked.watcher.outcomes["run broken 4bit seed 0"]
    assert told.startswith("failed: ValueError: something is (tests/bench/test_study.py:")
    assert "wrong here" in Path(told.partition("; traceback: ")[2]).read_text()
    assert worked.watcher.outcomes["run broken 4bit seed 1"] == "done"
    assert worked.watcher.outcomes["run fixed 4bit seed 0"] == "done"
    lines = StudyResults(worked.store, worked.document).lines.set_index("method")
    assert (lines.loc["broken", "n"], lines.loc["broken", "n_failed"]) == (1, 1)
    table = (copied / "studies" / "tiny" / "table.md").read_text()
    assert "ValueError: something is" in table


def test_a_budget_out_of_reach_is_reported_with_the_nearest_cost(tiny: SimpleNamespace, copied: Path) -> None:
    worked = tiny.work(tiny.spec({"methods": ["sbs", "fixed"], "budgets": ["0.002x"], "seeds": [0]}), copied)
    outcomes = {title: said for title, said in worked.watcher.outcomes.items() if title.startswith("run")}
    assert outcomes.keys() == {"run sbs 0.002x seed 0", "run fixed 0.002x seed 0"}
    assert all(said.startswith("unreachable: ") for said in outcomes.values())
    frame = StudyResults(worked.store, worked.document).lines
    assert list(frame["n"]) == [0, 0] and list(frame["n_failed"]) == [1, 1]
    assert all(math.isnan(value) for value in frame["top1_mean"])


def full_disk(after: int) -> Callable[..., None]:
    """Writing works so many times."""
    original, calls = store_module.write_bytes, count()

    def write(path: Path, content: bytes, **how: bool) -> None:
        if next(calls) >= after:
            raise OSError(28, "No space left on device", str(path))
        original(path, content, **how)

    return write


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_full_disk_stops_the_study_and_harms_nothing(
    tiny: SimpleNamespace, copied: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    before = snapshot(copied)
    spec = tiny.spec({"seeds": [0], "recipe": "own", "methods": ["fixed"]})
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_bytes", full_disk(after))
        with pytest.raises(OSError, match="No space left on device"):
            tiny.work(spec, copied)
    assert before.items() <= snapshot(copied).items()
    assert not [path for path in copied.rglob(".*") if path.is_file() and path.name not in (".lock", ".views.lock")]
    assert list((copied / "leases").glob("*.json")) == []
    assert set(tiny.work(spec, copied).watcher.outcomes.values()) == {"done"}


def test_a_store_that_cannot_be_written_to_stops_before_any_work(tiny: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BenchError, match="cannot write to the store"):
        tiny.work(tiny.spec(), tmp_path / "file")


def test_missing_data_stop_the_study_before_anything_is_written(
    tiny: SimpleNamespace, tmp_path: Path, plugin: Callable[..., None]
) -> None:
    class Absent(load("datasets", "synthetic")):  # type: ignore[misc]
        def load(self, data_dir: Path | None) -> None:
            raise BenchError("the files are not there")

    plugin("datasets", "absent", Absent)
    with pytest.raises(BenchError, match="the files are not there"):
        tiny.work(tiny.spec({"task": {"dataset": "absent"}}), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_units_do_not_depend_on_what_was_worked_on_before(tiny: SimpleNamespace, finished: Any, tmp_path: Path) -> None:
    worked = tiny.work(tiny.spec({"methods": ["full_precision"], "seeds": [1]}), tmp_path / "store")
    assert_same(worked.store, finished.store, worked.plan)
    assert make_plan(worked.spec).runs[0].identity == finished.record("full_precision 1")["id"]
