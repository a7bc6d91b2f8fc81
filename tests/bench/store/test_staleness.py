"""What makes a result stale, and what does not."""

import sys
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.plugins.registry import _source_hash, source_hash
from bench.store.staleness import COUNTER_VERSION, PROTOCOL_VERSION, changes, fingerprint, why_stale

DATA = "d" * 64


def test_a_result_depends_on_its_method_the_data_and_the_counter() -> None:
    assert fingerprint("sbs", DATA) == {
        "cost_counter": COUNTER_VERSION,
        "data_checksum": DATA,
        "method_source": source_hash("methods", "sbs"),
        "protocol": PROTOCOL_VERSION,
    }
    assert fingerprint(None, DATA) == {"cost_counter": COUNTER_VERSION, "data_checksum": DATA}
    assert fingerprint(None, None) == {"cost_counter": COUNTER_VERSION}
    with pytest.raises(BenchError, match="unknown method 'sbss'"):
        fingerprint("sbss", DATA)


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ({}, None),
        ({"data_checksum": "e" * 64}, "data changed"),
        ({"cost_counter": COUNTER_VERSION - 1}, "cost counter changed"),
        ({"method_source": "syntax-1:another"}, "method source changed"),
        ({"method_source": None}, "method source changed"),
        ({"protocol": PROTOCOL_VERSION - 1}, "protocol of the harness changed"),
        ({"protocol": None}, "protocol of the harness changed"),
        ({"data_checksum": "e" * 64, "method_source": "syntax-1:another"}, "data and method source changed"),
        ({"something else": 1}, None),
        (
            {"method_source": "0123"},
            "made by an earlier version of the harness, which identified method sources differently",
        ),
        (
            {"method_source": "0123", "data_checksum": "e" * 64},
            "data changed; made by an earlier version of the harness, which identified method sources differently",
        ),
    ],
    ids=str,
)
def test_what_changed_is_named(then: dict[str, object], reason: str | None) -> None:
    now = fingerprint("sbs", DATA)
    assert changes({"fingerprint": {**now, **then}}, now) == reason


@pytest.mark.parametrize("record", [{}, {"fingerprint": None}, {"fingerprint": {}}])
def test_a_record_without_a_fingerprint_is_stale(record: dict[str, object]) -> None:
    assert changes(record, fingerprint(None, DATA)) == "cost counter and data changed"


@pytest.mark.parametrize("status", ["done", "unreachable", "failed", "running"])
def test_only_results_are_stale(status: str) -> None:
    record = {"status": status, "method": "sbs", "model": "resnet8", "fingerprint": fingerprint("sbs", DATA, "resnet8")}
    assert why_stale(record, {"data_checksum": DATA}) is None
    expected = "data changed" if status in ("done", "unreachable") else None
    assert why_stale(record, {"data_checksum": "e" * 64}) == expected


def test_a_result_of_a_method_that_is_not_installed_is_stale() -> None:
    record = {"status": "done", "method": "nowhere", "model": "resnet8", "fingerprint": fingerprint(None, DATA)}
    assert why_stale(record, {"data_checksum": DATA}) == "unknown method 'nowhere'"


def test_what_is_not_known_now_is_not_compared() -> None:
    then = {"fingerprint": fingerprint("sbs", DATA)}
    assert changes(then, fingerprint("sbs", None)) is None
    assert changes(then, fingerprint(None, None)) is None


def test_a_changed_building_block_makes_stale_who_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    from bench.plugins import registry as plugins

    then = {name: {"fingerprint": fingerprint(name, DATA)} for name in ("sbs", "dnas", "fixed", "full_precision")}
    original = Path.read_bytes

    def changed(path: Path) -> bytes:
        return original(path) + (b"\nchanged = 1" if path.parts[-2:] == ("shared", "search.py") else b"")

    monkeypatch.setattr(Path, "read_bytes", changed)
    plugins._source_hash.cache_clear()
    try:
        found = {name: changes(record, fingerprint(name, DATA)) for name, record in then.items()}
    finally:
        monkeypatch.undo()
        plugins._source_hash.cache_clear()
    stale = "method source changed"
    assert found == {"sbs": stale, "dnas": stale, "fixed": None, "full_precision": None}
    assert all(changes(record, fingerprint(name, DATA)) is None for name, record in then.items())


def test_a_model_s_source_counts_and_a_user_s_is_found_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "own_networks.py"
    module.write_text("def make(in_channels, num_classes): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    then = fingerprint(None, DATA, "own_networks:make")
    assert then["model_source"] != fingerprint(None, DATA, "resnet20")["model_source"]
    assert changes({"fingerprint": then}, fingerprint(None, DATA, "own_networks:make")) is None
    module.write_text("def make(in_channels, num_classes): return None\n")
    _source_hash.cache_clear()
    assert changes({"fingerprint": then}, fingerprint(None, DATA, "own_networks:make")) == "model source changed"
    with pytest.raises(BenchError, match="nowhere_to_be_found, cannot be found from here"):
        fingerprint(None, DATA, "nowhere_to_be_found:make")
