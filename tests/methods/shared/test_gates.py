import math
from collections.abc import Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from methods.shared.gates import FilterGroups, gate, opened, surrogate_slope

CPU = torch.device("cpu")
CHAINS = [(4,), (2, 4), (2, 4, 8), (3, 6, 12), (1, 2, 4, 8)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slope(x: float) -> float:
    """The sigmoid's derivative by a central difference."""
    h = 1e-4
    return (sigmoid(x + h) - sigmoid(x - h)) / (2 * h)


# --- the step function ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("metric", "threshold", "opened"),
    [
        (0.2, 0.1, 1),
        (0.1, 0.2, 0),
        (0.1, 0.1, 1),
        (0.0, 0.0, 1),
        (0.3, -math.inf, 1),
        (0.3, math.inf, 0),
    ],
)
def test_gate_opens_where_the_metric_reaches_its_threshold(
    metric: float, threshold: float, opened: float, dtype: torch.dtype
) -> None:
    found = gate(torch.tensor(metric, dtype=dtype), torch.tensor(threshold, dtype=dtype))
    assert float(found) == opened
    assert found.dtype == dtype


def test_the_least_excess_decides() -> None:
    threshold = torch.tensor(0.1)
    below, above = (torch.nextafter(threshold, torch.tensor(end)) for end in (0.0, 1.0))
    assert gate(torch.stack([below, threshold, above]), threshold).tolist() == [0, 1, 1]


@pytest.mark.parametrize("excess", [-3.0, -0.05, 0.0, 0.07, 2.0])
def test_slope_is_the_sigmoids(excess: float) -> None:
    found = float(surrogate_slope(torch.tensor(excess, dtype=torch.float64)))
    assert found == pytest.approx(slope(excess), rel=1e-7)
    assert found == pytest.approx(sigmoid(excess) * (1 - sigmoid(excess)), rel=1e-12)


@pytest.mark.parametrize("shape", [(5, 3), (3,), (1, 3), (5, 1), ()])
def test_gradient_is_the_slope_summed_over_what_shares_a_threshold(shape: tuple[int, ...]) -> None:
    metric, upstream = normal(5, 3, seed=1), normal(5, 3, seed=2)
    threshold = normal(*shape, seed=3).requires_grad_()
    (found,) = torch.autograd.grad((gate(metric, threshold) * upstream).sum(), threshold)
    excess = metric - threshold.detach()
    terms = torch.zeros(5, 3, dtype=torch.float64)
    for row, column in product(range(5), range(3)):
        terms[row, column] = -float(upstream[row, column]) * slope(float(excess[row, column]))
    expected = torch.zeros(shape, dtype=torch.float64)
    for row, column in product(range(5), range(3)):
        place = (row, column)[2 - len(shape) :]
        expected[tuple(min(at, size - 1) for at, size in zip(place, shape, strict=True))] += terms[row, column]
    assert found.shape == threshold.shape
    assert torch.allclose(found, expected, rtol=1e-7)


def test_no_gradient_reaches_the_metric() -> None:
    metric = normal(4).requires_grad_()
    threshold = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    to_metric, to_threshold = torch.autograd.grad(gate(metric, threshold).sum(), [metric, threshold], allow_unused=True)
    assert to_metric is None
    assert bool((to_threshold < 0).all())


# --- widths ---


def relaxed_bits(gates: Sequence[float], bits: Sequence[int]) -> float:
    """b_1 + Σ_j (b_j − b_(j−1)) Π_{i≤j} g_i: Eq. 14 multiplied out."""
    return bits[0] + sum((bits[j] - bits[j - 1]) * math.prod(gates[:j]) for j in range(1, len(bits)))


@pytest.mark.parametrize("bits", CHAINS)
def test_opened_width_is_the_width_after_the_leading_open_gates(bits: tuple[int, ...]) -> None:
    for pattern in product((0.0, 1.0), repeat=len(bits) - 1):
        leading = (*pattern, 0.0).index(0.0)
        assert float(opened(bits, torch.tensor(pattern))) == bits[leading]


