"""Where gates start: scales of their metrics, and searches that begin with the least widths."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from bench.compression.compress import calibrate
from bench.compression.kernels import Kind
from bench.compression.quantizer import best_clip, standardize
from bench.method import SearchJob
from methods.sbs import (
    Sbs,
    SbsOptions,
    SbsQ,
    _calibrated_metrics,
    _set_rate,
    layer_settings,
    search_space,
    threshold_rate,
)
from methods.shared.bit_sharing import gate_initialisation as starts
from methods.shared.bit_sharing.network import SharedNetwork, Start
from methods.shared.hessian import squared_error

MakeJob = Callable[..., SearchJob]
LEVELS = 2


def network_of(job: SearchJob, **settings: Any) -> SharedNetwork:
    """A calibrated sharing network with pruning, before its search."""
    plain = layer_settings(SbsOptions())
    space = search_space(job.task.network, SbsOptions(), prune=True)
    network = SharedNetwork(job, space, replace(plain, **settings), Start(state=job.pretrained, clips={}))
    calibrate(network.model, job.task.data.calibration_batches(1, 28)[0])
    return network


def metrics_of(job: SearchJob, network: SharedNetwork) -> dict[str, list[torch.Tensor]]:
    """Of weights and inputs, by layer."""
    of_activations = _calibrated_metrics(job, network)
    return {name: [layer.weight_metric, of_activations[name]] for name, layer in network.layers.items()}


def test_all_gates_of_a_level_start_alike(make_job: MakeJob) -> None:
    job = make_job()
    network = network_of(job)
    before = metrics_of(job, network)
    starts.scale_metrics(job, network, _calibrated_metrics(job, network), "start")
    after = metrics_of(job, network)
    for level in range(LEVELS):
        values = [float(metric[level]) for pair in before.values() for metric in pair]
        mean = sum(values) / len(values)
        assert max(values) > 1.2 * mean  # else there would be nothing to even out
        assert [float(m[level]) for pair in after.values() for m in pair] == pytest.approx([mean] * len(values))
    groups = [float(layer.group_metric.mean()) for layer in network.layers.values() if layer.groups is not None]
    assert groups == pytest.approx([groups[0]] * len(groups))


def test_sensitive_gates_start_high(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one trace for all, what counts is how much error closing a gate adds, per element."""
    monkeypatch.setattr(starts, "hutchinson", lambda graph, *_: dict.fromkeys(graph.tensors, 2.0))
    job = make_job()
    network = network_of(job)
    plain = metrics_of(job, network)
    starts.scale_metrics(job, network, _calibrated_metrics(job, network), "hessian")
    after = metrics_of(job, network)
    tensors = starts.loss_graph(job, 128).tensors
    for level, (low, high) in enumerate(((2, 4), (4, 8))):
        rises = []
        for shape in job.task.network.middle:
            for what in ("weight_bits", "activation_bits"):
                tensor = tensors[shape.name, what]  # type: ignore[index]
                errors = [squared_error(shape, what, tensor.detach(), width) for width in (low, high)]  # type: ignore[arg-type]
                rises.append(2.0 / tensor.numel() * (errors[0] - errors[1]))
        mean = sum(float(m[level]) for pair in plain.values() for m in pair) / len(rises)
        expected = [mean * (rise / (sum(rises) / len(rises))) ** 0.5 for rise in rises]
        assert [float(m[level]) for pair in after.values() for m in pair] == pytest.approx(expected, rel=1e-4)


def test_shut_gates_start_a_little_above_their_metrics(make_job: MakeJob) -> None:
    job = make_job()
    network = network_of(job)
    before = metrics_of(job, network)
    starts.shut_bits(network, _calibrated_metrics(job, network))
    metrics_of(job, network)
    for name, layer in network.layers.items():
        assert [part.item() for part in layer.bits()] == [2, 2]
        for thresholds, metric in zip(
            (layer.thresholds_weight, layer.thresholds_activation), before[name], strict=True
        ):
            assert (thresholds - metric).tolist() == pytest.approx([0.01] * LEVELS, abs=1e-6)
        if layer.groups is not None:
            assert layer.group_gates.all()


def test_a_search_that_starts_shut_opens_gates(make_job: MakeJob) -> None:
    job = make_job(budget=1e12)  # the cost never acts
    found = SbsQ(SbsOptions(gate_start="shut")).search(job)
    per_step = found.record["cost_per_step"]
    assert per_step[0] == job.price(SbsQ(SbsOptions()).cheapest(job.task.network))
    assert per_step[0] < per_step[-1]


