"""The count of multiplications agrees with PyTorch's own counter, and says in which module they are."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.compression.operations import count_multiplications
from bench.models.resnet import resnet8
from tests.kinds_of_networks import CLASSES, IMAGE, Attends, ByFunction, FusedAttention, shifted_windows

MODELS = {"layers": lambda: resnet8(3, CLASSES), "functions": ByFunction, "attention": Attends, "fused": FusedAttention}
MODELS["windows"] = shifted_windows


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_all_multiplications_are_counted(make: type[nn.Module]) -> None:
    model, image = make().eval(), torch.zeros(1, *IMAGE)
    reference = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), reference:
        model(image)
    expected = {str(name).removeprefix("aten."): flops // 2 for name, flops in reference.flop_counts["Global"].items()}
    counts = Counter[str]()
    for own in count_multiplications(model, image).values():
        counts.update(own)
    assert counts == expected


def test_they_are_those_of_the_innermost_module() -> None:
    inner = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    counts = count_multiplications(nn.Sequential(inner, nn.Linear(5, 2)).eval(), torch.zeros(1, 3))
    assert counts == {"0.0": {"addmm": 12}, "0.1": {"addmm": 20}, "1": {"addmm": 10}}


def test_no_hook_stays() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    count_multiplications(model.eval(), torch.zeros(1, 3))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