@pytest.mark.parametrize("bits", CHAINS[1:])
@pytest.mark.parametrize("binary", [True, False])
def test_gradient_of_opened_width_is_that_of_the_relaxed_formula(bits: tuple[int, ...], binary: bool) -> None:
    count = len(bits) - 1
    points = (
        [list(p) for p in product((0.0, 1.0), repeat=count)]
        if binary
        else [normal(count, seed=s).tolist() for s in range(3)]
    )
    for point in points:
        gates = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        value = opened(bits, gates)
        (found,) = torch.autograd.grad(value, gates)
        assert value.item() == pytest.approx(relaxed_bits(point, bits))
        for index in range(count):
            high, low = ([*point[:index], point[index] + h, *point[index + 1 :]] for h in (0.5, -0.5))
            difference = relaxed_bits(high, bits) - relaxed_bits(low, bits)
            assert float(found[index]) == pytest.approx(difference, abs=1e-12)


# --- groups of filters ---


@pytest.mark.parametrize(
    ("filters", "size", "sizes"),
    [(16, 4, [4, 4, 4, 4]), (16, 5, [5, 5, 5, 1]), (7, 3, [3, 3, 1]), (4, 8, [4]), (3, 1, [1, 1, 1])],
)
def test_groups_are_consecutive_and_the_last_takes_the_rest(filters: int, size: int, sizes: list[int]) -> None:
    groups = FilterGroups(filters, size, CPU)
    assert [len(members) for members in groups.members] == groups.sizes.tolist() == sizes
    assert [filter_ for members in groups.members for filter_ in members] == list(range(filters))
    assert all(int(groups.owner[f]) == g for g, members in enumerate(groups.members) for f in members)


@pytest.mark.parametrize(("filters", "size"), [(16, 4), (7, 3), (4, 8), (3, 1)])
def test_group_metric_is_the_mean_absolute_weight(filters: int, size: int) -> None:
    weight = normal(filters, 2, 3, 3).requires_grad_()
    groups = FilterGroups(filters, size, CPU)
    found = groups.metric(weight)
    assert not found.requires_grad
    for value, members in zip(found.tolist(), groups.members, strict=True):
        elements = [abs(w) for member in members for w in weight[member].flatten().tolist()]
        assert value == pytest.approx(sum(elements) / len(elements), rel=1e-12)


def test_spread_gives_each_filter_the_gate_of_its_group() -> None:
    groups = FilterGroups(7, 3, CPU)
    assert groups.spread(torch.tensor([1.0, 0.0, 2.0])).tolist() == [1, 1, 1, 0, 0, 0, 2]


@pytest.mark.parametrize(
    ("threshold", "opened"),
    [(0.0, [1, 1, 1, 1]), (0.3, [0, 1, 1, 0]), (0.5, [0, 1, 0, 0]), (0.6, [0, 1, 0, 0]), (math.inf, [0, 1, 0, 0])],
)
def test_the_strongest_group_never_closes(threshold: float, opened: list[int]) -> None:
    groups = FilterGroups(8, 2, CPU)
    assert groups.gates(torch.tensor([0.2, 0.5, 0.3, 0.1]), torch.tensor(threshold)).tolist() == opened


def test_of_equal_groups_one_stays() -> None:
    assert float(FilterGroups(8, 2, CPU).gates(torch.full((4,), 0.2), torch.tensor(0.3)).sum()) == 1


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_the_common_threshold_feels_every_group_and_the_strongest_too(threshold: float) -> None:
    metric = torch.tensor([0.2, 0.5, 0.3, 0.1], dtype=torch.float64)
    upstream = normal(4)
    shared = torch.tensor(threshold, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad((FilterGroups(8, 2, CPU).gates(metric, shared) * upstream).sum(), shared)
    expected = -sum(u * slope(m - threshold) for u, m in zip(upstream.tolist(), metric.tolist(), strict=True))
    assert float(found) == pytest.approx(expected, rel=1e-7)
