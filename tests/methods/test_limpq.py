"""LIMPQ: the published policy, the values of choices, and the training of the steps."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench.compression.compress import compress
from bench.compression.policy import Policy, uniform
from bench.compression.shapes import LayerShape, NetworkShape, trace
from bench.costs.counter import price
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.errors import UnreachableBudgetError
from bench.method import SearchJob
from bench.models.imagenet import resnet50
from bench.spec.schema import AcceleratorSpec, SearchSchedule
from methods import limpq
from methods.limpq import Limpq, LimpqOptions, StepNetwork, implausible, limit_gradients, values
from methods.shared.decisions import What
from methods.shared.history import History
from methods.shared.integer_programme import Limit, least_choice
from methods.shared.quantizers.learned_step import LearnedStep, learned_step

MakeJob = Callable[..., SearchJob]
BITS = (2, 4, 8)

# --- the published policy -----------------------------------------------------------------------------------------

PUBLISHED = Path(__file__).with_name("limpq_resnet50.json")
"""The steps that the authors ship."""
WEIGHT_BITS = "6345445445434333443443432323233223222222222222222222"
ACTIVATION_BITS = "6466634634535563453453444655455465356356364462646646"
"""The policy of ResNet-50 that their README prints, for 3 bit weights, 4 bit inputs and a 12.2 times smaller model."""


def their_macs(layer: LayerShape) -> int:
    """Their count: the area of an output is rounded down after its sides are multiplied, not before."""
    padding = layer.kernel[0] // 2
    height, width = (
        (size + 2 * padding - side) / stride + 1
        for size, side, stride in zip(layer.in_size, layer.kernel, layer.stride, strict=True)
    )
    return layer.in_channels * layer.out_channels * int(height * width) * layer.kernel[0] ** 2


def test_the_published_policy_is_found() -> None:
    """With their two limits and their count of operations."""
    shapes = trace(resnet50(3, 1000), (3, 224, 224), name="resnet50", dataset="imagenet")
    rows = json.loads(PUBLISHED.read_text())["steps"]
    assert list(rows) == [layer.name for layer in shapes.middle]
    bits = (2, 3, 4, 5, 6)
    importances: dict[tuple[str, What], list[float]] = {
        (name, what): row[what] for name, row in rows.items() for what in ("weight_bits", "activation_bits")
    }
    assert sum(sum(implausible(row)) for row in importances.values()) == 2
    pairs = list(product(bits, bits))
    table = np.array(list(values(importances, pairs, bits, alpha=2.0).values()))
    macs = np.array([[their_macs(layer)] for layer in shapes.middle], dtype=np.float64)
    operations = macs * np.array([[w * a for w, a in pairs]])
    counts = {layer.name: layer.right_elements(layer.in_channels, layer.out_channels) for layer in shapes.layers}
    sizes = np.array([[counts[layer.name] * w for w, _ in pairs] for layer in shapes.middle], dtype=np.float64)
    edges = sum(counts[layer.name] for layer in shapes.layers if layer.position != "middle")
    found = least_choice(
        table,
        [
            Limit(costs=operations, most=12.0 * macs.sum()),
            Limit(costs=sizes, most=32 * sum(counts.values()) / 12.2 - 8 * edges),
        ],
    )
    assert found is not None
    assert "".join(str(pairs[index][0]) for index in found) == WEIGHT_BITS
    assert "".join(str(pairs[index][1]) for index in found) == ACTIVATION_BITS
    total = table[np.arange(len(table)), found].sum()
    assert total == pytest.approx(4.617439, abs=1e-6)


# --- values ---------------------------------------------------------------------------------------------------------


def test_a_value_is_the_sum_of_both_steps_and_an_implausible_one_is_above_all() -> None:
    importances: dict[tuple[str, What], list[float]] = {
        ("one", "weight_bits"): [0.3, 0.2, 0.1],
        ("one", "activation_bits"): [0.6, 0.7, 0.1],
    }
    pairs = list(product(BITS, BITS))
    found = dict(zip(pairs, values(importances, pairs, BITS, alpha=3.0)[("one",)], strict=True))
    assert implausible([0.6, 0.7, 0.1]) == [True, False, False]
    assert found[4, 8] == pytest.approx(3 * 0.2 + 0.1) and found[2, 4] == pytest.approx(3 * 0.3 + 0.7)
    plausible = [value for (_, activation), value in found.items() if activation != 2]
    assert min(value for (_, activation), value in found.items() if activation == 2) > sum(sorted(plausible)[-1:])


@pytest.fixture
def job(network: NetworkShape, make_job: MakeJob) -> SearchJob:
    """At the cost of 4 bits."""
    return make_job(budget=float(price(network, uniform(network, 4)).bops), knobs={})


def untrained(monkeypatch: pytest.MonkeyPatch, importances: dict[tuple[str, What], list[float]]) -> None:
    """Searches that take drawn importances in place of learned ones."""
    monkeypatch.setattr(StepNetwork, "train", lambda self: History())
    monkeypatch.setattr(StepNetwork, "importances", lambda self: importances)


@pytest.mark.parametrize(
    "measure", [BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())], ids=lambda kind: kind.name
)
def test_a_search_has_the_least_importance_of_all_policies_in_the_window(
    make_job: MakeJob, network: NetworkShape, measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By enumeration of three layers, one with an implausible step; the others gain nothing by more bits."""
    free = [layer.name for layer in network.middle][1:4]
    rng = np.random.default_rng(3)
    whats: tuple[What, What] = ("weight_bits", "activation_bits")
    importances: dict[tuple[str, What], list[float]] = {
        (layer.name, what): sorted(rng.random(3).tolist(), reverse=True) if layer.name in free else [0.0, 0.0, 0.0]
        for layer in network.middle
        for what in whats
    }
    importances[free[0], "weight_bits"].sort()
    untrained(monkeypatch, importances)
    low, high = (measure.price(network, uniform(network, b)) for b in (2, 4))
    job = make_job(budget=low + 0.5 * (high - low), measure=measure, knobs={})
    found = Limpq().search(job).policy

    def total(policy: Policy) -> float:
        """Steps at the bits, twice for weights; implausible bits count as one large number."""
        result = 0.0
        for (name, what), row in importances.items():
            index = BITS.index(getattr(policy.layers[name], what))
            wrong = index < 2 and row[index] < row[index + 1]
            result += 1e6 if wrong else row[index] * (2 if what == "weight_bits" else 1)
        return result

    pairs, totals, cheapest = list(product(BITS, BITS)), [], uniform(network, 2)
    for layer in network.middle:  # on an accelerator that is not always the first pair
        forms = [cheapest.with_layer(layer.name, weight_bits=w, activation_bits=a) for w, a in pairs]
        cheapest = min(forms, key=lambda form, layer=layer: measure.price_layer(form, layer))  # type: ignore[misc]
    for choice in product(pairs, repeat=3):
        policy = cheapest
        for name, (weight, activation) in zip(free, choice, strict=True):
            policy = policy.with_layer(name, weight_bits=weight, activation_bits=activation)
        if job.price(policy) <= job.budget:
            totals.append(total(policy))
    assert job.price(found) <= job.budget
    assert found.layers[free[0]].weight_bits == 8
    assert total(found) == pytest.approx(min(totals), rel=1e-9)


