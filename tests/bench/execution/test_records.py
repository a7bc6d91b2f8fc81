"""Records of units: what they say from the start, and whether the outcome that they tell of stands."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.execution.records import archive_stale, close, new_record, now, recorded_outcome, valid_result
from bench.planning.units import kind_of, method_name, trial_of
from bench.plugins.registry import source_hash
from bench.store import staleness
from bench.store.files import read_checked
from bench.store.outcomes import RETRIABLE, Outcome


@pytest.fixture
def shop(tiny: SimpleNamespace, copied: Path) -> Any:
    """A copy of the finished study."""
    return tiny.Workshop(tiny.spec(), copied)


@pytest.fixture
def units(shop: Any) -> dict[str, Any]:
    """One unit of each kind."""
    tuning = shop.plan.tunings[0]
    trial = trial_of(tuning, 1, shop.store.record("trials", f"{tuning.identity}-1")["knobs"])
    return {"pretrained": shop.plan.pretrainings[0], "tuning": tuning, "trials": trial, "runs": shop.plan.runs[0]}


def validity(shop: Any, unit: Any, retry: frozenset[Any] = frozenset()) -> tuple[bool, str | None]:
    return valid_result(shop.store, unit, shop.study_run.data_checksum, retry)


KINDS = ["pretrained", "tuning", "trials", "runs"]


# --- what a record says from the start ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_record_says_what_the_unit_is_and_what_it_is_made_with(
    shop: Any, units: dict[str, Any], kind: str
) -> None:
    unit = units[kind]
    record = new_record(unit, "checksum", None)
    assert (record["id"], record["kind"]) == (unit.identity, {"runs": "run", "trials": "trial"}.get(kind, kind))
    assert (record["status"], record["reason"], record["attempt"], record["files"]) == ("running", None, 1, {})
    assert (record["model"], record["dataset"], record["seed"]) == ("resnet8", "synthetic", unit.seed)
    assert datetime.fromisoformat(record["started"]).tzinfo is not None and record["finished"] is None
    assert record["fingerprint"] == staleness.fingerprint(
        None if kind == "pretrained" else "sbs", "checksum", "resnet8"
    )
    assert record["hardware"]["device"] == "cpu" and "torch" in record["versions"]
    if kind == "pretrained":
        assert "method" not in record
    else:
        assert (record["method"], record["budget"], record["match"]) == ("sbs", "4bit", "hinge")
        assert record["options"]["group_size"] == 4
        assert record["knobs"] == (dict(unit.knobs) if kind == "trials" else None)
    assert ("within_budget" in record) == (kind == "runs")


def test_attempts_are_counted(shop: Any, units: dict[str, Any]) -> None:
    first = new_record(units["runs"], "checksum", None)
    second = new_record(units["runs"], "checksum", first | {"status": "killed", "metrics": {"top1": 3}})
    assert (second["attempt"], second["status"], second["metrics"]) == (2, "running", {})


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(status="done"),
        Outcome(status="timeout", reason="not done after 3 s"),
        Outcome(status="unreachable", reason="too dear", nearest=2.5),
    ],
    ids=lambda outcome: outcome.status,
)
def test_an_outcome_goes_into_the_record_and_comes_out_again(outcome: Outcome) -> None:
    record: dict[str, Any] = {"status": "running", "finished": None}
    close(record, outcome)
    assert recorded_outcome(record) == outcome
    assert record["reason"] == (outcome.reason or None)
    assert datetime.fromisoformat(record["finished"]) <= datetime.fromisoformat(now())


def test_without_a_record_no_outcome_was_stated() -> None:
    assert recorded_outcome(None).status == "running"


def test_the_method_of_a_unit(units: dict[str, Any]) -> None:
    assert {kind: method_name(unit) for kind, unit in units.items()} == {
        "pretrained": None,
        "tuning": "sbs",
        "trials": "sbs",
        "runs": "sbs",
    }


# --- what is valid ---


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_done_is_valid_until_what_it_depends_on_changes(
    shop: Any, units: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = units[kind]
    assert validity(shop, unit) == validity(shop, unit, RETRIABLE) == (True, None)
    assert valid_result(shop.store, unit, "other data") == (False, "data changed")
    with monkeypatch.context() as patch:
        patch.setattr(staleness, "COUNTER_VERSION", staleness.COUNTER_VERSION + 1)
        assert validity(shop, unit) == (False, "cost counter changed")
    with monkeypatch.context() as patch:
        patch.setattr(staleness, "source_hash", partial(_changed, "methods"))
        assert validity(shop, unit) == ((True, None) if kind == "pretrained" else (False, "method source changed"))
    with monkeypatch.context() as patch:
        patch.setattr(staleness, "source_hash", partial(_changed, "models"))
        assert validity(shop, unit) == (False, "model source changed")


def _changed(changed: str, kind: Any, name: str) -> str:
    return "another" if kind == changed else source_hash(kind, name)


FILES = [
    ("pretrained", "model.pt"),
    ("pretrained", "curves.json"),
    ("trials", "trial.json"),
    *(("runs", name) for name in ("policy.json", "raw_policy.json", "curves.json", "search.json", "network.pt")),
]


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_every_damage_of_every_file_is_noticed(shop: Any, units: dict[str, Any], kind: str, name: str) -> None:
    unit = units[kind]
    assert name in shop.record(unit)["files"]
    file = shop.folder(unit) / name
    content = file.read_bytes()
    middle = len(content) // 2
    for damaged in (b"", content[:-1], content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]):
        file.write_bytes(damaged)
        assert validity(shop, unit) == (False, f"{name} is damaged")
    file.unlink()
    assert validity(shop, unit) == (False, f"{name} is missing")
    file.write_bytes(content)
    assert validity(shop, unit) == (True, None)


def test_no_file_of_a_finished_unit_is_unlisted(shop: Any, units: dict[str, Any]) -> None:
    for kind, unit in units.items():
        files = {path.name for path in shop.folder(unit).iterdir() if path.is_file()} - {"spec.json", "record.json"}
        assert files == shop.record(unit)["files"].keys() == {name for of, name in FILES if of == kind}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change", [lambda text: text[:-20], lambda text: text.replace('"done"', '"failed"'), lambda _: "null"]
)
def test_a_damaged_record_is_not_valid(
    shop: Any, units: dict[str, Any], kind: str, change: Callable[[str], str]
) -> None:
    file = shop.folder(units[kind]) / "record.json"
    file.write_text(change(file.read_text()))
    assert validity(shop, units[kind]) == (False, "its record is damaged")
    file.unlink()
    assert validity(shop, units[kind]) == (False, None)


@pytest.mark.parametrize("status", sorted(RETRIABLE))
def test_a_failure_is_valid_until_it_is_named_or_something_changes(
    shop: Any, units: dict[str, Any], status: Any
) -> None:
    unit = units["runs"]
    shop.store.write_record("runs", unit.identity, shop.record(unit) | {"status": status})
    (shop.folder(unit) / "network.pt").unlink()  # a failure need not have left anything
    assert validity(shop, unit) == (True, None)
    assert validity(shop, unit, RETRIABLE - {status}) == (True, None)
    assert validity(shop, unit, frozenset({status})) == (False, None)
    assert valid_result(shop.store, unit, "other data") == (False, "data changed")


@pytest.mark.parametrize("status", ["running", "killed", "interrupted", "skipped"])
def test_what_says_nothing_of_the_unit_is_not_valid_and_is_not_archived(
    shop: Any, units: dict[str, Any], status: str
) -> None:
    unit = units["runs"]
    shop.store.write_record("runs", unit.identity, shop.record(unit) | {"status": status})
    assert validity(shop, unit) == (False, None)


def test_what_is_archived_keeps_everything_and_is_numbered(shop: Any, units: dict[str, Any]) -> None:
    for kind, unit in units.items():
        folder = shop.folder(unit)
        for number in (1, 2):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "mark").write_text(f"{kind} {number}")
            archive_stale(shop.store, unit)
            assert not folder.exists()
            assert (folder.with_name(f"{folder.name}.stale-{number}") / "mark").read_text() == f"{kind} {number}"
            if kind == "tuning" and number == 1:  # its trials go with it
                aside = folder.with_name(f"{folder.name}.stale-1")
                assert read_checked(aside / "trials" / "0" / "record.json") is not None
        assert shop.store.record(kind_of(unit), unit.identity) is None
