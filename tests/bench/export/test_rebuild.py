"""Rebuilding of networks: exactly what was recorded, or a refusal that says what to type."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.export.rebuild import check_rebuilt, rebuild
from bench.store.files import Store, write_checked


def test_a_rebuilt_network_has_exactly_the_recorded_accuracy_and_loss(digits_study: Any) -> None:
    for unit in digits_study.plan.runs:
        run = rebuild(digits_study.store, unit.identity)
        evaluation = check_rebuilt(run)
        recorded = run.record["metrics"]
        assert (evaluation.top1, evaluation.loss) == (recorded["top1"], recorded["loss"])
    assert digits_study.record("fixed 0")["metrics"]["top1"] > 50


def test_records_name_the_quantizer(finished: Any) -> None:
    for unit in finished.plan.runs:
        record = finished.store.record("runs", unit.identity)
        assert record["quantizer"] == "bench.compression.quantizer.UniformQuantizer"
        assert record["normalized_weights"] is True


def test_own_quantizers_are_rebuilt_too(own_study: Any) -> None:
    run = rebuild(own_study.store, own_study.plan.runs[0].identity)
    assert run.record["quantizer"] == "methods.dnas.dorefa_pact"
    assert check_rebuilt(run).loss == run.record["metrics"]["loss"]


@pytest.fixture
def altered(digits_study: Any, tmp_path: Path) -> Any:
    """A function that changes the record of a run in a copy of the study, and returns the store and the run's id."""
    import shutil

    store = Store(Path(shutil.copytree(digits_study.store.root, tmp_path / "a store")))
    identity = digits_study.plan.runs[0].identity

    def change(**values: Any) -> tuple[Store, str]:
        record = {**(store.record("runs", identity) or {}), **values}
        record = {key: value for key, value in record.items() if value is not ...}
        write_checked(store.unit("runs", identity) / "record.json", record)
        return store, identity

    return change


def test_weights_that_are_wrongly_taken_as_standardised_are_noticed(altered: Any) -> None:
    run = rebuild(*altered(normalized_weights=False))
    with pytest.raises(BenchError, match="was recorded; check that data and model are those of the run"):
        check_rebuilt(run)


@pytest.mark.parametrize("missing", ["normalized_weights", "quantizer"])
def test_runs_made_before_are_refused_with_the_command_that_repeats_them(altered: Any, missing: str) -> None:
    store, identity = altered(**{missing: ...})
    with pytest.raises(BenchError, match="made before runs recorded how their weights are quantized") as caught:
        rebuild(store, identity)
    command = str(caught.value).partition("repeat it: ")[2]
    folder = str(store.unit("runs", identity))
    assert shlex.split(command)[:4] == ["mv", folder, f"{folder}.stale-0", "&&"]
    assert "bench" in shlex.split(command)[4]


def test_what_cannot_be_rebuilt_is_refused(altered: Any) -> None:
    with pytest.raises(BenchError, match="ended as 'failed', so it has no network"):
        rebuild(*altered(status="failed"))
    with pytest.raises(BenchError, match=r"was quantized by methods\.other\.Quantizer"):
        rebuild(*altered(status="done", quantizer="methods.other.Quantizer"))
    store, identity = altered(quantizer="bench.compression.quantizer.UniformQuantizer")
    (store.unit("runs", identity) / "network.pt").write_bytes(b"")
    with pytest.raises(BenchError, match=r"is damaged: network.pt is damaged; repeat it: mv "):
        rebuild(store, identity)