@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_each_width_is_calibrated_for_itself(make_job: MakeJob, kind: Kind) -> None:
    job = make_job()
    network = network_of(job, clip_sharing="per_width")
    inputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _, args: inputs.update({name: args[0].detach()})

    for name, layer in network.layers.items():
        layer.register_forward_pre_hook(keep(name))
    with torch.no_grad():
        network.model.train()(job.task.data.calibration_batches(1, 28)[0])
    name, layer = next(iter(network.layers.items()))
    x = standardize(layer.weight.detach()) if kind == "weight" else inputs[name]
    clips = layer.clip_weight if kind == "weight" else layer.clip_activation
    assert clips.tolist() == pytest.approx([best_clip(x, width, kind) for width in (2, 4, 8)])
    assert clips[0] < clips[2]


def test_the_decided_width_keeps_its_clip_value(make_job: MakeJob) -> None:
    job = make_job()
    network = network_of(job, clip_sharing="per_width")
    name, layer = next(iter(network.layers.items()))
    layer.decide(replace(job_policy(network, name), weight_bits=4, activation_bits=8))
    clips = network.clips()
    assert clips[f"{name}.weight"] == pytest.approx(layer.clip_weight[1].item())
    assert clips[f"{name}.activation"] == pytest.approx(layer.clip_activation[2].item())


def job_policy(network: SharedNetwork, name: str) -> Any:
    """The layer's policy before a search."""
    return network.base_policy({key: layer.space for key, layer in network.layers.items()}).layers[name]


def test_a_falling_rate_goes_the_same_way(make_job: MakeJob, watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the rate at the start, none at the end."""
    seen: list[float] = []
    monkeypatch.setattr("methods.sbs._set_rate", lambda optimizers, rate: seen.append(rate))
    job = make_job()
    Sbs(SbsOptions(threshold_decay="linear")).search(job)
    rate = threshold_rate(SbsOptions(), job.steps)
    assert len(seen) == job.steps
    assert seen[0] == 2 * rate
    assert sum(seen) / len(seen) == pytest.approx(rate * (1 + 1 / job.steps))
    assert [a - b for a, b in pairwise(seen)] == pytest.approx([2 * rate / job.steps] * 9)


def test_the_rate_is_that_of_both_optimizers() -> None:
    optimizers = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0) for _ in range(2)]
    _set_rate(optimizers, 0.25)
    assert [group["lr"] for optimizer in optimizers for group in optimizer.param_groups] == [0.25, 0.25]


def test_probes_change_the_network_but_neither_its_gates_nor_its_cost(make_job: MakeJob) -> None:
    job = make_job()
    network = network_of(job)
    images = job.task.data.calibration_batches(1, 28)[0]
    forward = network.with_cost()
    outputs, cost = forward(images)
    network.probe(0.5, job.noise("probes"))
    probed, same_cost = forward(images)
    assert not torch.allclose(probed, outputs, atol=1e-3)
    assert torch.equal(same_cost, cost)
    assert all(layer.weight_gates.all() and layer.activation_gates.all() for layer in network.layers.values())
    network.probe(0, job.noise("probes"))
    assert torch.equal(forward(images)[0], outputs)


def test_the_share_of_probes_is_the_one_asked_for(make_job: MakeJob) -> None:
    job = make_job()
    network, noise = network_of(job), job.noise("probes")
    drawn = []
    for _ in range(200):
        network.probe(0.3, noise)
        drawn += [p for layer in network.layers.values() for p in (layer.probed_weight, layer.probed_activation)]
    share = torch.cat([p for p in drawn if p is not None])
    assert float(share.mean()) == pytest.approx(0.3, abs=5 * (0.21 / len(share)) ** 0.5)


def test_layers_without_a_choice_have_nothing_to_scale(make_job: MakeJob) -> None:
    """Shortcuts at a fixed width among layers with gates."""
    for scale in ("start", "hessian"):
        options = SbsOptions(search_downsampling=False, metric_scale=scale, gate_start="shut", clip_sharing="per_width")  # type: ignore[arg-type]
        found = SbsQ(options).search(make_job())
        assert {found.policy.layers[s.name].weight_bits for s in make_job().task.network.middle if s.shortcut} == {8}
