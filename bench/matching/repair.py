"""Repair: move the fewest decisions against the least preference so that a policy ends within the budget's window.

The possible costs of a network form a coarse lattice, and searches end near their budget, not on it. Without repair two
methods would be compared at costs that differ by more than the window. The number of changed decisions is recorded, and
reports show the cost before and after.

Margins have a sign. A move has a gain: the margin that it crosses, positive where the search itself prefers the new
option. Choices of gates or logits have no positive gains, so those of least margin are moved. A search that only the
budget keeps from higher bits has them, and then the most useful step is taken.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

from bench.compression.policy import LayerPolicy, Policy
from bench.compression.shapes import NetworkShape
from bench.costs.budget import Budget
from bench.method import Decision

_PAIR_CANDIDATES = 40
"""Number of single moves, those of largest gain, from which pairs are formed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """Change of one decision to a neighbouring option.

    Attributes:
        index: Index of the decision.
        chosen: Index of the new option.
        gain: Preference of the search for the new option over the present one, in the unit of the margins.
    """

    index: int
    chosen: int
    gain: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """Outcome of a repair.

    Attributes:
        policy: Policy after repair.
        decisions: Decisions after repair.
        raw_cost, cost: Costs before and after, in the unit of the budget's measure.
        moved: Number of decisions that differ from the search's.
    """

    policy: Policy
    decisions: Sequence[Decision]
    raw_cost: float
    cost: float
    moved: int


def policy_of(base: Policy, decisions: Iterable[Decision]) -> Policy:
    """Apply decisions to a policy; what no decision is about stays as it is in `base`.

    Args:
        base: Policy that lists all filters of every layer that has filter decisions.
        decisions: Decisions to apply.
    """
    members: dict[str, list[Decision]] = {}
    for decision in decisions:
        members.setdefault(decision.layer, []).append(decision)
    changed = {name: layer_policy_of(base.layers[name], made) for name, made in members.items()}
    return replace(base, layers={**base.layers, **changed})


def layer_policy_of(base: LayerPolicy, decisions: Iterable[Decision]) -> LayerPolicy:
    """Apply decisions about one layer; see `policy_of`."""
    widths: dict[str, int] = {}
    dropped: set[int] = set()
    about_filters = False
    for decision in decisions:
        value = decision.options[decision.chosen]
        if decision.what != "filters":
            widths[decision.what] = value
            continue
        about_filters = True
        dropped.update(() if value else decision.filters)
    kept = base.kept_filters
    if about_filters:
        kept = _remaining(base, dropped) if dropped else None
    return LayerPolicy(
        weight_bits=widths.get("weight_bits", base.weight_bits),
        activation_bits=widths.get("activation_bits", base.activation_bits),
        kept_filters=kept,
    )


def _remaining(base: LayerPolicy, dropped: set[int]) -> tuple[int, ...]:
    if base.kept_filters is None:
        raise ValueError("the base policy of a layer with filter decisions must list its filters")
    return tuple(filter_ for filter_ in base.kept_filters if filter_ not in dropped)


def repair(network: NetworkShape, policy: Policy, decisions: Sequence[Decision], budget: Budget) -> Repair:
    """Bring a policy into the window of a budget, if its decisions allow it.

    Single moves are tried first, then pairs; of those that end in the window, the one of largest gain is made. If none
    does, one step is made towards the window, and both are tried again from there: of moves that the search prefers,
    the one of largest gain for the cost that it moves, and otherwise the one of smallest margin. A policy that cannot
    be brought into the window becomes the costliest one seen on the way that costs no more than the budget. No move
    takes the last filters of a layer, even if all of them are up for decision.

    Args:
        network: Shapes of the network.
        policy: Policy of the search, consistent with `decisions`.
        decisions: Decisions that may be changed.
        budget: Target.
    """
    ledger = _Ledger(network, _with_all_filters(network, policy, decisions), decisions, budget)
    cost = raw = budget.price(network, policy)
    best: tuple[float, list[Decision]] | None = (raw, list(decisions)) if raw <= budget.limit else None
    seen: set[tuple[int, ...]] = set()
    while not budget.matches(cost) and (state := ledger.state()) not in seen:
        seen.add(state)
        moves = _moves(ledger, budget, towards_less=cost > budget.limit)
        landing = _landing(ledger, cost, moves, budget)
        if landing is None and not moves:
            break
        for move in landing or [_best_step(ledger, moves)]:
            ledger.make(move)
        cost = budget.price(network, ledger.policy())
        if cost <= budget.limit and (best is None or cost > best[0]):
            best = (cost, list(ledger.decisions))
    final = ledger.decisions if best is None else best[1]
    repaired = policy_of(ledger.base, final)
    moved = sum(before.chosen != after.chosen for before, after in zip(decisions, final, strict=True))
    return Repair(policy=repaired, decisions=final, raw_cost=raw, cost=budget.price(network, repaired), moved=moved)


