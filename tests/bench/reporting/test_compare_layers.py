"""Differences of policies, layer by layer."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.reporting import compare_layers
from bench.reporting.compare_views import to_json, verdicts
from bench.store.files import write_json
from tests.bench.reporting.comparing import FIXED, SBS, compared, two_methods


def with_policy(fake: SimpleNamespace, identity: str, layers: Mapping[str, Any], filters: Mapping[str, int]) -> None:
    entries = {
        name: dict(zip(("weight_bits", "activation_bits", "kept_filters"), entry, strict=True))
        for name, entry in layers.items()
    }
    folder = fake.store.unit("runs", identity)
    write_json(folder / "policy.json", {"model": "resnet8", "dataset": "digits", "layers": entries})
    record = fake.store.record("runs", identity)
    fake.store.write_record("runs", identity, record | {"filters": dict(filters)})


@pytest.fixture
def layered(tmp_path: Path) -> SimpleNamespace:
    fake = two_methods(tmp_path, SBS[:2], FIXED[:2])
    filters = {"stem": 16, "block": 8}
    with_policy(fake, "sbs-4bit-0", {"stem": (8, 8, None), "block": (4, 2, [0, 1, 2, 3, 5, 7])}, filters)
    with_policy(fake, "sbs-4bit-1", {"stem": (8, 8, None), "block": (5, 4, None)}, filters)
    for seed in (0, 1):
        with_policy(fake, f"fixed-4bit-{seed}", {"stem": (8, 8, None), "block": (4, 4, None)}, filters)
    return fake


def test_layers_are_averaged_over_the_seeds(layered: SimpleNamespace) -> None:
    (found,) = compare_layers.tables(compared(layered, "sbs", "fixed"))
    assert [column.title for column in found.columns] == ["Layer", "w bits", "a bits", "filters %"]
    assert found.rows == (("block", "4.5 → 4", "3 → 4", "87.5 → 100"),)
    assert "Layers that differ: 1 of the 2 that both have; `--all` shows the others" in found.notes
    assert "Means over the policies of 2 runs of A and 2 runs of B" in found.notes


def test_layers_of_single_runs_are_their_values(layered: SimpleNamespace) -> None:
    (found,) = compare_layers.tables(compared(layered, "sbs-4bit-0", "fixed-4bit-1"), every=True)
    assert found.rows == (("stem", "8", "8", "100"), ("block", "4", "2 → 4", "75 → 100"))
    assert "Layers that differ: 1 of the 2 that both have" in found.notes


def test_missing_and_broken_policies_are_counted(layered: SimpleNamespace) -> None:
    (layered.store.unit("runs", "sbs-4bit-0") / "policy.json").unlink()
    (layered.store.unit("runs", "fixed-4bit-0") / "policy.json").write_text("{")
    (layered.store.unit("runs", "fixed-4bit-1") / "policy.json").unlink()
    found = compared(layered, "sbs", "fixed")
    (shown,) = compare_layers.tables(found)
    assert shown.rows[1] == ("block", "5 → ?", "4 → ?", "100 → ?")
    assert "A: 1 run without a readable policy left out" in shown.notes
    assert "B: 2 runs without a readable policy left out" in shown.notes
    sides = compare_layers.to_json(found)[0]
    assert (sides["first"]["policies"], sides["second"]["missing"], sides["second"]["layers"]) == (1, 2, {})


def test_a_share_of_filters_that_was_not_recorded_is_left_out(layered: SimpleNamespace) -> None:
    with_policy(layered, "sbs-4bit-0", {"stem": (8, 8, None), "block": (4, 2, [0, 1])}, {})
    found = compared(layered, "sbs", "fixed")
    (shown,) = compare_layers.tables(found)
    assert [row[3] for row in shown.rows] == ["? → 100"]
    assert any(note.startswith("A: a run does not record how many filters") for note in shown.notes)
    assert compare_layers.to_json(found)[0]["first"]["layers"]["block"]["kept"] is None


def test_layers_that_only_one_network_has(layered: SimpleNamespace) -> None:
    for seed in (0, 1):
        with_policy(layered, f"fixed-4bit-{seed}", {"stem": (8, 8, None), "other": (4, 4, None)}, {})
    (shown,) = compare_layers.tables(compared(layered, "sbs", "fixed"), every=True)
    assert [row[0] for row in shown.rows] == ["stem", "block", "other"]
    assert shown.rows[2] == ("other", "? → 4", "? → 4", "? → 100")
    assert "Layers that differ: 0 of the 1 that both have" in shown.notes


def test_each_budget_has_its_layers(budgets: SimpleNamespace) -> None:
    titles = [shown.title for shown in compare_layers.tables(compared(budgets, "sbs", "fixed"))]
    assert titles == ["Policies, layer by layer at 4bit", "Policies, layer by layer at 2bit"]


def test_json_holds_all_figures_and_no_nan(layered: SimpleNamespace) -> None:
    layered.failed("sbs", 4, "NaN loss")
    found = compared(layered, "sbs", "fixed")
    document = json.loads(json.dumps(to_json(found) | {"layers": compare_layers.to_json(found)}, allow_nan=False))
    assert document["first"]["left_out"] == {"failed": 1}
    assert document["lines"][0]["seeds"] == [0, 1] and document["lines"][0]["p"] is None
    assert document["layers"][0]["second"]["layers"]["block"] == {"weight_bits": 4, "activation_bits": 4, "kept": 1}
    assert document["verdicts"] == verdicts(found)
