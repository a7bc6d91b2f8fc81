"""The quantizer with a learned step, range and exponent: bits and steps, first values, and its linear form."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from bench.compression.kernels import Kind
from methods.djpq import Djpq, DjpqOptions
from methods.geta import Geta, GetaOptions
from methods.shared.quantizers.companded import CompandedQuantizer
from methods.shared.quantizers.learned_range import levels_of


def values(seed: int = 0) -> Tensor:
    return torch.randn(500, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_steps_of_bits_and_bits_of_steps_are_inverse(kind: Kind) -> None:
    for bits in (2.0, 3.3, 5.0, 7.9):
        for power in (0.01, 0.7, 12.0):
            step = power / float(levels_of(torch.tensor(bits).double(), torch.tensor(kind == "weight")))
            assert math.log2(power / step + 1) + (kind == "weight") == pytest.approx(bits)


@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_the_first_range_of_the_paper_is_the_largest_value(kind: Kind) -> None:
    x = values() if kind == "weight" else values().abs()
    paper, best = (
        CompandedQuantizer(bits=3, kind=kind, searching=True, clip_init=init) for init in ("paper", "calibrated")
    )
    for quantizer in (paper, best):
        quantizer.calibrate(x)
    levels = 3 if kind == "weight" else 7
    assert paper.clip_range.item() == pytest.approx(float(x.abs().max()))
    assert paper.clip_step.item() == pytest.approx(float(x.abs().max()) / levels)
    with torch.no_grad():
        assert float((best(x) - x).square().mean()) < float((paper(x) - x).square().mean())


@pytest.mark.parametrize(
    ("make", "linear"),
    [
        (Djpq(DjpqOptions(exponent="linear")).quantizer, True),
        (Djpq().quantizer, False),
        (Geta().quantizer, True),
        (Geta(GetaOptions(exponent="learned")).quantizer, False),
        (partial(CompandedQuantizer, searching=True, linear=True), True),
    ],
)
def test_the_linear_quantizer_stays_linear(make: object, linear: bool) -> None:
    """In the search and in fine-tuning with the own recipe."""
    others = {} if isinstance(make, partial) and make.func is CompandedQuantizer else {"normalized": False}
    quantizer = make(bits=3, kind="weight", **others)  # type: ignore[operator]
    quantizer.calibrate(values())
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    quantizer(values(1)).square().sum().backward()
    optimizer.step()
    assert (quantizer.clip_exponent.item() == 1) == linear
    assert quantizer.clip_range.grad is not None


def test_the_linear_form_is_that_of_an_exponent_of_one() -> None:
    x = values()
    for searching in (False, True):
        linear, learned = (
            CompandedQuantizer(bits=3, kind="weight", searching=searching, linear=linear) for linear in (True, False)
        )
        for quantizer in (linear, learned):
            quantizer.calibrate(x)
        assert torch.equal(linear(x), learned(x))
