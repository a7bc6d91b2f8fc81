"""Repair: moves the fewest decisions of smallest margin so that a policy ends inside the budget's window.

The costs that a network can have are a coarse lattice, and searches hover around their budget; without this
last step two methods would be compared at costs that differ by more than the window. What was moved is
recorded, and raw and repaired cost are both reported.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from bench.budget import Budget
from bench.method import Decision
from bench.network import NetworkShape
from bench.policy import LayerPolicy, Policy

_PAIR_CANDIDATES = 40

_Pricing = Callable[[Sequence[Decision]], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One decision set to a neighbouring option.

    Attributes:
        index: Position of the decision.
        chosen: The new option.
        margin: How clearly the search had preferred the other side.
    """

    index: int
    chosen: int
    margin: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """The outcome of a repair.

    Attributes:
        policy: The policy after it.
        decisions: The decisions after it.
        raw_cost, cost: Before and after, in the unit of what the budget limits.
        moved: How many decisions differ from the search's.
    """

    policy: Policy
    decisions: Sequence[Decision]
    raw_cost: float
    cost: float
    moved: int


def policy_of(base: Policy, decisions: Iterable[Decision]) -> Policy:
    """The policy that decisions stand for; what none of them touches stays as in `base`.

    Args:
        base: Lists all filters of every layer that has filter decisions.
        decisions: The choices.
    """
    chosen: dict[str, dict[str, int]] = {}
    dropped: dict[str, set[int]] = {}
    for decision in decisions:
        value = decision.options[decision.chosen]
        if decision.what == "filters":
            dropped.setdefault(decision.layer, set()).update(() if value else decision.filters)
        else:
            chosen.setdefault(decision.layer, {})[decision.what] = value
    layers = dict(base.layers)
    for name in {**chosen, **dropped}:
        before, widths = base.layers[name], chosen.get(name, {})
        kept = before.kept_filters
        if name in dropped:
            kept = _remaining(base, name, dropped[name]) if dropped[name] else None
        layers[name] = LayerPolicy(
            weight_bits=widths.get("weight_bits", before.weight_bits),
            activation_bits=widths.get("activation_bits", before.activation_bits),
            kept_filters=kept,
        )
    return Policy(model=base.model, dataset=base.dataset, layers=layers)


def _remaining(base: Policy, name: str, gone: set[int]) -> tuple[int, ...]:
    kept = base.layers[name].kept_filters
    if kept is None:
        raise ValueError(f"the base policy of a layer with filter decisions must list its filters: '{name}'")
    return tuple(filter_ for filter_ in kept if filter_ not in gone)


def repair(network: NetworkShape, policy: Policy, decisions: Sequence[Decision], budget: Budget) -> Repair:
    """Bring a policy into the window of a budget, if its decisions allow it.

    First single moves, then pairs of moves of small margin; when none lands in the window, the move of
    smallest margin towards it is made and the search for a landing goes on from there. What cannot be brought
    inside ends at the dearest policy met that costs no more than the budget.

    Args:
        network: The shapes.
        policy: The search's policy, consistent with `decisions`.
        decisions: What may be moved.
        budget: The target.
    """
    raw = budget.price(network, policy)
    base = _with_all_filters(network, policy, decisions)

    def pricing(choices: Sequence[Decision]) -> float:
        return budget.price(network, policy_of(base, choices))

    current = list(decisions)
    best: tuple[float, list[Decision]] | None = (raw, list(current)) if raw <= budget.limit else None
    cost = raw
    seen: set[tuple[int, ...]] = set()
    while not budget.matches(cost) and (state := tuple(d.chosen for d in current)) not in seen:
        seen.add(state)
        moves = _moves(pricing, current, cost, towards_less=cost > budget.limit)
        landing = _landing(pricing, current, moves, budget)
        if landing is None and not moves:
            break
        for move in landing or moves[:1]:
            current[move.index] = replace(current[move.index], chosen=move.chosen)
        cost = pricing(current)
        if cost <= budget.limit and (best is None or cost > best[0]):
            best = (cost, list(current))
    final = current if best is None else best[1]
    repaired = policy_of(base, final)
    moved = sum(before.chosen != after.chosen for before, after in zip(decisions, final, strict=True))
    return Repair(policy=repaired, decisions=final, raw_cost=raw, cost=budget.price(network, repaired), moved=moved)


def _with_all_filters(network: NetworkShape, policy: Policy, decisions: Sequence[Decision]) -> Policy:
    """The policy with every filter listed in the layers that have filter decisions."""
    for name in {decision.layer for decision in decisions if decision.what == "filters"}:
        policy = policy.with_layer(name, kept_filters=tuple(range(network[name].out_channels)))
    return policy


def _moves(pricing: _Pricing, decisions: Sequence[Decision], cost: float, *, towards_less: bool) -> list[Move]:
    """Moves by one option that change the cost in the wanted direction, smallest margin first."""
    step = -1 if towards_less else 1
    found = []
    for index, decision in enumerate(decisions):
        chosen = decision.chosen + step
        if 0 <= chosen < len(decision.options):
            boundary = min(decision.chosen, chosen)
            found.append(Move(index=index, chosen=chosen, margin=abs(decision.margins[boundary])))
    effective = [move for move in found if _cost_after(pricing, decisions, [move]) != cost]
    return sorted(effective, key=lambda move: (move.margin, move.index))


def _landing(
    pricing: _Pricing, decisions: Sequence[Decision], moves: Sequence[Move], budget: Budget
) -> Sequence[Move] | None:
    """The fewest moves, then the least sum of margins, that end inside the window in at most two."""
    for move in moves:
        if budget.matches(_cost_after(pricing, decisions, [move])):
            return [move]
    pairs = sorted(combinations(moves[:_PAIR_CANDIDATES], 2), key=lambda pair: pair[0].margin + pair[1].margin)
    for pair in pairs:
        if budget.matches(_cost_after(pricing, decisions, pair)):
            return pair
    return None


def _cost_after(pricing: _Pricing, decisions: Sequence[Decision], moves: Sequence[Move]) -> float:
    changed = list(decisions)
    for move in moves:
        changed[move.index] = replace(changed[move.index], chosen=move.chosen)
    return pricing(changed)
