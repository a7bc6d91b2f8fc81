import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from bench.compression.compress import compress
from bench.compression.policy import Policy, uniform
from bench.compression.shapes import LayerShape, NetworkShape, trace
from bench.costs.counter import price
from bench.costs.measures import BOPS, Energy, Latency, Memory
from bench.matching.repair import policy_of
from bench.method import CostTerm, SearchJob, SearchResult, Task
from bench.spec.schema import AcceleratorSpec, SearchSchedule
from bench.training.loop import evaluate
from methods.sbs import (
    CostOnly,
    CostOnlyQ,
    Sbs,
    SbsOptions,
    SbsP,
    SbsQ,
    search_space,
)
from methods.sbs_extended import SbsExtended
from methods.shared.bit_sharing.layer import SharedLayer
from methods.shared.bit_sharing.network import SharedNetwork, Start
from methods.shared.bit_sharing.trace import Trace
from methods.shared.space import cheapest_policy

Vector = NDArray[np.float64]
Watched = Callable[[Task, Callable[[nn.Module], None]], Task]
MakeJob = Callable[..., SearchJob]

BITS = (2, 4, 8)
KINDS = ("weight", "activation", "filters")
GATES = dict(zip(KINDS, ("weight_quantizer", "activation_quantizer", "filter_gates"), strict=True))
THRESHOLDS = ("thresholds", "thresholds", "threshold")


def layers_of(model: nn.Module) -> dict[str, SharedLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SharedLayer)}


def numbers(tensor: Tensor | None) -> Vector:
    return np.zeros(0) if tensor is None else np.atleast_1d(tensor.detach().double().numpy())


def thresholds_of(model: nn.Module) -> dict[tuple[str, str], Vector]:
    """By layer and kind."""
    return {
        (name, kind): numbers(getattr(getattr(layer, GATES[kind]), attribute, None))
        for name, layer in layers_of(model).items()
        for kind, attribute in zip(KINDS, THRESHOLDS, strict=True)
    }


@dataclass
class Diary:
    """What every training step of a search did: gates, metrics, and the thresholds that it met."""

    gates: list[dict[tuple[str, str], Vector]] = field(default_factory=list)
    metrics: list[dict[tuple[str, str], Vector]] = field(default_factory=list)
    thresholds: list[dict[tuple[str, str], Vector]] = field(default_factory=list)
    model: nn.Module | None = None

    def __call__(self, model: nn.Module) -> None:
        self.model = model
        layers = layers_of(model)
        for book, attribute in ((self.gates, "gates"), (self.metrics, "metric")):
            book.append(
                {
                    (name, kind): numbers(getattr(getattr(layer, GATES[kind]), attribute, None))
                    for name, layer in layers.items()
                    for kind in KINDS
                }
            )
        self.thresholds.append(thresholds_of(model))


# --- the simulator: Algorithm 1 without a network ---------------------------------------------------------------


