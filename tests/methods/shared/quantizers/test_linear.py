"""Thresholds of least divergence against a slow search, and the levels and gradients of linear quantizers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.shared.quantizers.linear import LinearWeight, RangedActivation, divergence_threshold, threshold_of


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- thresholds ---------------------------------------------------------------------------------------------------


def slow_divergence_threshold(sizes: list[float], bits: int) -> float:
    """Bin by bin, for every number of bins that is kept."""
    bins, nodes, most = int(np.ceil(len(sizes) ** 0.5)), 2 ** (bits - 1), max(sizes)
    counts = [0] * bins
    for size in sizes:
        counts[min(int(size / most * bins), bins - 1)] += 1
    exact = [sum(counts[: index + 1]) / len(sizes) for index in range(bins)]
    best = (float("inf"), 0.0)
    for kept in range(nodes + 1, bins + 1):
        clipped = [*exact[: kept - 1], *[1.0] * (bins - kept + 1)]

        def at(position: float, values: list[float]) -> float:
            below = min(int(position + 1e-9), len(values) - 2)
            return values[below] + (position - below) * (values[below + 1] - values[below])

        knots = [at(knot * (kept - 1) / (nodes - 1), clipped[:kept]) for knot in range(nodes)]
        coarse = [at(index * (nodes - 1) / (kept - 1), knots) for index in range(kept)] + clipped[kept:]
        pairs = [(max(c, 1e-12), max(q, 1e-12)) for c, q in zip(exact, coarse, strict=True)]
        divergence = sum((c - q) * np.log2(c / q) for c, q in pairs)
        if divergence < best[0] - 1e-12:
            best = (divergence, (kept + 0.5) * most / bins)
    return best[1]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", ["normal", "uniform", "half empty", "outlier", "away from zero"])
def test_a_threshold_is_that_of_a_slow_search(bits: int, kind: str) -> None:
    x = drawn(900, seed=3).abs()
    made = {
        "normal": x,
        "uniform": torch.rand(900, generator=torch.Generator().manual_seed(0)),
        "half empty": (x - 0.7).relu(),
        "outlier": torch.cat([x, torch.tensor([40.0])]),
        "away from zero": x + 5,
    }[kind]
    sizes = made.double().numpy()
    found = divergence_threshold(sizes, bits)
    assert found == pytest.approx(slow_divergence_threshold(sizes.tolist(), bits))
    if kind == "outlier" and bits == 2:
        assert 1 < found < 10  # it is clipped


def test_from_five_bits_on_and_for_few_values_it_is_the_largest() -> None:
    x = drawn(1000)
    assert threshold_of(x, 5) == threshold_of(x, 8) == float(x.abs().max())
    assert threshold_of(x, 4) < float(x.abs().max())
    assert threshold_of(drawn(60), 4) == pytest.approx(float(drawn(60).abs().max()))  # 8 bins for 8 nodes
    assert threshold_of(torch.zeros(10), 2) == 0


def test_activations_have_at_most_a_range_of_six_and_of_their_largest() -> None:
    quantizer = RangedActivation(8)
    quantizer.calibrate(torch.tensor([0.0, 9.0]))
    assert quantizer.clip.item() == 6
    quantizer.calibrate(torch.tensor([0.0, 2.5]))
    assert quantizer.clip.item() == 2.5
    low = RangedActivation(2)
    x = drawn(1000).relu()
    low.calibrate(x)
    assert low.clip.item() == pytest.approx(threshold_of(x, 2))
    assert low.clip.item() < float(x.max())


# --- quantizers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "levels"), [(2, 3), (3, 7), (4, 15), (8, 255)])
def test_weights_have_a_level_at_zero_and_as_many_on_both_sides(bits: int, levels: int) -> None:
    quantizer = LinearWeight(bits)
    quantizer.threshold.fill_(0.7)
    found = quantizer(torch.cat([torch.linspace(-1, 1, 40_001), drawn(10_000)])).unique()
    half = levels // 2
    assert found.tolist() == pytest.approx([0.7 * code / half for code in range(-half, half + 1)], abs=1e-6)


@pytest.mark.parametrize(("bits", "levels"), [(1, 2), (2, 4), (4, 16)])
def test_activations_have_all_levels_from_zero(bits: int, levels: int) -> None:
    quantizer = RangedActivation(bits)
    quantizer.clip.data.fill_(1.5)
    found = quantizer(torch.linspace(-1, 3, 40_001)).detach().unique()
    assert found.tolist() == pytest.approx([1.5 * code / (levels - 1) for code in range(levels)], abs=1e-6)


def test_gradients_pass_all_weights_and_the_range_learns_from_what_it_clips() -> None:
    weight = torch.tensor([-3.0, -0.2, 0.4, 3.0], requires_grad=True)
    upstream = torch.tensor([1.0, 2.0, 3.0, 4.0])
    quantizer = LinearWeight(2)
    (quantizer(weight) * upstream).sum().backward()
    assert torch.equal(weight.grad, upstream)
    assert list(quantizer.parameters()) == []
    x, ranged = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True), RangedActivation(4)
    (ranged(x) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [0, 2, 0]
    assert float(ranged.clip.grad) == 3


def test_one_bit_has_no_symmetric_form() -> None:
    with pytest.raises(ValueError, match="give at least 2 bits"):
        LinearWeight(1)
