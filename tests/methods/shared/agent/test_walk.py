"""The walk of HAQ's agent: actions, states, and the action wall."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.compression.policy import Policy, uniform
from bench.costs.counter import price
from bench.costs.measures import Memory
from bench.method import SearchJob, Task
from methods.shared.agent.walk import ActionSpace, index_of, layer_states

MakeJob = Callable[..., SearchJob]
BITS = (2, 4, 8)


# --- actions ------------------------------------------------------------------------------------------------------


def published_width(action: float, low: int, high: int) -> int:
    """The formula as it is printed, rounded as NumPy does."""
    return int(np.round(low - 0.5 + action * (high - low + 1)))


@pytest.mark.parametrize(("low", "high"), [(2, 8), (3, 6), (2, 3), (2, 16)])
def test_an_action_is_rounded_as_published(low: int, high: int) -> None:
    bits = range(low, high + 1)
    inside = [action for action in np.linspace(0, 1, 841) if low <= published_width(action, low, high) <= high]
    assert len(inside) >= 840
    for action in inside:
        assert bits[index_of(float(action), bits)] == published_width(action, low, high)
    assert index_of(0.0, bits) == 0
    assert index_of(1.0, bits) == len(bits) - 1


@pytest.mark.parametrize(
    ("action", "width"),
    [(0.0, 2), (0.1, 2), (0.333, 2), (0.334, 4), (0.5, 4), (0.666, 4), (0.667, 8), (0.9, 8), (1.0, 8)],
)
def test_of_other_candidates_the_position_is_rounded(action: float, width: int) -> None:
    assert BITS[index_of(action, BITS)] == width


def test_every_candidate_has_the_same_share_of_actions() -> None:
    for bits in (BITS, (2, 3, 4, 5, 6, 7, 8), (3,), (2, 16)):
        choices = [index_of((number + 0.5) / 4200, bits) for number in range(4200)]
        assert np.bincount(choices).tolist() == [4200 // len(bits)] * len(bits)


# --- states -------------------------------------------------------------------------------------------------------


def test_states_are_what_layers_are_column_by_column(mobile_job: SearchJob) -> None:
    layers = mobile_job.task.network.middle
    model = mobile_job.float_model()
    columns: list[list[float]] = [[] for _ in range(8)]
    for number, layer in enumerate(layers):
        module: Any = model.get_submodule(layer.name)
        conv = isinstance(module, nn.Conv2d)
        values = (
            [module.groups == module.in_channels > 1, module.in_channels, module.out_channels, module.stride[0]]
            if conv
            else [0, module.in_features, module.out_features, 0]
        )
        values += [module.kernel_size[0] if conv else 1, module.weight.numel(), layer.in_size[0] ** 2, number]
        for column, value in zip(columns, values, strict=True):
            column.append(float(value))
    found = layer_states(layers)
    assert found.shape == (len(layers), 8)
    for index, column in enumerate(columns):
        low, high = min(column), max(column)
        assert high > low  # inverted residuals, a stride, kernels and a linear layer: nothing is alike everywhere
        expected = [(value - low) / (high - low) for value in column]
        assert found[:, index].tolist() == pytest.approx(expected)
    assert {layer.depthwise for layer in layers} == {True, False}


def test_a_column_without_differences_is_nought(small_task: Task) -> None:
    found = layer_states(small_task.network.middle[:2])
    assert bool(found.isfinite().all())
    assert found[:, 0].tolist() == [0, 0]


def test_a_walk_asks_for_weight_then_input_and_shows_the_last_width(make_job: MakeJob) -> None:
    job, answers = make_job(), iter([0.9, 0.5, 0.1] * 20)
    walk = ActionSpace(job, BITS).walk(lambda state: next(answers))
    layers = len(job.task.network.middle)
    assert walk.choices == tuple([2, 1, 0] * layers)[: 2 * layers]
    assert walk.states.shape == (2 * layers, 10)
    assert torch.equal(walk.states[::2, :8], layer_states(job.task.network.middle))
    assert torch.equal(walk.states[1::2, :8], walk.states[::2, :8])
    assert walk.states[:, 9].tolist() == [1, 0] * layers
    assert walk.states[:5, 8].tolist() == [1, 1, 0.5, 0.25, 1]
    policy = ActionSpace(job, BITS).policy(walk.choices)
    first, second = (policy.layers[layer.name] for layer in job.task.network.middle[:2])
    assert (first.weight_bits, first.activation_bits) == (8, 4)
    assert (second.weight_bits, second.activation_bits) == (2, 8)
    for edge in (job.task.network.layers[0], job.task.network.layers[-1]):
        assert policy.layers[edge.name] == uniform(job.task.network, 8).layers[edge.name]


# --- the action wall ----------------------------------------------------------------------------------------------


def slow_wall(job: SearchJob, policy: Policy, bits: tuple[int, ...]) -> Policy:
    """Layer after layer from the last, its input and then its weight, one candidate lower at each turn."""
    while job.price(policy) > job.budget:
        for layer in reversed(job.task.network.middle):
            for what in ("activation_bits", "weight_bits"):
                width = getattr(policy.layers[layer.name], what)
                if job.price(policy) > job.budget and width > bits[0]:
                    policy = policy.with_layer(layer.name, **{what: bits[bits.index(width) - 1]})
    return policy


@pytest.mark.parametrize("bits", [BITS, (2, 3, 4, 5, 6, 7, 8), (4, 6)])
@pytest.mark.parametrize("share", [1.0, 1.3, 4.0])
def test_the_wall_lowers_as_a_slow_version_does(make_job: MakeJob, bits: tuple[int, ...], share: float) -> None:
    task = make_job().task
    for measure in (make_job().measure, Memory()):
        budget = share * measure.price(task.network, uniform(task.network, bits[0]))
        job = make_job(measure=measure, budget=budget)
        space = ActionSpace(job, bits)
        draws = torch.Generator().manual_seed(1)
        for _ in range(5):
            choices = tuple(torch.randint(len(bits), (2 * len(task.network.middle),), generator=draws).tolist())
            lowered = space.policy(space.within_budget(choices))
            assert job.price(lowered) <= budget
            assert lowered == slow_wall(job, space.policy(choices), bits)


def test_what_fits_is_left_alone(make_job: MakeJob) -> None:
    least = price(make_job().task.network, uniform(make_job().task.network, 2)).bops
    choices = (1,) * (2 * len(make_job().task.network.middle))
    assert ActionSpace(make_job(), BITS).within_budget(choices) == choices  # the budget is what 4 bits cost
    ActionSpace(make_job(budget=float(least)), BITS).check()
