"""The common parts of searches by gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from bench.api import (
    Decision,
    LayerShape,
    NetworkShape,
    Policy,
    QuantizedLayer,
    SearchJob,
    UniformQuantizer,
    evaluate,
    policy_of,
    uniform,
)
from methods.shared.decisions import bits_decision
from methods.shared.search import (
    SearchNetwork,
    calibrate_quantizers,
    prepare,
    replace_layers,
    result_of,
    start_accuracy,
)

MakeJob = Callable[..., SearchJob]


class Fixed(SearchNetwork):
    """A network that is quantized to 4 bits and decides for 2."""

    def __init__(self, job: SearchJob) -> None:
        self.network, self.model = job.task.network, job.float_model()
        self.order: list[tuple[str, int]] = []

        def searched(module: nn.Module, shape: LayerShape, before: object) -> QuantizedLayer:
            self.order.append((shape.name, len(before)))  # type: ignore[arg-type]
            weight, activation = (UniformQuantizer(bits=4, kind=kind) for kind in ("weight", "activation"))  # type: ignore[arg-type]
            return QuantizedLayer(module, weight, activation)

        self.layers = replace_layers(self.model, self.network, searched)

    def decisions(self) -> list[Decision]:
        return [bits_decision(name, "weight_bits", (2, 4), [1.0, 0.0]) for name in self.layers]

    def policy(self, decisions: Sequence[Decision]) -> Policy:
        return policy_of(uniform(self.network, 4), decisions)


def test_every_layer_is_replaced_in_order(make_job: MakeJob, network: NetworkShape) -> None:
    fixed = Fixed(make_job())
    middle = [layer.name for layer in network.middle]
    assert list(fixed.layers) == middle
    assert fixed.order == [(name, index) for index, name in enumerate(middle)]
    assert all(isinstance(fixed.model.get_submodule(layer.name), QuantizedLayer) for layer in network.layers)


def test_the_start_is_measured_after_calibration_and_statistics(make_job: MakeJob) -> None:
    job = make_job()
    prepared, step_by_step = Fixed(job), Fixed(job)
    found = prepare(job, prepared.model)
    calibrate_quantizers(job, step_by_step.model)
    assert start_accuracy(job, step_by_step.model) == found
    assert evaluate(prepared.model, job.task.data, job.task.data.validation).top1 == found
    clips = [module.clip.item() for module in prepared.model.modules() if isinstance(module, UniformQuantizer)]
    assert all(clip != 1 for clip in clips)


def test_a_result_is_read_off_the_network(make_job: MakeJob) -> None:
    job = make_job()
    network = Fixed(job)
    result = result_of(job, network, {"figure": 1})
    assert {result.policy.layers[name].weight_bits for name in network.layers} == {2}
    assert {result.policy.layers[name].activation_bits for name in network.layers} == {4}
    assert [decision.layer for decision in result.decisions] == list(network.layers)
    assert result.state.keys() == job.pretrained.keys()
    assert all(torch.equal(result.state[name], value) for name, value in job.pretrained.items())
    assert (result.clips, result.quantizers, result.record) == ({}, {}, {"figure": 1})


def test_a_result_does_not_change_with_the_network(make_job: MakeJob) -> None:
    job = make_job()
    network = Fixed(job)
    result = result_of(job, network, {})
    with torch.no_grad():
        for parameter in network.model.parameters():
            parameter.add_(1)
    name = next(iter(job.pretrained))
    assert torch.equal(result.state[name], job.pretrained[name])
