"""Where gates start: scales of their metrics, and searches that begin with the least widths."""

from collections.abc import Callable

import pytest
import torch

from bench.compression.compress import calibrate
from bench.method import SearchJob
from methods.shared.bit_sharing import gate_initialisation as starts
from methods.shared.bit_sharing.extended import ExtendedNetwork, ScaledQuantizer
from methods.shared.bit_sharing.network import Start
from methods.shared.bit_sharing.options import SbsOptions, search_space
from methods.shared.gates import FilterGates
from methods.shared.hessian import LossGraph, Traces, squared_error

MakeJob = Callable[..., SearchJob]
LEVELS = 2


def network_of(job: SearchJob) -> ExtendedNetwork:
    """A calibrated sharing network with pruning, before its search."""
    options = SbsOptions()
    space = search_space(job.task.network, options, prune=True)
    start = Start(state=job.pretrained, clips={})
    network = ExtendedNetwork(job, space, options.layer_settings(), start, quantizer=ScaledQuantizer)
    calibrate(network.model, job.task.data.calibration_batches(1, 28)[0])
    return network


def metrics_of(job: SearchJob, network: ExtendedNetwork) -> dict[str, list[torch.Tensor]]:
    """Of weights and inputs, by layer, calibrated."""
    network.calibrate_metrics(job.task.data.calibration_batches(4, job.schedule.batch_size))
    return {name: [part.metric for part in layer.quantizers().values()] for name, layer in network.layers.items()}


def filter_gates_of(network: ExtendedNetwork) -> dict[str, FilterGates]:
    """By layer that is pruned."""
    gates = {name: layer.filter_gates for name, layer in network.layers.items()}
    return {name: of_layer for name, of_layer in gates.items() if of_layer is not None}


def test_all_gates_of_a_level_start_alike(make_job: MakeJob) -> None:
    job = make_job()
    network = network_of(job)
    before = metrics_of(job, network)
    starts.scale_metrics(job, network, "start")
    after = metrics_of(job, network)
    for level in range(LEVELS):
        values = [float(metric[level]) for pair in before.values() for metric in pair]
        mean = sum(values) / len(values)
        assert max(values) > 1.2 * mean  # else there would be nothing to even out
        assert [float(m[level]) for pair in after.values() for m in pair] == pytest.approx([mean] * len(values))
    groups = [float(gates.metric.mean()) for gates in filter_gates_of(network).values()]
    assert groups == pytest.approx([groups[0]] * len(groups))


def test_sensitive_gates_start_high(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one trace for all, what counts is how much error closing a gate adds, per element."""

    def alike(graph: LossGraph, *_: object) -> Traces:
        return Traces(means=dict.fromkeys(graph.tensors, 2.0), standard_errors={}, draws=1)

    monkeypatch.setattr(starts, "hutchinson", alike)
    job = make_job()
    network = network_of(job)
    plain = metrics_of(job, network)
    starts.scale_metrics(job, network, "hessian")
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
    starts.shut_bits(network)
    metrics_of(job, network)
    for name, layer in network.layers.items():
        for quantizer, metric in zip(layer.quantizers().values(), before[name], strict=True):
            assert quantizer.chosen_bits() == 2
            assert (quantizer.thresholds - metric).tolist() == pytest.approx([0.01] * LEVELS, abs=1e-6)
    for gates in filter_gates_of(network).values():
        assert gates.gates.all()