@dataclass
class Simulator:
    """Thresholds under the cost alone: SGD with Nesterov momentum, sigmoid slopes, log R.

    Weights stand still, so that metrics of weights and groups follow from them and from the gates predicted so
    far; metrics of activations depend on the images and are handed in.
    """

    shapes: NetworkShape
    model: nn.Module
    start: dict[tuple[str, str], Vector]
    term: CostTerm
    rate: float
    joint: bool
    gates: dict[tuple[str, str], Vector] = field(default_factory=dict)
    thresholds: dict[tuple[str, str], Vector] = field(default_factory=dict)
    momentum: dict[tuple[str, str], Vector] = field(default_factory=dict)
    known: dict[tuple[str, bytes], Vector] = field(default_factory=dict)

    def step(self, number: int, activation_metrics: Mapping[str, Vector]) -> float:
        """Gates of one step, their cost, and one update; returns the cost."""
        if not self.thresholds:
            self.thresholds = {key: np.zeros_like(value) for key, value in self.start.items()}
            self.momentum = {key: np.zeros_like(value) for key, value in self.thresholds.items()}
        metrics = self._open_gates(activation_metrics)
        cost = self._cost()
        drive = self.term.strength if self.term.mode == "lambda" or cost > self.term.budget else 0.0
        gradients = {key: drive / cost * self._gradient(key, metrics[key]) for key in self.thresholds}
        turn = KINDS if self.joint else (("activation",) if number % 2 == 0 else ("weight", "filters"))
        for key in self.thresholds:
            if key[1] in turn:
                self.momentum[key] = 0.9 * self.momentum[key] + gradients[key]
                self.thresholds[key] = self.thresholds[key] - self.rate * (gradients[key] + 0.9 * self.momentum[key])
        return cost

    def _open_gates(self, activation_metrics: Mapping[str, Vector]) -> dict[tuple[str, str], Vector]:
        metrics = {}
        for shape in self.shapes.middle:
            layer = self.model.get_submodule(shape.name)
            assert isinstance(layer, SharedLayer)
            metrics[shape.name, "filters"] = self._strength_of_groups(shape, layer)
            self._decide(shape.name, "filters", metrics[shape.name, "filters"])
            metrics[shape.name, "weight"] = self._weight_errors(shape, layer)
            metrics[shape.name, "activation"] = activation_metrics[shape.name]
            for kind in ("weight", "activation"):
                self._decide(shape.name, kind, metrics[shape.name, kind])
        return metrics

    def _decide(self, name: str, kind: str, metric: Vector) -> None:
        opened = (metric >= self.thresholds[name, kind]).astype(float) if len(metric) else metric
        if kind == "filters" and len(opened):
            opened[np.argmax(metric)] = 1
        self.gates[name, kind] = opened

    def _strength_of_groups(self, shape: LayerShape, layer: SharedLayer) -> Vector:
        if not len(self.thresholds[shape.name, "filters"]):
            return np.zeros(0)
        weight = np.abs(numbers(layer.weight)).reshape(shape.out_channels // 4, -1)
        return np.asarray(weight.mean(1))

    def _kept(self, name: str | None, count: int) -> NDArray[np.bool_]:
        """The filters of a layer that survive."""
        opened = self.gates.get((name or "", "filters"), np.zeros(0))
        return np.repeat(opened, 4).astype(bool) if len(opened) else np.ones(count, dtype=bool)

    def _weight_errors(self, shape: LayerShape, layer: SharedLayer) -> Vector:
        """Mean |z − D(z, s)| at 2 and at 4 bits of the surviving weights, normalised among themselves."""
        outputs = self._kept(shape.name, shape.out_channels)
        inputs = self._kept(shape.producer, shape.in_channels)
        key = (shape.name, outputs.tobytes() + inputs.tobytes())
        if key not in self.known:
            weight = numbers(layer.weight)[outputs][:, inputs]
            standard = (weight - weight.mean()) / weight.std(ddof=1)
            z = (np.clip(standard / layer.weight_quantizer.clip.item(), -1, 1) + 1) / 2
            counts = [2**width - 1 for width in BITS[:-1]]
            self.known[key] = np.array([np.abs(z - np.ceil(z * n - 0.5) / n).mean() for n in counts])
        return self.known[key]

    def _cost(self) -> float:
        total = 0.0
        for shape in self.shapes.layers:
            macs = float(math.prod(shape.kernel) * math.prod(shape.out_size))
            macs *= self._filters(shape.producer, shape.in_channels) * self._filters(shape.name, shape.out_channels)
            middle = shape.position == "middle"
            total += macs * (
                self._width(shape.name, "weight") * self._width(shape.name, "activation") if middle else 64
            )
        return total

    def _filters(self, name: str | None, full: int) -> float:
        opened = self.gates.get((name or "", "filters"), np.zeros(0))
        return 4 * float(opened.sum()) if len(opened) else full

    def _width(self, name: str, kind: str) -> float:
        four, eight = self.gates[name, kind]
        return float(2 + four * (2 + 4 * eight))

    def _gradient(self, key: tuple[str, str], metric: Vector) -> Vector:
        """dR/dα: for each gate the cost with it less the cost without, times the slope."""
        slopes = 1 / (2 + 2 * np.cosh(metric - self.thresholds[key]))
        gains = np.zeros_like(metric)
        for position in range(len(metric)):
            ends = []
            for value in (1.0, 0.0):
                kept = self.gates[key][position]
                self.gates[key][position] = value
                ends.append(self._cost())
                self.gates[key][position] = kept
            gains[position] = ends[0] - ends[1]
        shared = np.atleast_1d(-(gains * slopes).sum()) if key[1] == "filters" and len(metric) else -gains * slopes
        return np.asarray(shared)


def frozen_search(method: type[Sbs], job: SearchJob, watched: Watched, **options: Any) -> tuple[SearchResult, Diary]:
    """A search of 64 steps whose weights stand still, and its diary."""
    diary = Diary()
    schedule = SearchSchedule(epochs=2, batch_size=9, lr=1e-12)
    result = method(SbsOptions(**options)).search(replace(job, task=watched(job.task, diary), schedule=schedule))
    return result, diary


@pytest.mark.parametrize(
    ("method", "match", "strength", "gate_training"),
    [
        pytest.param(CostOnly, "lambda", 1.0, "alternating", id="joint compression, lambda"),
        pytest.param(CostOnly, "hinge", 2.0, "joint", id="joint compression, hinge, joint updates"),
        pytest.param(CostOnlyQ, "lambda", 0.7, "joint", id="quantization, lambda, joint updates"),
        pytest.param(CostOnlyQ, "hinge", 1.0, "alternating", id="quantization, hinge"),
    ],
)
def test_search_by_cost_alone_is_the_simulators_gate_for_gate(
    method: type[Sbs], match: str, strength: float, gate_training: str, make_job: MakeJob, watched: Watched
) -> None:
    job = make_job(match=match, knobs={"strength": strength})
    result, diary = frozen_search(method, job, watched, gate_training=gate_training)
    assert diary.model is not None
    rate = 1e-3 * 10_530 / 64
    simulator = Simulator(
        job.task.network, diary.model, diary.thresholds[0], job.cost_term(), rate, gate_training == "joint"
    )
    costs = []
    for number, (gates, metrics) in enumerate(zip(diary.gates, diary.metrics, strict=True)):
        of_inputs = {name: metric for (name, kind), metric in metrics.items() if kind == "activation"}
        costs.append(simulator.step(number, of_inputs))
        for key, expected in gates.items():
            assert simulator.gates[key].tolist() == expected.tolist(), f"step {number}, {key}"
    assert len(costs) == 64
    assert costs == result.record["cost_per_step"]
    assert costs[0] > job.budget > costs[-1]
    assert sum(int((a[key] != b[key]).sum()) for a, b in pairwise(diary.gates) for key in a) >= 20


def test_the_task_moves_thresholds_that_feel_it(make_job: MakeJob, watched: Watched) -> None:
    """The simulator would not describe a search that listens to the task."""
    alone, listening = (short_search(method, make_job(), watched)[1] for method in (CostOnlyQ, SbsQ))
    ways = [np.concatenate(list(diary.thresholds[2].values())) for diary in (alone, listening)]
    assert np.abs(ways[0] - ways[1]).max() > 1e-3


# --- the cost term ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "cost", "expected"),
    [
        ("hinge", 300.0, 0.7 * math.log(3)),
        ("hinge", 100.0, 0.0),
        ("hinge", 50.0, 0.0),
        ("lambda", 300.0, 0.7 * math.log(3)),
        ("lambda", 50.0, 0.7 * math.log(0.5)),
    ],
)
def test_cost_term(make_job: MakeJob, match: str, cost: float, expected: float) -> None:
    term = make_job(match=match, budget=100.0, knobs={"strength": 0.7}).cost_term()
    relaxed = torch.tensor(cost, dtype=torch.float64, requires_grad=True)
    value = term(relaxed, relaxed.detach())
    (gradient,) = torch.autograd.grad(value, relaxed)
    assert value.item() == pytest.approx(expected)
    assert gradient.item() == pytest.approx(0.0 if expected == 0 else 0.7 / cost)


