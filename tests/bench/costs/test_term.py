"""The cost term: λ of each mode, its course in mode "dual", and its state in checkpoints."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from bench.costs.term import CostTerm, CostTerms, Multiplier

BUDGET, TOLERANCE = 100.0, 0.03
TARGET, BAND = 100 * math.sqrt(0.97), -math.log(0.97) / 2


def multiplier(updates: int = 40) -> Multiplier:
    return Multiplier(TARGET, BAND, updates)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def course(moving: Multiplier, costs: Sequence[float]) -> list[float]:
    return [moving.advance(scalar(cost)).item() for cost in costs]


def slow_course(costs: Sequence[float], updates: int) -> list[float]:
    """The law in plain numbers."""
    found, start, mean, total = [], 0.0, 0.0, 0.0
    bound = math.log(100 / 0.1 + math.sqrt((100 / 0.1) ** 2 + 1))
    for number, cost in enumerate(costs):
        y = math.log(cost / TARGET)
        if number == 0:
            start = mean = y
        if number < 0.1 * updates:
            start = max(start, y)
        left = 1 - number / (0.5 * updates)
        error = y - left * left * start if left > 0 else (0.0 if abs(y) <= BAND else y)
        trend = y - mean
        mean += trend / 5
        total += (4 if error * total < 0 else 1) * 8 * error / (0.5 * updates)
        total = min(max(total, -bound), bound)
        u = min(max(8 * (error + trend), -3.0), 3.0) + total
        u = min(max(u, -bound), bound)
        found.append(0.1 * (math.exp(u) - math.exp(-u)) / 2)
    return found


def drawn_costs(seed: int, count: int) -> list[float]:
    """Costs that fall from far above to below the target, with steps and noise, and some exactly on it."""
    draws = np.random.default_rng(seed)
    costs = TARGET * np.exp(np.linspace(2, -0.2, count) + 0.2 * draws.standard_normal(count))
    costs[count // 2 :: 7] = TARGET
    return [float(cost) for cost in costs]


@pytest.mark.parametrize("updates", [1, 7, 40, 150])
@pytest.mark.parametrize("seed", range(3))
def test_the_course_of_the_multiplier_is_that_of_the_law(updates: int, seed: int) -> None:
    costs = drawn_costs(seed, updates + 5)  # more updates than were announced
    assert course(multiplier(updates), costs) == pytest.approx(slow_course(costs, updates), rel=1e-9, abs=1e-15)


def test_a_cost_that_is_the_target_from_the_first_moves_nothing() -> None:
    assert course(multiplier(), [TARGET] * 40) == [0.0] * 40


def test_a_cost_in_the_window_is_left_alone_once_the_path_has_ended() -> None:
    moving = multiplier()
    course(moving, [110.0] * 32)
    held = moving.state_dict()["sum"].item()
    for cost in (97.001, 98.0, 99.0, 99.999):
        moving.advance(scalar(cost))
        assert moving.state_dict()["sum"].item() == held
    moving.advance(scalar(100.1))
    assert moving.state_dict()["sum"].item() > held
    moving.advance(scalar(96.9))  # falls four times as fast as it grew
    assert moving.state_dict()["sum"].item() < held


@pytest.mark.parametrize(("cost", "sign"), [(1e9, 1), (1e-9, -1)])
def test_the_multiplier_is_bounded_and_returns_at_once(cost: float, sign: int) -> None:
    """After an error of any length it takes the other sign within a quarter of the search (anti-windup)."""
    moving = multiplier()
    values = course(moving, [TARGET, *[cost] * 500])
    assert values[-1] == pytest.approx(sign * 100.0)
    assert max(map(abs, values)) <= 100.0 * (1 + 1e-12)
    back = course(moving, [TARGET * math.exp(-sign)] * 10)
    assert sign * back[-1] < 0


def test_a_network_that_is_too_cheap_is_paid_for_growing() -> None:
    assert course(multiplier(), [50.0] * 40)[-1] < -0.1


class Plant:
    """A search in miniature: one number, moved by SGD with momentum or by Adam against a task that resists.

    Args:
        force: Pull of the task on the log cost.
        steps: Costs are multiples of this, in log cost.
    """

    def __init__(self, force: float, steps: float, optimizer: str, updates: int) -> None:
        self.position = torch.nn.Parameter(scalar(2.0))
        self.force, self.steps = force, steps
        if optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD([self.position], lr=10 / updates, momentum=0.9)
        else:
            self.optimizer = torch.optim.Adam([self.position], lr=6 / updates)

    def cost(self) -> torch.Tensor:
        return TARGET * torch.exp(torch.round(self.position.detach() / self.steps) * self.steps)

    def update(self, weight: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        (weight * self.position - self.force * self.position).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("force", [0.0, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("updates", [150, 1_500])
def test_one_search_ends_near_the_budget_whatever_resists_it(optimizer: str, force: float, updates: int) -> None:
    """Without a range of strengths: the needed ones differ by a factor of a hundred."""
    plant, moving = Plant(force, 0.02, optimizer, updates), multiplier(updates)
    for _ in range(updates):
        plant.update(moving.advance(plant.cost()))
    assert abs(math.log(plant.cost().item() / TARGET)) < 0.1


# --- the term -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "cost", "weight"),
    [("hinge", 101.0, 0.7), ("hinge", 100.0, 0.0), ("lambda", 101.0, 0.7), ("lambda", 9.0, 0.7)],
)
def test_constant_strengths(mode: str, cost: float, weight: float) -> None:
    found = CostTerm(mode, 0.7, BUDGET)  # type: ignore[arg-type]
    assert found.weight(scalar(cost)).item() == weight
    assert found(scalar(250.0), scalar(cost)).item() == pytest.approx(weight * math.log(2.5))


def dual(terms: CostTerms, updates: int = 20, budget: float = BUDGET) -> CostTerm:
    return terms.make("dual", None, budget, tolerance=TOLERANCE, updates=updates)


def test_the_dual_term_aims_at_the_middle_of_the_window() -> None:
    found, slow = dual(CostTerms()), slow_course([150.0, 120.0, 90.0], 20)
    values = [found(scalar(250.0), scalar(cost)).item() for cost in (150.0, 120.0, 90.0)]
    assert values == pytest.approx([weight * math.log(2.5) for weight in slow])


def test_the_gradient_of_the_term_is_that_of_the_relaxed_cost_alone() -> None:
    found, relaxed = dual(CostTerms()), scalar(250.0).requires_grad_()
    found.weight(scalar(150.0))
    weight = slow_course([150.0, 140.0], 20)[1]
    (gradient,) = torch.autograd.grad(found(relaxed, scalar(140.0)), relaxed)
    assert gradient.item() == pytest.approx(weight / 250.0)


def test_figures_are_means_of_the_updates_since_the_last_ones() -> None:
    terms = CostTerms()
    assert terms.figures() == {}
    found = terms.make("hinge", 0.5, BUDGET, tolerance=TOLERANCE, updates=4)
    assert terms.figures() == {}
    for cost in (110.0, 105.0, 90.0, 120.0):
        found.weight(scalar(cost))
    assert terms.figures() == {"strength": pytest.approx(0.375)}
    found.weight(scalar(90.0))
    assert terms.figures() == {"strength": 0.0}


def test_the_same_term_goes_on_when_it_is_asked_for_again() -> None:
    terms, costs = CostTerms(), drawn_costs(0, 20)
    found = [dual(terms).weight(scalar(cost)).item() for cost in costs]
    assert found == pytest.approx(slow_course(costs, 20))
    terms.clear()
    assert dual(terms).weight(scalar(costs[0])).item() == found[0]


@pytest.mark.parametrize("made_before", [0, 1, 2])
def test_a_restored_term_goes_on_as_if_nothing_had_been(made_before: int) -> None:
    """Terms may be made before their state is restored or after it; the second has a budget of its own."""
    costs, terms = drawn_costs(1, 20), CostTerms()
    budgets = (BUDGET, 50.0)
    whole = [[dual(terms, budget=budget).weight(scalar(cost)) for budget in budgets] for cost in costs]
    first = CostTerms()
    for cost in costs[:9]:
        for budget in budgets:
            dual(first, budget=budget).weight(scalar(cost))
    kept, second = first.state_dict(), CostTerms()
    for budget in budgets[:made_before]:
        dual(second, budget=budget)
    second.load_state_dict(kept)
    rest = [[dual(second, budget=budget).weight(scalar(cost)) for budget in budgets] for cost in costs[9:]]
    assert rest == whole[9:]