def _with_all_filters(network: NetworkShape, policy: Policy, decisions: Sequence[Decision]) -> Policy:
    """List every filter in the layers of a policy that have filter decisions."""
    for name in {decision.layer for decision in decisions if decision.what == "filters"}:
        policy = policy.with_layer(name, kept_filters=tuple(range(network[name].filters)))
    return policy


class _Ledger:
    """The present decisions, and the change of cost that each move would cause.

    A network can have some thousand decisions. A move changes the cost of its own layer and of those that share its
    channels, so only these are computed, and only again after one of the layers involved has changed.

    Attributes:
        base: Policy that decisions are applied to; lists all filters.
        decisions: Present decisions.
    """

    def __init__(self, network: NetworkShape, base: Policy, decisions: Sequence[Decision], budget: Budget) -> None:
        self.base, self.decisions = base, list(decisions)
        self._budget = budget
        self._members: dict[str, list[int]] = {}
        for index, decision in enumerate(decisions):
            self._members.setdefault(decision.layer, []).append(index)
        self._priced = {
            name: [layer for layer in network.layers if name in (layer.name, layer.producer, layer.leader)]
            for name in self._members
        }
        self._involved = {
            name: {involved for layer in layers for involved in (layer.name, layer.producer, layer.leader)} - {None}
            for name, layers in self._priced.items()
        }
        self._policy = policy_of(base, decisions)
        self._changes: dict[tuple[tuple[int, int], ...], float | None] = {}

    def state(self) -> tuple[int, ...]:
        """Return the index of every chosen option."""
        return tuple(decision.chosen for decision in self.decisions)

    def policy(self) -> Policy:
        """Return the policy of the present decisions."""
        return self._policy

    def change(self, *moves: Move) -> float | None:
        """Return the change of cost when moves are made together; `None` if they would leave a layer no filter."""
        key = tuple((move.index, move.chosen) for move in moves)
        if key not in self._changes:
            self._changes[key] = self._change(moves)
        return self._changes[key]

    def change_of_both(self, first: Move, second: Move) -> float | None:
        """Return the change of cost when two moves, each possible alone, are made together; see `change`."""
        layers = self.decisions[first.index].layer, self.decisions[second.index].layer
        if self._involved[layers[0]].isdisjoint(self._involved[layers[1]]):
            alone = self.change(first), self.change(second)
            return None if alone[0] is None or alone[1] is None else alone[0] + alone[1]
        return self.change(first, second)

    def effect(self, move: Move) -> float:
        """Return the change of cost by one move; 0 if it is not possible."""
        return self.change(move) or 0.0

    def compatible(self, moves: Sequence[Move]) -> list[Move]:
        """Return moves without those of least effect that would take the last filters of a layer if all were made."""
        taken: dict[str, list[Move]] = {}
        left_out = set()
        for move in sorted(moves, key=lambda move: -abs(self.effect(move))):
            layer = self.decisions[move.index].layer
            together = [*taken.get(layer, ()), move]
            if self._empties(self._after(together), {layer}):
                left_out.add(move)
            else:
                taken[layer] = together
        return [move for move in moves if move not in left_out]

    def make(self, move: Move) -> None:
        """Make a move."""
        layer = self.decisions[move.index].layer
        self._policy = self._after([move])
        self.decisions[move.index] = replace(self.decisions[move.index], chosen=move.chosen)
        outdated = {name for name, involved in self._involved.items() if not involved.isdisjoint(self._involved[layer])}
        self._changes = {
            key: change
            for key, change in self._changes.items()
            if outdated.isdisjoint(self.decisions[index].layer for index, _ in key)
        }

    def _change(self, moves: Sequence[Move]) -> float | None:
        after = self._after(moves)
        moved = {self.decisions[move.index].layer for move in moves}
        if self._empties(after, moved):
            return None
        layers = {layer.name: layer for name in moved for layer in self._priced[name]}.values()
        price = self._budget.measure.price_layer
        return sum(price(after, layer) - price(self._policy, layer) for layer in layers)

    @staticmethod
    def _empties(policy: Policy, layers: Iterable[str]) -> bool:
        return any(policy.layers[name].kept_filters == () for name in layers)

    def _after(self, moves: Sequence[Move]) -> Policy:
        """Return the policy after some moves."""
        chosen = {move.index: move.chosen for move in moves}
        policy = self._policy
        for name in {self.decisions[index].layer for index in chosen}:
            members = [(index, self.decisions[index]) for index in self._members[name]]
            made = [replace(made, chosen=chosen[index]) if index in chosen else made for index, made in members]
            policy = replace(policy, layers={**policy.layers, name: layer_policy_of(self.base.layers[name], made)})
        return policy