def test_hinge_looks_at_the_discrete_network(make_job: MakeJob) -> None:
    term = make_job(budget=100.0).cost_term(strength=1.0)
    dear, cheap = torch.tensor(150.0), torch.tensor(90.0)
    assert term(dear, cheap).item() == 0
    assert term(cheap, dear).item() == pytest.approx(math.log(0.9))


# --- whose turn it is -------------------------------------------------------------------------------------------


def short_search(method: type[Sbs], job: SearchJob, watched: Watched, **options: Any) -> tuple[SearchResult, Diary]:
    diary = Diary()
    return method(method.Options(**options)).search(replace(job, task=watched(job.task, diary))), diary


def moved(diary: Diary, step: int) -> dict[str, set[bool]]:
    """By kind, whether the thresholds moved in a step: all, none or some."""
    before, after = diary.thresholds[step], diary.thresholds[step + 1]
    found: dict[str, set[bool]] = {kind: set() for kind in KINDS}
    for name, kind in before:
        found[kind].update((before[name, kind] != after[name, kind]).tolist())
    return found


@pytest.mark.parametrize("gate_training", ["alternating", "joint"])
def test_thresholds_take_turns(gate_training: str, make_job: MakeJob, watched: Watched) -> None:
    """Algorithm 1 counts from 1, and moves those of activations where the count is odd."""
    _, diary = short_search(Sbs, make_job(), watched, gate_training=gate_training, threshold_lr="paper")
    assert len(diary.thresholds) == 10
    for step in range(9):
        first = gate_training == "joint" or step % 2 == 0
        second = gate_training == "joint" or step % 2 == 1
        assert moved(diary, step) == {"weight": {second}, "filters": {second}, "activation": {first}}


