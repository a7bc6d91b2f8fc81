"""Repair against brute force on a small network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.compression.policy import Policy, check, uniform
from bench.compression.shapes import NetworkShape, trace
from bench.costs.budget import Budget
from bench.costs.counter import price
from bench.matching.repair import Repair, policy_of, repair
from bench.method import Decision
from bench.models.resnet import resnet8

BITS = (2, 4, 8)
GROUP = 4


@cache
def network() -> NetworkShape:
    return trace(resnet8(3, 10), (3, 8, 8), name="resnet8", dataset="none")


@cache
def base() -> Policy:
    """Four bits, all filters listed where filters may go."""
    policy = uniform(network(), 4)
    for layer in network().layers:
        if layer.prunable:
            policy = policy.with_layer(layer.name, kept_filters=tuple(range(layer.out_channels)))
    return policy


def cost(decisions: Sequence[Decision]) -> int:
    return price(network(), policy_of(base(), decisions)).bops


def bits(layer: str, what: str, chosen: int, margins: tuple[float, ...] = (0.1, 0.2)) -> Decision:
    return Decision(layer=layer, what=what, options=BITS, chosen=chosen, margins=margins)  # type: ignore[arg-type]


def group(layer: str, first: int, chosen: int, margin: float = 0.1) -> Decision:
    """A group of filters starting at `first`."""
    members = tuple(range(first, first + GROUP))
    return Decision(layer=layer, what="filters", options=(0, 1), chosen=chosen, margins=(margin,), filters=members)


def budget(bops: float, tolerance: float = 0.03) -> Budget:
    return Budget(text="test", limit=bops, tolerance=tolerance)


def repaired(decisions: Sequence[Decision], bops: float) -> Repair:
    return repair(network(), policy_of(base(), decisions), decisions, budget(bops))


@dataclass(frozen=True)
class Brute:
    """Every landing by one or two moves towards the window, as (moves, sum of gains × −1, cost)."""

    landings: list[tuple[int, float, int]]

    @property
    def best(self) -> tuple[int, float, int] | None:
        return min(self.landings, default=None)


def brute_force(decisions: Sequence[Decision], window: Budget) -> Brute:
    step = -1 if cost(decisions) > window.limit else 1
    able = [i for i, d in enumerate(decisions) if 0 <= d.chosen + step < len(d.options)]
    landings = []
    for number in (1, 2):
        for indices in combinations(able, number):
            changed = list(decisions)
            for i in indices:
                changed[i] = replace(decisions[i], chosen=decisions[i].chosen + step)
            if window.matches(cost(changed)):
                landings.append((number, -gain_of(decisions, changed), cost(changed)))
    return Brute(landings)


LAYERS = [layer.name for layer in network().middle]
PRUNABLE = [layer.name for layer in network().layers if layer.prunable]
PLACES: list[tuple[str, str, int]] = [
    *((layer, what, 0) for layer in LAYERS for what in ("weight_bits", "activation_bits")),
    # The first group of each layer is nobody's decision: a layer without filters cannot be.
    *((layer, "filters", first) for layer in PRUNABLE for first in range(GROUP, 16, GROUP)),
]
MARGINS = st.floats(-1, 1, allow_subnormal=False)


@st.composite
def situations(draw: Callable[..., object]) -> tuple[list[Decision], float]:
    """Some decisions, and a budget as a share of what they cost."""
    places: list[tuple[str, str, int]] = draw(  # type: ignore[assignment]
        st.lists(st.sampled_from(PLACES), min_size=1, max_size=9, unique=True)
    )
    decisions = []
    for layer, what, first in places:
        if what == "filters":
            decisions.append(group(layer, first, draw(st.integers(0, 1)), draw(MARGINS)))  # type: ignore[arg-type]
        else:
            margins = draw(st.tuples(MARGINS, MARGINS))
            decisions.append(bits(layer, what, draw(st.integers(0, 2)), margins))  # type: ignore[arg-type]
    share = draw(st.floats(0.7, 1.3))
    return decisions, share * cost(decisions)  # type: ignore[operator]


@settings(max_examples=300, deadline=None)
@given(situation=situations())
def test_repair_keeps_its_promises(situation: tuple[list[Decision], float]) -> None:
    decisions, bops = situation
    window, raw = budget(bops), cost(decisions)
    before = list(decisions)
    result = repaired(decisions, bops)
    assert decisions == before
    assert result.raw_cost == raw
    assert result.cost == price(network(), result.policy).bops == cost(result.decisions)
    assert result.moved == sum(a.chosen != b.chosen for a, b in zip(decisions, result.decisions, strict=True))
    assert [replace(d, chosen=0) for d in result.decisions] == [replace(d, chosen=0) for d in decisions]

    cheapest = cost([replace(d, chosen=0) for d in decisions])
    if window.matches(raw):
        assert result.moved == 0 and result.cost == raw
    elif cheapest > bops:
        assert result.cost == cheapest  # as near as it gets, and above the budget for all to see
    else:
        assert result.cost <= bops
        assert raw > bops or result.cost >= raw
    best = brute_force(decisions, window).best
    if best is not None and not window.matches(raw):
        assert window.matches(result.cost)
        assert result.moved == best[0]
        assert -gain_of(decisions, result.decisions) == pytest.approx(best[1])


def gain_of(before: Sequence[Decision], after: Sequence[Decision]) -> float:
    """The sum of the margins that were crossed: upwards as they are, downwards with the other sign."""
    return sum(
        sum(a.margins[a.chosen : b.chosen]) - sum(a.margins[b.chosen : a.chosen])
        for a, b in zip(before, after, strict=True)
    )


# --- one by one ---

FOUR = [bits(layer, what, 1, (0.5, 0.5)) for layer in LAYERS for what in ("weight_bits", "activation_bits")]


def test_inside_already_means_nothing_is_moved() -> None:
    result = repaired(FOUR, cost(FOUR) / 0.98)
    assert (result.moved, result.cost) == (0, cost(FOUR))
    assert list(result.decisions) == FOUR


@pytest.mark.parametrize("step", [-1, 1], ids=["too dear", "too cheap"])
@pytest.mark.parametrize("index", [0, 5, 11])
def test_one_move_that_lands_is_the_only_one_made(index: int, step: int) -> None:
    changed = [*FOUR[:index], replace(FOUR[index], chosen=1 + step), *FOUR[index + 1 :]]
    bops = cost(changed) / 0.999
    alone = [bits(d.layer, d.what, d.chosen, (9.0, 9.0)) for d in FOUR]
    result = repaired(alone, bops)
    assert result.moved == 1
    assert budget(bops).matches(result.cost)
    assert result.policy.layers != policy_of(base(), alone).layers


def test_of_several_single_moves_the_least_margin_wins() -> None:
    twins = [name for name in LAYERS if name.endswith("conv2")]
    costs = {name: cost([bits(name, "weight_bits", 1)]) - cost([bits(name, "weight_bits", 0)]) for name in twins}
    same = [name for name in twins if costs[name] == costs[twins[1]]]
    assert len(same) > 1, "the network has no two layers of the same cost; choose another one"
    decisions = [bits(name, "weight_bits", 1, (0.3 - 0.1 * i, 1.0)) for i, name in enumerate(same)]
    result = repaired(decisions, cost(decisions) - costs[same[0]] + 1)
    moved = [d.layer for d in result.decisions if d.chosen != 1]
    assert moved == [same[-1]]


def on_the_way(decisions: Sequence[Decision], window: Budget) -> list[Decision]:
    """Take the step of largest gain per cost until one or two moves land."""
    current = list(decisions)
    while brute_force(current, window).best is None:
        step = -1 if cost(current) > window.limit else 1
        changed = [
            [*current[:i], replace(d, chosen=d.chosen + step), *current[i + 1 :]]
            for i, d in enumerate(current)
            if 0 <= d.chosen + step < len(d.options)
        ]
        current = max(changed, key=lambda after: gain_of(current, after) / abs(cost(after) - cost(current)))
    return current


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("step", [-1, 1], ids=["too dear", "too cheap"])
def test_steps_that_the_search_prefers_are_made_in_the_order_of_gain_per_cost(step: int, seed: int) -> None:
    """From far away, when every step towards the window is preferred, as it is where only the budget forbids it."""
    draws = np.random.default_rng(seed)
    far = [replace(d, chosen=1 - step, margins=(step * draws.random(), step * draws.random())) for d in FOUR]
    window = budget(cost(FOUR) * 1.01)
    assert brute_force(far, window).best is None
    before = on_the_way(far, window)
    landing = brute_force(before, window).best
    assert landing is not None and gain_of(far, before) > 0
    result = repaired(far, window.limit)
    assert window.matches(result.cost)
    assert gain_of(far, result.decisions) == pytest.approx(gain_of(far, before) - landing[1])


TWINS = [name for name in LAYERS if name.endswith("conv2")]


def test_of_steps_up_that_land_the_most_useful_one_is_taken() -> None:
    """Measured falls of the loss, of which the smallest in size is a rise."""
    cheapest = [
        bits(name, "weight_bits", 0, (fall, 0.0)) for name, fall in zip(TWINS, (-0.0012, 0.0076, 0.0034), strict=True)
    ]
    up = {cost([*cheapest[:i], replace(d, chosen=1), *cheapest[i + 1 :]]) for i, d in enumerate(cheapest)}
    assert len(up) == 1, "all three layers cost the same"
    result = repair(network(), policy_of(base(), cheapest), cheapest, budget(up.pop(), tolerance=1e-6))
    assert [d.chosen for d in result.decisions] == [0, 1, 0]


def test_a_gate_that_is_open_behind_a_shut_one_counts_for_its_step() -> None:
    """Of three layers of one cost, the first has the gate of 4 bits shut and that of 8 open."""
    nested = bits(TWINS[0], "weight_bits", 0, (-0.1, 0.3))
    gates = [nested, *(bits(name, "weight_bits", 1, (0.5, -0.2)) for name in TWINS[1:])]
    wanted = [replace(nested, chosen=2), replace(gates[1], chosen=2), gates[2]]
    assert cost(wanted) == cost([replace(nested, chosen=1), *(replace(d, chosen=2) for d in gates[1:])])
    window = budget(cost(wanted), tolerance=1e-6)
    result = repair(network(), policy_of(base(), gates), gates, window)
    assert [d.chosen for d in result.decisions] == [2, 2, 1]


def test_a_pair_is_moved_only_when_no_single_move_lands() -> None:
    decisions = [bits(name, "weight_bits", 1, (0.1, 0.1)) for name in PRUNABLE]
    both = [replace(decisions[0], chosen=0), replace(decisions[1], chosen=0), decisions[2]]
    singles = [cost([*decisions[:i], replace(decisions[i], chosen=0), *decisions[i + 1 :]]) for i in range(3)]
    bops = cost(both) + 1
    assert not any(budget(bops).matches(single) for single in singles)
    result = repaired(decisions, bops)
    assert [d.chosen for d in result.decisions] == [0, 0, 1]


@pytest.mark.parametrize("chosen", [0, 1], ids=["put back", "taken away"])
def test_groups_of_filters_are_moved_whole(chosen: int) -> None:
    layer = PRUNABLE[0]
    sign = 1 if chosen else -1
    decisions = [group(layer, first, chosen, margin=sign * first / 100) for first in (4, 8, 12)]
    flipped = [replace(decisions[0], chosen=1 - chosen), *decisions[1:]]
    result = repaired(decisions, cost(flipped) + 1)
    assert result.moved == 1 and result.cost == cost(flipped)
    kept = result.policy.layers[layer].kept_filters
    expected = (0, 1, 2, 3, 4, 5, 6, 7) if chosen == 0 else (0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15)
    assert kept == expected
    consumer = next(shape.name for shape in network().layers if shape.producer == layer)
    priced = {found.name: found for found in price(network(), result.policy).layers}
    assert priced[consumer].in_channels == len(expected)


def test_a_layer_that_keeps_all_is_written_as_null() -> None:
    decisions = [group(PRUNABLE[0], first, 1) for first in (4, 8, 12)]
    assert policy_of(base(), decisions).layers[PRUNABLE[0]].kept_filters is None


def test_filters_that_an_earlier_stage_took_stay_away() -> None:
    layer = PRUNABLE[0]
    pruned = base().with_layer(layer, kept_filters=(1, 3, 5))
    decisions = [bits(layer, "weight_bits", 1, (0.1, 0.1))]
    result = repair(network(), pruned, decisions, budget(0.97 * price(network(), pruned).bops))
    assert result.policy.layers[layer].kept_filters == (1, 3, 5)
    assert result.moved == 1


def test_without_decisions_nothing_can_be_done() -> None:
    policy = uniform(network(), 4)
    for share in (0.5, 2.0):
        result = repair(network(), policy, [], budget(share * price(network(), policy).bops))
        assert (result.policy, result.moved, result.cost) == (policy, 0, result.raw_cost)


def test_what_cannot_reach_the_window_ends_at_the_dearest_below_it() -> None:
    (single,) = [bits(PRUNABLE[2], "weight_bits", 2, (0.1, 0.1))]
    costs = [cost([replace(single, chosen=chosen)]) for chosen in range(3)]
    between = (costs[0] + costs[1]) / 2
    narrow = budget(between, tolerance=0.001)
    for chosen in range(3):
        decisions = [replace(single, chosen=chosen)]
        result = repair(network(), policy_of(base(), decisions), decisions, narrow)
        assert result.cost == costs[0]
        assert not narrow.matches(result.cost)


def test_more_than_two_moves_are_made_when_they_are_needed() -> None:
    eight = [replace(d, chosen=2, margins=(0.1 * i, 0.01 * i)) for i, d in enumerate(FOUR)]
    result = repaired(eight, cost(FOUR))
    assert budget(cost(FOUR)).matches(result.cost)
    assert result.moved > 2


# --- no layer without filters ---


class Mixed(nn.Module):
    """A layer that feeds a depthwise convolution, and the same channels through a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.expand = nn.Conv2d(4, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.project = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(4, 10)

    def forward(self, images: Tensor) -> Tensor:
        channels = F.relu(self.depthwise(F.relu(self.expand(F.relu(self.stem(images))))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(channels, 1)))))
        return self.fc(self.project(channels * gate).mean((2, 3)))