# --- training -------------------------------------------------------------------------------------------------------


def test_a_search_learns_steps_and_hands_on_the_pretrained_weights(network: NetworkShape, job: SearchJob) -> None:
    found = Limpq().search(job)
    assert (1 - job.tolerance) * job.budget <= job.price(found.policy) <= job.budget
    assert all(torch.equal(value, job.pretrained[name]) for name, value in found.state.items())
    assert found.record["effort"] == f"{job.steps} updates of 4 passes each on 28 images"
    assert found.record["passes"] == 4 * job.steps
    first, last = found.record["first_steps"], found.record["importances"]
    assert len(last) == 2 * len(network.middle)
    moved = [abs(after / before - 1) for name in first for before, after in zip(first[name], last[name], strict=True)]
    assert min(moved) > 0 and float(np.median(moved)) > 1e-3
    for name, row in last.items():
        layer, _, what = name.rpartition(".")
        step = found.quantizers[f"{layer}.{what.removesuffix('_bits')}_quantizer.clip_step"]
        assert float(step) == pytest.approx(row[BITS.index(getattr(found.policy.layers[layer], what))])


def test_an_update_adds_up_the_gradients_of_all_passes(job: SearchJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch by hand: networks that are compressed to one candidate each, and to the drawn ones."""
    one_batch = replace(job, schedule=SearchSchedule(epochs=1, batch_size=len(job.task.data.train)))
    options = LimpqOptions()
    network = StepNetwork(one_batch, options)
    steps = network.importances()
    taken: list[dict[Any, float]] = []
    monkeypatch.setattr(limpq, "limit_gradients", lambda _: taken.append(gradients(network)))
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)
    drawn: list[dict[str, int]] = []
    draw = StepNetwork._drawn

    def noted(self: StepNetwork, noise: torch.Generator) -> dict[str, int]:
        drawn.append(draw(self, noise))
        return drawn[-1]

    monkeypatch.setattr(StepNetwork, "_drawn", noted)
    network.train()
    images, labels = next(one_batch.task.data.training_batches(one_batch.schedule.batch_size, one_batch.order()))
    shapes, expected = job.task.network, dict[tuple[str, str, int], float]()
    for widths in (*({layer.name: b for layer in shapes.middle} for b in BITS), drawn[0]):
        policy = uniform(shapes, 8)
        for name, b in widths.items():
            policy = policy.with_layer(name, weight_bits=b, activation_bits=b)
        model = compress(job.float_model(), shapes, policy, quantizer=learned_step)
        for layer, kind in product(shapes.layers, ("weight", "activation")):
            target = getattr(model.get_submodule(layer.name), f"{kind}_quantizer")
            if layer.position == "middle":
                row = steps[layer.name, f"{kind}_bits"]  # type: ignore[index]
                target.clip_step.data.fill_(row[BITS.index(widths[layer.name])])
            elif isinstance(target, LearnedStep):
                own = getattr(network.model.get_submodule(layer.name), f"{kind}_quantizer")
                target.clip_step.data.copy_(own.clip_step)
        F.cross_entropy(model.train()(images), labels, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
        for name, b in widths.items():
            module = model.get_submodule(name)
            for what in ("weight_bits", "activation_bits"):
                grad = getattr(module, f"{what.removesuffix('_bits')}_quantizer").clip_step.grad
                expected[name, what, b] = expected.get((name, what, b), 0.0) + float(grad)
    assert len(taken) == len(drawn) == 1 and taken[0].keys() == expected.keys()
    for key, value in expected.items():
        assert taken[0][key] == pytest.approx(value, rel=1e-3, abs=1e-6), key


def gradients(network: StepNetwork) -> dict[Any, float]:
    return {key: float(quantizer.clip_step.grad) for key, quantizer in network._quantizers.items()}  # type: ignore[arg-type]


def test_gradients_are_limited_and_those_of_zero_are_dropped() -> None:
    large, none = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    large.grad, none.grad = torch.tensor([-3.0, 0.5, 2.0]), torch.zeros(2)
    limit_gradients([large, none, torch.nn.Parameter(torch.zeros(1))])
    assert large.grad is not None and large.grad.tolist() == [-1.0, 0.5, 1.0]
    assert none.grad is None


def test_one_candidate_leaves_no_choice(network: NetworkShape, job: SearchJob) -> None:
    assert Limpq(LimpqOptions(bits=(4,))).search(job).policy == uniform(network, 4)


def test_too_small_a_budget_is_unreachable_before_any_training(
    network: NetworkShape, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = price(network, uniform(network, 2)).bops
    monkeypatch.delattr(limpq, "StepNetwork")
    with pytest.raises(UnreachableBudgetError, match="even uniform 2 bit costs") as caught:
        Limpq().search(make_job(budget=float(least - 1), knobs={}))
    assert caught.value.nearest == least