def test_thresholds_of_one_kind_move_in_every_update(make_job: MakeJob, watched: Watched) -> None:
    """Else SBS-P would go half of its rate × updates."""
    _, diary = short_search(SbsP, make_job(match="lambda"), watched, threshold_lr="paper")
    assert all(moved(diary, step) == {"weight": set(), "filters": {True}, "activation": set()} for step in range(9))


def test_threshold_rate(make_job: MakeJob, watched: Watched) -> None:
    """The first step goes 1.9 × rate × gradient with Nesterov momentum: alike in all searches but for the rate."""
    job = make_job(schedule=SearchSchedule(epochs=1, batch_size=96))
    rates: Mapping[Any, float] = {"scaled": 3.51, "paper": 1e-3, 0.02: 0.02}
    ways = []
    for option, rate in rates.items():
        result, diary = short_search(SbsQ, job, watched, threshold_lr=option)
        assert result.record["threshold_lr"] == pytest.approx(rate)
        ways.append(np.concatenate(list(diary.thresholds[1].values())) / rate)
    assert ways[0].any()
    assert ways[1] == pytest.approx(ways[0], rel=1e-4)
    assert ways[2] == pytest.approx(ways[0], rel=1e-4)


def test_paper_length_search_has_the_papers_rate() -> None:
    assert SbsOptions().threshold_rate(10_530) == 1e-3


# --- the start --------------------------------------------------------------------------------------------------


def test_calibrated_clips_start_near_the_pretrained_accuracy(
    task: Task, make_job: MakeJob, pretrained: Mapping[str, Tensor]
) -> None:
    job = make_job(task, schedule=SearchSchedule(epochs=1, batch_size=128))
    calibrated, paper = (
        SbsQ(SbsOptions(clip_init=clip_init)).search(job).record["start_top1"] for clip_init in ("calibrated", "paper")
    )
    model = task.make_model()
    model.load_state_dict(dict(pretrained))
    reached = evaluate(model, task.data, task.data.validation).top1
    assert calibrated > reached - 5 > 20
    assert paper < calibrated - 10