@cache
def mixed() -> NetworkShape:
    return trace(Mixed(), (3, 8, 8), name="mixed", dataset="none")


def all_groups(chosen: Sequence[int], margins: Sequence[float], widths: Sequence[int]) -> list[Decision]:
    """Decisions about every pair of the six filters, and every filter of the gate, and about bits."""
    members = [("expand", (0, 1)), ("expand", (2, 3)), ("expand", (4, 5)), *(("squeeze", (i,)) for i in range(3))]
    groups = [
        Decision(layer=layer, what="filters", options=(0, 1), chosen=kept, margins=(margin,), filters=filters)
        for (layer, filters), kept, margin in zip(members, chosen, margins, strict=True)
    ]
    return [*groups, bits("expand", "weight_bits", widths[0]), bits("depthwise", "activation_bits", widths[1])]


def mixed_policy(decisions: Sequence[Decision]) -> Policy:
    listed = uniform(mixed(), 4)
    for name in ("expand", "squeeze"):
        listed = listed.with_layer(name, kept_filters=tuple(range(mixed()[name].out_channels)))
    return policy_of(listed, decisions)


@cache
def possible_costs(width: int) -> list[int]:
    """Costs of all states of the decisions in which no layer is empty, by enumeration."""
    return [
        price(mixed(), mixed_policy(all_groups(chosen, [0.1] * 6, widths))).bops
        for chosen in product((0, 1), repeat=6)
        if any(chosen[:3]) and any(chosen[3:])
        for widths in product(range(width), repeat=2)
    ]


