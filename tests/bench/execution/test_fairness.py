"""No method starts its fine-tuning at a disadvantage that the harness made."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.mark.parametrize("method", ["fixed", "full_precision"])
def test_a_network_of_many_bits_keeps_its_accuracy_when_fine_tuning_does_nothing(
    tiny: SimpleNamespace, tmp_path: Path, method: str
) -> None:
    changes: dict[str, Any] = {
        "methods": [method],
        "budgets": ["8bit"],
        "seeds": [0],
        "task": {"train_images": 320},
        "pretrain": {"epochs": 4, "batch_size": 32, "lr": 0.05},
        "finetune": {"epochs": 1, "batch_size": 320, "lr": 1e-12},
    }
    shop = tiny.Workshop(tiny.spec(changes), tmp_path)
    shop.run(shop.plan.pretrainings[0])
    shop.run(shop.plan.runs[0])
    record = shop.record(shop.plan.runs[0])
    assert record["status"] == "done", record
    # One update of nothing: only clip values, weights' scale and norm statistics differ from the pretrained network.
    pretrained = record["metrics"]["pretrained_top1"]
    assert pretrained > 60
    assert record["metrics"]["validation_top1"] > pretrained - 5


TRAINED = ("training_images", "architecture_images")


def worked(tiny: SimpleNamespace, folder: Path, allowance: str) -> dict[str, dict[str, Any]]:
    """Run methods that train in their search, and others that do not; return their records by name."""
    changes: dict[str, Any] = {
        "methods": ["sbs_q", "dnas", "random", "hawq", "greedy", "fixed", "full_precision"],
        "options": {"hawq": {"draws": 2, "images": 16}, "greedy": {"batches": 1}},
        "seeds": [0],
        "allowance": allowance,
        "search": {"epochs": 2, "batch_size": 32},
        "finetune": {"epochs": 3, "batch_size": 16, "lr": 0.05, "decay": "step", "milestones": [1]},
        "tuning": {"trials": 1},
    }
    work = tiny.work(tiny.spec(changes), folder)
    return {name: work.record(f"{name} 0") for name in changes["methods"]}


def test_every_network_sees_the_same_number_of_updates(tiny: SimpleNamespace, tmp_path: Path) -> None:
    records = worked(tiny, tmp_path, "equal")
    # 2 epochs of 3 batches of 32 and 3 of 6 batches of 16; other methods make up for the search.
    assert {record["metrics"]["trained_updates"] for record in records.values()} == {2 * 3 + 3 * 6}
    logits = records["dnas"]["data_use"]["search"]["architecture_batches"]  # weights learn nothing from these
    assert 1 <= logits <= 2
    searched = {"sbs_q": 6, "dnas": 6 - logits}
    for name, record in records.items():
        use = record["data_use"]
        assert use["finetune"]["training_batches"] == 24 - searched.get(name, 0), name
        assert use["search"].get("training_batches", 0) == searched.get(name, 0), name
        assert record["metrics"]["training_images"] == sum(
            images for phase in use.values() for what, images in phase.items() if what in TRAINED
        )
    assert records["fixed"]["metrics"]["evaluated_images"] == 0
    validation = records["dnas"]["metrics"]["evaluated_images"]  # the accuracy at the start of its search
    assert validation == records["sbs_q"]["metrics"]["evaluated_images"] == 100


def test_only_the_policy_is_handed_on_where_a_study_asks_for_it(tiny: SimpleNamespace, tmp_path: Path) -> None:
    records = worked(tiny, tmp_path, "policy")
    assert {record["metrics"]["trained_updates"] for record in records.values()} == {3 * 6}


def test_papers_count_the_search_in_addition(tiny: SimpleNamespace, tmp_path: Path) -> None:
    records = worked(tiny, tmp_path, "unequal")
    updates = {name: record["metrics"]["trained_updates"] for name, record in records.items()}
    logits = records["dnas"]["data_use"]["search"]["architecture_batches"]
    assert (updates["sbs_q"], updates["dnas"]) == (24, 24 - logits)
    assert {updates[name] for name in ("random", "hawq", "greedy", "fixed", "full_precision")} == {18}