# --- the last decision ------------------------------------------------------------------------------------------


def plain_network(job: SearchJob) -> SharedNetwork:
    settings = SbsOptions().layer_settings()
    space = search_space(job.task.network, SbsOptions(), prune=True)
    return SharedNetwork(job, space, settings, Start(state=job.pretrained, clips={}))


@pytest.mark.parametrize(
    ("script", "median"),
    [
        ([5.0] * 27 + [0.1, 0.1, 9.0], 0.1),
        ([0.1] * 27 + [9.0, 0.1, 9.0], 9.0),
        ([9.0] * 18 + [0.1, 9.0], 0.1),
        ([9.0] * 4 + [0.2], 0.2),
    ],
)
def test_majority_is_the_median_over_the_last_tenth(script: list[float], median: float, make_job: MakeJob) -> None:
    """Of two in two the open gate wins; what came before does not count."""
    network = plain_network(make_job())
    trace = Trace(network, len(script))
    thresholds = [p for name, p in network.model.named_parameters() if "threshold" in name]
    for value in script:
        with torch.no_grad():
            for threshold in thresholds:
                threshold.fill_(value)
        trace.add(torch.zeros(()))
    trace.restore_median()
    for threshold in thresholds:
        assert threshold.flatten().tolist() == pytest.approx([median] * threshold.numel())


@dataclass
class Ending:
    """What is known of a search's end: thresholds after each step, activation metrics of the calibration pass."""

    diary: Diary = field(default_factory=Diary)
    last: dict[tuple[str, str], Vector] = field(default_factory=dict)
    metrics: list[dict[str, Vector]] = field(default_factory=list)

    def report(self, figures: Mapping[str, float]) -> None:
        assert self.diary.model is not None
        self.last = thresholds_of(self.diary.model)

    def after_steps(self, key: tuple[str, str]) -> list[Vector]:
        return [thresholds[key] for thresholds in self.diary.thresholds[1:]] + [self.last[key]]

    def watch_calibration(self, task: Task) -> Task:
        def hook(model: nn.Module, inputs: Any, output: Any) -> None:
            if model.training and not torch.is_grad_enabled():
                found = {name: numbers(layer.activation_quantizer.metric) for name, layer in layers_of(model).items()}
                self.metrics.append(found)

        def make_model() -> nn.Module:
            model = task.make_model()
            model.register_forward_hook(hook)
            return model

        return replace(task, make_model=make_model)


@pytest.mark.parametrize("final_gates", ["majority", "last"])
def test_decisions_are_margins_at_the_deciding_thresholds(
    final_gates: Any, make_job: MakeJob, watched: Watched
) -> None:
    ending = Ending()
    job = make_job(schedule=SearchSchedule(epochs=1, batch_size=10), report=ending.report, match="lambda")
    observed = watched(ending.watch_calibration(job.task), ending.diary)
    result = Sbs(SbsOptions(final_gates=final_gates)).search(replace(job, task=observed))
    assert ending.diary.model is not None
    layers = layers_of(ending.diary.model)
    differing = 0
    for decision in result.decisions:
        layer = layers[decision.layer]
        kind = {"weight_bits": "weight", "activation_bits": "activation", "filters": "filters"}[decision.what]
        recent = np.stack(ending.after_steps((decision.layer, kind))[-3:])
        deciding = recent[-1] if final_gates == "last" else np.sort(recent, axis=0)[1]
        differing += int((deciding != recent[-1]).any())
        if kind == "activation":
            metric = np.mean([metrics[decision.layer] for metrics in ending.metrics[-4:]], axis=0)
        elif kind == "weight":
            metric = numbers(layer.weight_quantizer.metric)
        else:
            metric = np.array([layer.weight[list(decision.filters)].abs().mean().item()])
        assert decision.margins == pytest.approx((metric - deciding).tolist(), abs=1e-6)
        opened = [margin >= 0 for margin in decision.margins]
        assert decision.chosen == ([*opened, False].index(False))
    assert (differing > 0) == (final_gates == "majority")


