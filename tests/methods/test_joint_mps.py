"""Joint MPS: one softmax over bits and zero, its cost against enumeration, and a problem whose best policy is known."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from bench.compression.compress import calibrate, compress
from bench.compression.policy import uniform
from bench.compression.quantizer import positive, quantize_literal
from bench.compression.shapes import trace
from bench.costs.measures import BOPS, Energy, Latency, Measure, Memory
from bench.method import SearchJob, Task
from bench.spec.schema import AcceleratorSpec, Schedule, SearchSchedule
from bench.spec.seeds import generator
from bench.training.loop import fit
from methods.joint_mps import JointMps, JointMpsOptions, JointNetwork, Temperature, ZeroOptions
from methods.shared.networks.paths import MixedLayer

MakeJob = Callable[..., SearchJob]
Watched = Callable[[Task, Callable[[nn.Module], None]], Task]
MEASURES = [BOPS, Memory(), Latency(AcceleratorSpec()), Energy(AcceleratorSpec())]
BITS = (2, 4, 8)


class Plain(nn.Module):
    """Two layers without normalisations, of which the first may lose filters."""

    def __init__(self, *, norms: bool = False) -> None:
        super().__init__()
        kind: Callable[[], nn.Module] = (lambda: nn.BatchNorm2d(8)) if norms else nn.Identity
        self.stem, self.stem_norm = nn.Conv2d(1, 8, 3, stride=2, padding=1), kind()
        self.wide, self.wide_norm = nn.Conv2d(8, 8, 3, padding=1), kind()
        self.reader, self.reader_norm = nn.Conv2d(8, 8, 3, padding=1), kind()
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(self.reader_norm(self.reader(F.relu(self.wide_norm(self.wide(x))))))
        return self.fc(x.amax((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def plain_job(small_task: Task, make_job: MakeJob) -> SearchJob:
    torch.manual_seed(0)
    shapes = trace(Plain(), (1, 8, 8), name="plain", dataset="digits")
    assert [layer.name for layer in shapes.layers if layer.prunable] == ["wide"]
    return make_job(replace(small_task, network=shapes, make_model=Plain), state=Plain().state_dict())


def network_of(job: SearchJob, group_size: int = 4) -> JointNetwork:
    options = JointMpsOptions(group_size=group_size)
    return JointNetwork(job, BITS, JointMps(options).space(job.task.network))


def scrambled(network: JointNetwork) -> JointNetwork:
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for logits in network.logits():
            logits.copy_(torch.randn(logits.shape, generator=source))
    return network


# --- the softmax --------------------------------------------------------------------------------------------------


def test_a_group_has_one_softmax_over_zero_and_the_bits_of_its_layer(plain_job: SearchJob) -> None:
    network = scrambled(network_of(plain_job))
    with torch.no_grad():
        network.draw(0.7, None)
    layer, zeros = network.layers["wide"], network.zeros["wide"]
    for group in range(2):
        theta = torch.softmax(torch.cat([zeros.logits[group : group + 1], layer.logits[0]]).detach() / 0.7, 0)
        assert float(zeros.kept[group]) == pytest.approx(1 - float(theta[0]), abs=1e-6)
        assert torch.allclose(zeros.kept[group] * layer.probabilities[0], theta[1:], atol=1e-6)


def test_the_first_probabilities_are_those_of_the_code(plain_job: SearchJob) -> None:
    network = network_of(plain_job)
    expected = torch.softmax(torch.tensor([0.0, 0.25, 0.5, 1.0]), 0)
    assert torch.allclose(network.zeros["wide"].kept, 1 - expected[:1])
    assert float(expected[0]) == pytest.approx(0.15, abs=0.001)
    assert torch.allclose(network.layers["wide"].probabilities, expected[1:] / expected[1:].sum())


def test_a_reader_multiplies_each_filter_by_the_probability_that_it_stays(plain_job: SearchJob) -> None:
    network = scrambled(network_of(plain_job))
    calibrate(network.model, plain_job.task.data.calibration_batches(1, 12)[0])
    network.draw(1.0, None)
    layer = network.layers["reader"]
    assert isinstance(layer, MixedLayer) and layer.bias is not None
    x = torch.rand(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    p, q = layer.probabilities
    gates = network.zeros["wide"].kept.repeat_interleave(4).view(1, -1, 1, 1)

    def mixture(values: Tensor, odds: Tensor, quantizers: nn.ModuleList, kind: str) -> Tensor:
        parts = [
            odd * quantize_literal(values, positive(quantizer.clip), bits, kind)  # type: ignore[arg-type]
            for odd, quantizer, bits in zip(odds, quantizers, BITS, strict=True)
        ]
        return torch.stack(parts).sum(0)

    of_weight = mixture(layer.weight[0], p, layer.weight_quantizers, "weight")
    of_input = mixture(x, q, layer.activation_quantizers, "activation")
    assert torch.allclose(layer(x), F.conv2d(of_input * gates, of_weight, layer.bias, padding=1), atol=1e-5)


def test_the_first_network_is_not_shrunk(plain_job: SearchJob) -> None:
    """Dividing the weights once makes up for the first probabilities, where no normalisation does."""
    network = network_of(plain_job)
    images = plain_job.task.data.calibration_batches(1, 12)[0]
    calibrate(network.model, images)
    with torch.no_grad():
        outputs = network.model(images)
        reader: Any = network.layers["reader"]
        zeros = network.zeros["wide"]
        kept = zeros.kept[0].clone()
        zeros.kept = torch.ones_like(zeros.kept)
        reader.weight[0].mul_(kept)
        for quantizer in reader.weight_quantizers:
            quantizer.clip.mul_(kept)
        assert torch.allclose(network.model(images), outputs, atol=1e-5)


def test_sure_choices_give_the_reduced_and_quantized_network(plain_job: SearchJob) -> None:
    network = network_of(plain_job)
    with torch.no_grad():
        network.zeros["wide"].logits.copy_(torch.tensor([90.0, -90.0]))
        for number, layer in enumerate(network.layers.values()):
            layer.logits.copy_(torch.tensor([[0.0, 40.0, 0.0], [40.0 * number, 0.0, 30.0]]))
    network.draw(1.0, None)
    images = plain_job.task.data.calibration_batches(1, 12)[0]
    calibrate(network.model, images)
    policy = network.policy(network.decisions())
    assert policy.layers["wide"].kept_filters == (4, 5, 6, 7)
    assert (policy.layers["wide"].activation_bits, policy.layers["reader"].activation_bits) == (8, 2)
    model = plain_job.task.make_model()
    model.load_state_dict(network.state(policy, plain_job.pretrained))
    reduced = compress(model, plain_job.task.network, policy, clips=network.clips(policy)).eval()
    with torch.no_grad():
        assert torch.allclose(reduced(images), network.model.eval()(images), atol=1e-5)


# --- the cost -----------------------------------------------------------------------------------------------------


def test_the_expected_cost_is_that_of_all_policies_by_their_probability(plain_job: SearchJob) -> None:
    """Of 324 policies; those without any filter cost nothing in both layers."""
    network = scrambled(network_of(plain_job))
    network.draw(1.0, None)
    wide, reader = network.layers["wide"].probabilities.tolist(), network.layers["reader"].probabilities.tolist()
    kept, shapes = network.zeros["wide"].kept.tolist(), plain_job.task.network
    edge = plain_job.price(uniform(shapes, 2)) - 4 * (shapes["wide"].macs + shapes["reader"].macs)
    total = 0.0
    for w, a, v, b in product(range(3), repeat=4):
        for first, second in product((0, 1), repeat=2):
            odds = wide[0][w] * wide[1][a] * reader[0][v] * reader[1][b]
            for stays, probability in zip((first, second), kept, strict=True):
                odds *= probability if stays else 1 - probability
            bits = shapes["wide"].macs * BITS[w] * BITS[a] + shapes["reader"].macs * BITS[v] * BITS[b]
            total += odds * (edge + bits * (first + second) / 2)
    assert float(network.expected_cost()) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_the_actual_cost_is_that_of_the_policy(mobile_job: SearchJob, measure: Measure) -> None:
    job = replace(mobile_job, measure=measure)
    network = scrambled(network_of(job, group_size=8))
    policy = network.policy(network.decisions())
    removed = [name for name, choice in policy.layers.items() if choice.kept_filters is not None]
    assert removed
    tolerance = 0.05 if measure.on_accelerator else 1e-9  # a table is interpolated between its channel counts
    assert float(network.actual_cost()) == pytest.approx(job.price(policy), rel=tolerance)


def test_a_group_goes_where_zero_has_the_largest_logit_but_never_the_last(plain_job: SearchJob) -> None:
    network = network_of(plain_job, group_size=2)
    for logits, kept in (
        ([0.9, 1.1, 1.0, 3.0], (0, 1, 4, 5)),
        ([2.0, 1.5, 3.0, 4.0], (2, 3)),
        ([0.0, 0.0, 0.0, 0.0], None),
    ):
        with torch.no_grad():
            network.zeros["wide"].logits.copy_(torch.tensor(logits))
        assert network.policy(network.decisions()).layers["wide"].kept_filters == kept


# --- the search ---------------------------------------------------------------------------------------------------


def test_the_temperature_falls_from_one_to_its_end() -> None:
    temperature = Temperature(0.01, 5)
    values = [temperature.advance() for _ in range(3)]
    again = Temperature(0.01, 5)
    again.load_state_dict(temperature.state_dict())
    values += [again.advance() for _ in range(2)]
    assert values == pytest.approx([1, 10**-0.5, 0.1, 10**-1.5, 0.01])


def test_weights_and_logits_move_in_the_same_step(make_job: MakeJob, small_task: Task, watched: Watched) -> None:
    seen: list[list[Tensor]] = []

    def look(model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, MixedLayer)]
        zeros = [module.logits for module in model.modules() if isinstance(module, ZeroOptions)]
        seen.append([value.detach().clone() for layer in layers for value in (layer.logits, layer.weight[0])])
        seen[-1] += [logits.detach().clone() for logits in zeros]

    JointMps().search(make_job(task=watched(small_task, look)))
    assert len(seen) == 10
    for before, after in itertools.pairwise(seen):
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("strength", "least"), [(1e3, True), (0.0, False)])
def test_the_extremes_of_the_strength(make_job: MakeJob, strength: float, least: bool) -> None:
    schedule = SearchSchedule(epochs=3, batch_size=28)
    job = make_job(knobs={"strength": strength}, match="lambda", schedule=schedule)
    result = JointMps().search(job)
    cheapest = job.price(JointMps().cheapest(job.task.network))
    assert (job.price(result.policy) == cheapest) == least
    assert all(math.isfinite(entry["loss"]) for entry in result.record["history"])


def quiet(figures: Mapping[str, float]) -> None:
    """A report that nobody reads."""


@pytest.fixture(scope="module")
def half_idle(task: Task) -> SearchJob:
    """A trained network of which nothing reads the filters 0, 1, 6 and 7 of one layer."""

    def make() -> Plain:
        return Plain(norms=True)

    shapes = trace(make(), task.data.image_shape, name="half_idle", dataset="digits")
    torch.manual_seed(0)
    model = make()
    fit(model, task.data, Schedule(epochs=3, batch_size=64, decay="one_cycle"), generator("tests"), quiet)
    with torch.no_grad():
        model.reader.weight[:, [0, 1, 6, 7]] = 0
    fit(model, task.data, Schedule(epochs=2, batch_size=64, lr=1e-3), generator("tests"), quiet)
    with torch.no_grad():
        model.reader.weight[:, [0, 1, 6, 7]] = 0
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return SearchJob(
        task=Task(data=task.data, network=shapes, make_model=make),
        pretrained=state,
        knobs={"strength": 0.1},
        budget=1.0,
        match="lambda",
        schedule=SearchSchedule(epochs=3, batch_size=64, lr=1e-3),
        seed=0,
        report=quiet,
    )


def test_the_groups_that_nothing_reads_are_removed_first(half_idle: SearchJob) -> None:
    """The best half of four groups is known."""
    options = JointMpsOptions(group_size=2, bits=(4, 8))
    result = JointMps(options).search(half_idle)
    logits = dict(zip([(0, 1), (2, 3), (4, 5), (6, 7)], result.record["zero_logits"]["wide"], strict=True))
    assert min(logits[0, 1], logits[6, 7]) > max(logits[2, 3], logits[4, 5])
    filters = [decision for decision in result.decisions if decision.what == "filters"]
    by_margin = [decision.filters for decision in sorted(filters, key=lambda decision: decision.margins)]
    assert set(by_margin[:2]) == {(0, 1), (6, 7)} and len(by_margin) == 3


@pytest.mark.parametrize("changes", [{"temperature_end": 0.0}, {"temperature_end": 2.0}, {"group_size": 0}])
def test_options_have_bounds(changes: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        JointMpsOptions.model_validate(changes)
