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