# --- the result -------------------------------------------------------------------------------------------------


def assert_same(one: SearchResult, two: SearchResult) -> None:
    """To the last bit."""
    assert one.policy == two.policy
    assert list(one.decisions) == list(two.decisions)
    assert one.clips == two.clips
    assert one.record == two.record
    assert one.state.keys() == two.state.keys()
    assert all(torch.equal(one.state[name], two.state[name]) for name in one.state)


def test_search_repeats_itself_to_the_last_bit(make_job: MakeJob) -> None:
    """Whatever the global generator is at; another seed is another search."""
    results = []
    few = SearchSchedule(epochs=1, batch_size=48)
    for global_seed, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(global_seed)
        results.append(Sbs(SbsOptions()).search(make_job(seed=seed, schedule=few)))
    assert_same(*results[:2])
    first, _, other = results
    assert any(not torch.equal(first.state[name], other.state[name]) for name in other.state)


VARIANTS: Sequence[Mapping[str, Any]] = [
    {},
    {"bits": (3, 6, 12), "group_size": 5},
    {"gate_place": "norm_output"},
    {"weight_normalization": False},
    {"search_downsampling": False, "gate_training": "joint"},
]
EXTENDED: Sequence[Mapping[str, Any]] = [
    {"clip_sharing": "per_width"},
    {"metric_scale": "start", "threshold_decay": "linear"},
    {"gate_probes": 0.3},
    {"metric_scale": "hessian", "clip_sharing": "per_width", "threshold_decay": "linear"},
]


class ExtendedByCost(SbsExtended, CostOnly):
    """Thresholds that never feel the task, with options beyond the paper."""


@pytest.mark.parametrize(
    ("method", "options"),
    [(CostOnly, options) for options in VARIANTS] + [(ExtendedByCost, options) for options in EXTENDED],
    ids=str,
)
def test_result_is_the_network_that_was_searched(
    method: type[Sbs], options: Mapping[str, Any], make_job: MakeJob, watched: Watched
) -> None:
    """Policy, weights and clip values rebuild it, physically reduced; the pretrained weights are left alone."""
    before = {name: value.clone() for name, value in make_job().pretrained.items()}
    job = make_job(knobs={"strength": 3.0}, match="lambda")
    result, diary = short_search(method, job, watched, threshold_lr=0.1, **options)
    assert diary.model is not None
    model = job.task.make_model()
    model.load_state_dict(dict(result.state))
    rebuilt = compress(
        model,
        job.task.network,
        result.policy,
        clips=result.clips,
        normalized_weights=result.normalized_weights,
    )
    images = job.task.data.calibration_batches(1, 8)[0].double()
    with torch.no_grad():
        assert torch.allclose(
            diary.model.double().eval()(images), rebuilt.double().eval()(images), rtol=1e-5, atol=1e-5
        )
    assert any(choice.kept_filters is not None for choice in result.policy.layers.values())
    assert any(not torch.equal(result.state[name], before[name]) for name in before)
    assert all(torch.equal(job.pretrained[name], before[name]) for name in before)


MEASURES = {
    "bops": BOPS,
    "memory": Memory(),
    "latency": Latency(AcceleratorSpec()),
    "energy": Energy(AcceleratorSpec()),
}


