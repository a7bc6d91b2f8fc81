"""Models are checked where their shapes are found: before a plan, and so before anything is trained."""

import pytest
from torch import nn

from bench.errors import BenchError
from bench.planning import networks
from tests.kinds_of_networks import Base, InAList


def test_a_model_that_cannot_be_compressed_has_no_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    model = InAList()
    model.head = nn.Linear(8, 100)
    monkeypatch.setattr(networks, "build_model", lambda *_: model)
    with pytest.raises(BenchError, match="layer 'second' of model 'in a list' runs 0 times"):
        networks.model_shape("in a list", "cifar100")


def test_the_number_of_logits_is_that_of_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "build_model", lambda *_: Base())
    with pytest.raises(BenchError, match=r"shape \(2, 4\) for 2 images; .*logits of shape \(2, 100\)"):
        networks.model_shape("four classes", "cifar100")