@settings(max_examples=200, deadline=None)
@given(
    chosen=st.lists(st.integers(0, 1), min_size=6, max_size=6).filter(lambda c: any(c[:3]) and any(c[3:])),
    margins=st.lists(MARGINS, min_size=6, max_size=6),
    widths=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    share=st.floats(0.001, 1.5),
    tolerance=st.sampled_from([1e-6, 0.03, 0.3]),
)
def test_no_layer_is_ever_left_without_a_filter(
    chosen: list[int], margins: list[float], widths: tuple[int, int], share: float, tolerance: float
) -> None:
    decisions = all_groups(chosen, margins, widths)
    policy, costs = mixed_policy(decisions), possible_costs(3)
    window = budget(share * max(costs), tolerance)
    result = repair(mixed(), policy, decisions, window)
    check(mixed(), result.policy)
    assert result.cost == price(mixed(), result.policy).bops and result.cost in costs
    if window.limit < min(costs):
        assert result.cost == min(costs)
    elif result.raw_cost > window.limit:
        assert result.cost <= window.limit


def test_the_last_group_stays_however_little_the_search_wants_it() -> None:
    decisions = all_groups([0, 1, 0, 1, 1, 1], [-9.0, -9.0, -9.0, 0.1, 0.1, 0.1], (0, 0))
    result = repair(mixed(), mixed_policy(decisions), decisions, budget(1.0))
    assert result.policy.layers["expand"].kept_filters == (2, 3)
    assert len(result.policy.layers["squeeze"].kept_filters or ()) == 1
    assert result.cost == min(possible_costs(3))