@pytest.mark.parametrize("name", MEASURES)
def test_what_follows_a_pruned_layer_is_pruned_with_it_in_every_measure(
    name: str, mobile_job: SearchJob, watched: Watched
) -> None:
    measure, shapes = MEASURES[name], mobile_job.task.network
    budget = measure.price(shapes, uniform(shapes, 4))
    job = replace(mobile_job, measure=measure, budget=budget, knobs={"strength": 3.0}, match="lambda")
    result, diary = short_search(CostOnly, job, watched, threshold_lr=1.0)
    assert diary.model is not None
    per_step = result.record["cost_per_step"]
    assert per_step[0] == pytest.approx(measure.price(shapes, open_policy(result, shapes)), rel=1e-6)
    assert measure.price(shapes, result.policy) < per_step[0]
    dropped = {
        name
        for name, choice in result.policy.layers.items()
        if choice.kept_filters is not None and len(choice.kept_filters) < shapes[name].out_channels
    }
    assert dropped & {"first.expand.0", "second.expand.0"}
    model = job.task.make_model()
    model.load_state_dict(dict(result.state))
    rebuilt = compress(model, shapes, result.policy, clips=result.clips)
    images = job.task.data.calibration_batches(1, 8)[0].double()
    with torch.no_grad():
        assert torch.allclose(
            diary.model.double().eval()(images), rebuilt.double().eval()(images), rtol=1e-5, atol=1e-5
        )


def test_record_tells_the_way(make_job: MakeJob) -> None:
    told: list[Mapping[str, float]] = []
    job = make_job(schedule=SearchSchedule(epochs=2, batch_size=28), report=told.append)
    record = Sbs(SbsOptions()).search(job).record
    per_step = record["cost_per_step"]
    assert len(per_step) == job.steps == 20
    assert [entry["cost"] for entry in record["history"]] == [per_step[9], per_step[19]]
    assert [entry["budget_share"] * job.budget for entry in record["history"]] == pytest.approx(
        [per_step[9], per_step[19]]
    )
    assert [entry["epoch"] for entry in told] == [1, 2]
    last = record["bits_per_epoch"][-1]
    assert set(last) == {shape.name for shape in job.task.network.middle}
    assert all(weight in BITS and activation in BITS for weight, activation, _ in last.values())


# --- what each method may do ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "decided", "widths"),
    [
        (Sbs, {"weight_bits", "activation_bits", "filters"}, {2, 4, 8}),
        (CostOnly, {"weight_bits", "activation_bits", "filters"}, {2, 4, 8}),
        (SbsQ, {"weight_bits", "activation_bits"}, {2, 4, 8}),
        (SbsP, {"filters"}, {32}),
    ],
)
def test_methods_choose_what_they_say(
    method: type[Sbs], decided: set[str], widths: set[int], make_job: MakeJob
) -> None:
    job = make_job(knobs={"strength": 3.0}, match="lambda")
    shapes = job.task.network
    result = method(SbsOptions()).search(job)
    assert {decision.what for decision in result.decisions} == decided
    assert method.capabilities.prunes == ("filters" in decided)
    assert method.capabilities.mixed_precision == ("weight_bits" in decided)
    middle = [result.policy.layers[shape.name] for shape in shapes.middle]
    edges = [result.policy.layers[shape.name] for shape in shapes.layers if shape.position != "middle"]
    assert {choice.weight_bits for choice in middle} | {choice.activation_bits for choice in middle} <= widths
    assert {(choice.weight_bits, choice.activation_bits) for choice in edges} == {
        (32, 32) if widths == {32} else (8, 8)
    }
    assert "filters" in decided or not any(choice.kept_filters for choice in middle)
    cheapest = price(shapes, method(SbsOptions()).cheapest(shapes)).bops
    assert cheapest <= price(shapes, result.policy).bops < price(shapes, open_policy(result, shapes)).bops


def open_policy(result: SearchResult, shapes: NetworkShape) -> Policy:
    """Every decision at its dearest option."""
    dearest = [replace(decision, chosen=len(decision.options) - 1) for decision in result.decisions]
    layers = {
        name: replace(
            choice, kept_filters=None if choice.kept_filters is None else tuple(range(shapes[name].out_channels))
        )
        for name, choice in result.policy.layers.items()
    }
    return policy_of(replace(result.policy, layers=layers), dearest)


