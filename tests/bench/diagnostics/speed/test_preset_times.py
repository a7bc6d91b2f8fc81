"""Rough durations of presets: their parts, and their growth with the work."""

from types import SimpleNamespace
from typing import Any

import pytest

from bench.diagnostics.speed.preset_times import _training_seconds, seconds
from bench.planning.networks import model_shape
from bench.plugins.registry import load
from bench.spec.schema import SearchSchedule


def test_the_reference_step_costs_what_was_measured() -> None:
    """ResNet-20, batches of 128: 209 ms, and 9 ms for its 22 layers."""
    shape = model_shape("resnet20", "cifar100")
    assert _training_seconds(shape, SearchSchedule(epochs=1, batch_size=128), 128) == pytest.approx(0.218, abs=0.005)


def test_time_follows_the_work(tiny: SimpleNamespace) -> None:
    def time(**changes: Any) -> float:
        found = seconds(tiny.spec({"methods": ["fixed"], "seeds": [0], **changes}))
        assert found is not None
        return found

    pretrain, finetune = {"pretrain": {"epochs": 4}}, {"finetune": {"epochs": 6}}
    one = time(**pretrain, **finetune)
    assert time(**pretrain, **finetune, seeds=[0, 1]) == pytest.approx(2 * one)
    more = time(pretrain={"epochs": 8}, **finetune) - one  # four epochs of plain training
    assert time(**pretrain, finetune={"epochs": 10}) - one == pytest.approx(1.4 * more)
    assert time(task={"init": "scratch"}, **finetune) == pytest.approx(one - more)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_data_sets_know_how_many_images_they_have(name: str) -> None:
    kind = load("datasets", name)
    assert len(kind().load(None).train_images) == kind.training_images


def test_without_that_number_no_time_is_claimed(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny.spec({"methods": ["fixed"]}, {"task": {"train_images": None}})
    assert seconds(spec) is not None
    monkeypatch.setattr(load("datasets", spec.task.dataset), "training_images", None)
    assert seconds(spec) is None
