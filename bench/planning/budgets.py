"""What the budgets of a study mean for its methods: which methods cannot cost as little, or as much, as a budget."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench.compression.policy import Policy
from bench.compression.shapes import NetworkShape
from bench.costs.budget import Budget, parse_budget
from bench.errors import BenchError
from bench.planning.methods import method_of_study
from bench.planning.networks import task_network
from bench.planning.units import label
from bench.spec.schema import StudySpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """The costs that one method can have at one budget on one model.

    Attributes:
        model, dataset: Task.
        method: Name of the method, with the change of an ablation in brackets.
        budget: The budget.
        cheapest, costliest: Costs of the method's cheapest and costliest policy, in the unit of the budget's measure;
            `None` when the method does not state one.
    """

    model: str
    dataset: str
    method: str
    budget: Budget
    cheapest: float | None
    costliest: float | None

    @property
    def below(self) -> bool:
        """Whether all policies cost less than the budget's window."""
        return self.costliest is not None and self.costliest < self.budget.low

    @property
    def above(self) -> bool:
        """Whether all policies cost more than the budget."""
        return self.cheapest is not None and self.cheapest > self.budget.limit


def reaches(spec: StudySpec, methods: Sequence[str], variant: str) -> list[Reach]:
    """Return the costs that methods can have, budget by budget; methods that ignore budgets are left out.

    Args:
        spec: Specification of the study on one model.
        methods: Methods of the study or of an ablation.
        variant: The change of an ablation in words; empty for none.
    """
    network = task_network(spec.task)
    made = {name: method_of_study(spec, name) for name in methods}
    budgets = [parse_budget(text, network, spec.tuning.tolerance, spec.accelerator) for text in spec.budgets]
    return [
        Reach(
            model=spec.task.model,
            dataset=spec.task.dataset,
            method=label(name, variant),
            budget=budget,
            cheapest=_cost(method.cheapest, network, budget),
            costliest=_cost(method.costliest, network, budget),
        )
        for budget in budgets
        for name, method in made.items()
        if method.capabilities.budget != "ignored"
    ]


def _cost(policy_of: Callable[[NetworkShape], Policy | None], network: NetworkShape, budget: Budget) -> float | None:
    """Price a method's cheapest or costliest policy; `None` when it does not state one, or fewer bits may cost more.

    The costliest policy has no more bits than the measure can price: an accelerator computes up to 8.
    """
    if not budget.measure.rises_with_bits:
        return None
    try:
        policy = policy_of(network)
    except Exception:  # the method's own code; the units of the method fail and say why
        return None
    return None if policy is None else budget.price(network, _priceable(policy, budget.measure.max_bits))


def _priceable(policy: Policy, most: int) -> Policy:
    layers = {
        name: replace(layer, weight_bits=min(layer.weight_bits, most), activation_bits=min(layer.activation_bits, most))
        for name, layer in policy.layers.items()
    }
    return replace(policy, layers=layers)


def check_spendable(found: Sequence[Reach]) -> None:
    """Refuse a budget above the costliest network of every method; no method could be compared at it.

    Args:
        found: Reaches of the methods of a study on one model.

    Raises:
        BenchError: There is such a budget.
    """
    for budget in dict.fromkeys(reach.budget for reach in found):
        costs = {reach.method: reach.costliest for reach in found if reach.budget == budget and reach.below}
        if costs and len(costs) == sum(reach.budget == budget for reach in found):
            name, most = max(costs.items(), key=lambda item: item[1] or 0.0)
            words = budget.measure.in_words
            raise BenchError(
                f"budget '{budget.text}' is {words(budget.limit)}, more than any network that the study's methods can "
                f"find on {found[0].model}: the costliest is that of {name}, {words(most or 0.0)}; "
                "give that much or less with --budget, or add a method or candidate bits that can use more"
            )


def budget_notes(found: Sequence[Reach]) -> Iterator[str]:
    """Yield one line for each budget and model that some methods cannot use up, or cannot meet at all.

    Args:
        found: Reaches of all methods of a study.
    """
    for model, budget in dict.fromkeys((reach.model, reach.budget) for reach in found):
        here = [reach for reach in found if (reach.model, reach.budget) == (model, budget)]
        words, where = (
            budget.measure.in_words,
            f"budget {budget.text} on {model} ({budget.measure.in_words(budget.limit)})",
        )
        below = [f"{reach.method} ({words(reach.costliest or 0.0)})" for reach in here if reach.below]
        if below:
            yield (
                f"{where} is above the costliest network of {', '.join(below)}: what they find is not matched to it, "
                "and is compared with nothing"
            )
        above = [f"{reach.method} ({words(reach.cheapest or 0.0)})" for reach in here if reach.above]
        if above:
            yield f"{where} is below the cheapest network of {', '.join(above)}: out of their reach"