@pytest.mark.parametrize("method", [Sbs, SbsQ, SbsP, CostOnly])
@pytest.mark.parametrize("match", ["hinge", "lambda"])
def test_strength_is_the_one_knob(method: type[Sbs], match: Any) -> None:
    (name,) = method().knobs(match)
    knob = method().knobs(match)[name]
    assert name == "strength"
    assert knob.log
    assert 0 < knob.low < knob.high


@pytest.mark.parametrize("search_downsampling", [True, False])
def test_shortcuts_are_searched_or_fixed_at_the_widest(search_downsampling: bool, network: NetworkShape) -> None:
    options = SbsOptions(search_downsampling=search_downsampling)
    for name, choice in search_space(network, options, prune=True).items():
        fixed = "downsample" in name and not search_downsampling
        assert choice.weight_bits == choice.activation_bits == ((8,) if fixed else BITS)
        assert choice.group_size == (4 if name.endswith("conv1") else 0)


@pytest.mark.parametrize("group_size", [1, 4, 5, 16, 100])
def test_nothing_in_the_space_is_cheaper_than_the_cheapest(group_size: int, network: NetworkShape) -> None:
    """Of each layer at least one group stays, at best the smallest."""
    space = search_space(network, SbsOptions(group_size=group_size), prune=True)
    policy = cheapest_policy(network, space)
    for shape in network.middle:
        choice = policy.layers[shape.name]
        assert (choice.weight_bits, choice.activation_bits) == (2, 2)
        if shape.prunable:
            sizes = [
                len(range(shape.out_channels)[s : s + group_size]) for s in range(0, shape.out_channels, group_size)
            ]
            assert len(choice.kept_filters or range(shape.out_channels)) == min(sizes)


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (2, 5)}, "5 is not a multiple of 2"),
        ({"bits": (4, 2)}, "2 is not a multiple of 4"),
        ({"bits": (4, 4)}, "4 is not a multiple of 4"),
        ({"bits": ()}, "bit candidates"),
        ({"bits": (8, 32)}, "less than or equal to 16"),
        ({"bits": (0, 4)}, "greater than or equal to 1"),
        ({"group_size": 0}, "group_size"),
        ({"threshold_lr": 0.0}, "threshold_lr"),
        ({"threshold_lr": "fast"}, "threshold_lr"),
        ({"gate_place": "output"}, "gate_place"),
        ({"gate_training": "both"}, "gate_training"),
        ({"clip_init": "one"}, "clip_init"),
        ({"final_gates": "first"}, "final_gates"),
        ({"gate_probes": 0.3}, "gate_probes"),
        ({"lambda": 1.0}, "lambda"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SbsOptions(**options)


@pytest.mark.parametrize("bits", [(2, 4, 8), (3, 6, 12), (2, 4), (4,)])
def test_chains_of_multiples_are_taken(bits: tuple[int, ...]) -> None:
    assert SbsOptions(bits=bits).bits == bits


class Dense(nn.Sequential):
    """A network with a linear layer among those that are searched."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 10))


def test_linear_layers_are_searched(small_task: Task, make_job: MakeJob) -> None:
    shapes = trace(Dense(), (1, 8, 8), name="dense", dataset="digits")
    job = make_job(replace(small_task, network=shapes, make_model=Dense), state=Dense().state_dict())
    result = Sbs(SbsOptions()).search(job)
    assert [(d.layer, d.what) for d in result.decisions] == [("2", "weight_bits"), ("2", "activation_bits")]
    assert result.state["2.weight"].shape == (8, 72)
    # What it reads comes from a convolution without ReLU: the range of its input has an offset.
    assert set(result.clips) >= {"2.weight", "2.activation", "2.offset", "4.weight", "4.activation"}
    assert "4.offset" not in result.clips
