"""Archives that somebody hands in: what passes, and what every check finds."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.diagnostics.submission import Inspection, Submission, choices, costs, data, inspect, networks, tables, units
from bench.diagnostics.submission.submission import NotChecked, check_task, unpacked
from bench.errors import BenchError
from bench.results.tables import ResultsAsMade
from bench.spec.schema import TaskSpec
from bench.store.archive import archive
from bench.store.files import Store, read_checked, write_checked, write_json

pytestmark = pytest.mark.slow


@pytest.fixture
def store(copied: Path) -> Store:
    """A copy of a finished study."""
    return Store(copied)


def submission(store: Store) -> Submission:
    return Submission(results=ResultsAsMade(store, store.load_study("tiny")))


def run_of(store: Store, method: str, seed: int = 0) -> str:
    """The id of a run of the study."""
    for identity in store.load_study("tiny")["runs"]:
        record = store.record("runs", identity) or {}
        if (record["method"], record["seed"]) == (method, seed):
            return str(identity)
    raise AssertionError(method)


def change(store: Store, identity: str, kind: Any = "runs", **fields: Any) -> None:
    """Change fields of a record, with a right checksum; those of a dictionary one by one."""
    record = store.record(kind, identity) or {}
    merged = {key: record[key] | value if isinstance(value, dict) else value for key, value in fields.items()}
    store.write_record(kind, identity, record | merged)


def test_an_honest_archive_passes_all_checks(finished: SimpleNamespace, tmp_path: Path) -> None:
    archive(finished.store, "tiny", tmp_path / "tiny.tar.gz")
    with unpacked(tmp_path / "tiny.tar.gz") as results:
        found = Inspection(lines=tuple(inspect(Submission(results=results), networks=True)), networks=True)
        folder = results.store.root
    assert (found.faults, found.missing, found.verdict) == ([], [], "networks")
    assert len(found.lines) == 6 and not folder.exists()
    assert Inspection(lines=found.lines[:5], networks=False).verdict == "numbers"


def test_costs_are_counted_again(store: Store) -> None:
    assert costs.check(submission(store)).passed
    run = run_of(store, "sbs")
    change(store, run, metrics={"bops": 1, "cost": 1})
    line = costs.check(submission(store))
    assert not line.passed and "sbs 4bit seed 0: bops is " in line.figure and "and 1 is recorded" in line.figure


def test_a_cheaper_policy_than_the_one_that_was_priced_is_found(store: Store) -> None:
    path = store.unit("runs", run_of(store, "fixed")) / "policy.json"
    policy = json.loads(path.read_text())
    policy["layers"][list(policy["layers"])[2]]["weight_bits"] = 8
    write_json(path, policy)
    assert "fixed 4bit seed 0: bops is " in costs.check(submission(store)).figure
    line = units.check(submission(store))
    assert not line.passed and "policy.json is damaged" in line.figure


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metrics": {"top1": 50.01}}, "top1 of 50.01 % is not that of a whole number of"),
        ({"metrics": {"top1": 300.0}}, "top1 of 300.0 % is not that of a whole number of"),
        ({"data_use": {"evaluate": {"evaluated_images": 10_000}}}, "10000 images were evaluated after fine-tuning"),
        ({"fingerprint": {"data_checksum": "0" * 64}}, "made with other data than the study's document says"),
    ],
)
def test_data_are_checked(store: Store, fields: Mapping[str, Any], words: str) -> None:
    change(store, run_of(store, "dnas"), **fields)
    line = data.check(submission(store))
    assert not line.passed and words in line.figure


def test_other_data_are_found(store: Store) -> None:
    path = store.study("tiny") / "study.json"
    document = read_checked(path) or {}
    for kind, key in (("runs", "runs"), ("tuning", "tunings")):
        for identity in document[key]:
            change(store, identity, kind, fingerprint={"data_checksum": "0" * 64})
    write_checked(path, document | {"data_checksum": "0" * 64})
    assert "the data here have the checksum" in data.check(submission(store)).figure


def test_a_choice_that_validation_does_not_make_is_found(store: Store) -> None:
    (tuning,) = (
        name for name in store.load_study("tiny")["tunings"] if store.record("tuning", name)["method"] == "sbs"
    )  # type: ignore[index]
    assert choices.check(submission(store)).passed
    record = store.record("tuning", tuning) or {}
    other = 1 - record["chosen_trial"]
    change(store, tuning, "tuning", chosen_trial=other)
    assert f"trial {other} was chosen, and by the rule" in choices.check(submission(store)).figure
    change(store, tuning, "tuning", chosen_trial=record["chosen_trial"], seed=0)
    assert "its seed is one of reported runs" in choices.check(submission(store)).figure
    change(store, run_of(store, "sbs"), knobs={"strength": 0.5})
    assert "its knobs are not those that its tuning chose" in choices.check(submission(store)).figure


def test_a_trial_that_was_judged_on_test_images_is_found(store: Store) -> None:
    tuning = store.load_study("tiny")["tunings"][0]
    path = store.unit("tuning", tuning) / "trials" / "0" / "trial.json"
    trial = json.loads(path.read_text())
    write_json(path, trial | {"validation_images": 256})
    assert "trial 0: 256 images, not all" in data.check(submission(store)).figure


@pytest.mark.parametrize("name", ["runs.csv", "results.csv", "table.csv", "table.md", "table.tex"])
def test_a_table_that_the_records_do_not_give_is_found(store: Store, name: str) -> None:
    path = store.study("tiny") / name
    record = store.record("runs", run_of(store, "fixed")) or {}
    value = record["metrics"]["top1"] if name == "runs.csv" else None
    text = path.read_text()
    shown = str(value) if value is not None else next(word for word in ("55.35", "55353344.0") if word in text)
    path.write_text(text.replace(shown, "99.5"))
    line = tables.check(submission(store))
    assert not line.passed and name in line.figure and "99.5" in line.figure
    assert tables.check(submission(store)).passed  # the check has made them again


def test_a_specification_that_is_not_the_one_that_was_run_is_found(store: Store) -> None:
    path = store.unit("runs", run_of(store, "sbs")) / "spec.json"
    stored = read_checked(path) or {}
    longer = stored["specification"] | {"finetune": stored["specification"]["finetune"] | {"epochs": 9}}
    write_checked(path, stored | {"specification": longer})
    assert "made with other values than stated: finetune" in units.check(submission(store)).figure
    changed = stored["depends_on"] | {"finetune": longer["finetune"]}
    write_checked(path, stored | {"specification": longer, "depends_on": changed})
    assert "its specification is not the one that its id stands for" in units.check(submission(store)).figure
    assert len(list(inspect(submission(store)))) == 1  # the others would mean nothing


def test_an_accuracy_that_the_network_does_not_have_is_found(store: Store) -> None:
    record = store.record("runs", run_of(store, "fixed")) or {}
    better = record["metrics"]["top1"] + 100 * 8 / 256  # eight more images, which no other check can see
    change(store, run_of(store, "fixed"), metrics={"top1": better})
    assert data.check(submission(store)).passed
    line = networks.check(submission(store))
    assert not line.passed and "fixed 4bit seed 0: the rebuilt network" in line.figure


def test_networks_of_other_code_are_not_evaluated(store: Store) -> None:
    change(store, run_of(store, "fixed"), fingerprint={"method_source": "syntax-1:0"})
    with pytest.raises(NotChecked, match="was made by other code than is here"):
        networks.check(submission(store))


@pytest.mark.parametrize(
    "task",
    [
        {"model": "boom:bang"},
        {"model": "os:getcwd"},
        {"dataset": "boom"},
        {"dataset": "imagefolder", "image_size": 100_000, "classes": 2},
    ],
)
def test_no_code_that_an_archive_names_is_loaded(task: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "boom.py").write_text("raise SystemExit('loaded')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotChecked):
        check_task(TaskSpec(**{"dataset": "synthetic", "model": "resnet8"} | task))
    assert "boom" not in sys.modules


def test_a_check_that_cannot_be_made_is_no_pass(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(reason: Exception) -> Callable[[Any], None]:
        def check(_: object) -> None:
            raise reason

        return check

    monkeypatch.setattr(data, "read_data", lambda *_: raising(NotChecked("it is not here"))(None))
    lines = tuple(inspect(submission(store)))
    found = Inspection(lines=lines, networks=False)
    assert found.verdict == "no" and not found.faults
    assert found.missing == ["data, split, and images that were evaluated: not checked: it is not here"]
    monkeypatch.setattr(data, "read_data", lambda *_: raising(RecursionError("deep"))(None))
    assert "cannot be checked: deep" in Inspection(lines=tuple(inspect(submission(store))), networks=False).faults[0]


def test_a_damaged_archive_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(BenchError, match="cannot restore") as caught, unpacked(tmp_path / "x.tar.gz"):
        pass
    assert len(str(caught.value).splitlines()) == 1