def _moves(ledger: _Ledger, budget: Budget, *, towards_less: bool) -> list[Move]:
    """Return all moves by one option that change the cost in the wanted direction, largest gain first."""
    wanted = -1 if towards_less else 1
    steps = (wanted,) if budget.measure.rises_with_bits else (-1, 1)
    possible = []
    for (index, decision), step in product(enumerate(ledger.decisions), steps):
        chosen = decision.chosen + step
        if 0 <= chosen < len(decision.options):
            boundary = min(decision.chosen, chosen)
            possible.append(Move(index=index, chosen=chosen, gain=step * decision.margins[boundary]))
    effective = [move for move in possible if wanted * ledger.effect(move) > 0]
    return sorted(effective, key=lambda move: (-move.gain, move.index))


def _best_step(ledger: _Ledger, moves: Sequence[Move]) -> Move:
    """Choose the step towards a window that is out of reach of one or two moves, from moves by falling gain."""
    wanted = [move for move in moves if move.gain > 0]
    return max(wanted, key=lambda move: move.gain / abs(ledger.effect(move)), default=moves[0])


def _within_reach(ledger: _Ledger, cost: float, moves: Sequence[Move], budget: Budget) -> bool:
    """Return whether all moves together reach the window; if they do not, no two of them do.

    Far from the budget this saves computing the cost of every pair. It assumes that a move which changes the cost in
    the wanted direction does so in combination with the others too.
    """
    after = cost + (ledger.change(*ledger.compatible(moves)) or 0.0)
    return after <= budget.limit if cost > budget.limit else after >= budget.low


def _landing(ledger: _Ledger, cost: float, moves: Sequence[Move], budget: Budget) -> Sequence[Move] | None:
    """Find one or two moves that end in the window: as few as possible, then of largest sum of gains."""
    for move in moves:
        if _lands(cost, ledger.change(move), budget):
            return [move]
    candidates = moves[:_PAIR_CANDIDATES]
    if not _within_reach(ledger, cost, candidates, budget):
        return None
    pairs = sorted(combinations(candidates, 2), key=lambda pair: -pair[0].gain - pair[1].gain)
    for pair in pairs:
        if _lands(cost, ledger.change_of_both(*pair), budget):
            return pair
    return None


def _lands(cost: float, change: float | None, budget: Budget) -> bool:
    return change is not None and budget.matches(cost + change)
