"""Compare the time of a training step with the arithmetic and memory speed of the machine.

    python -m tests.scale.roofline --threads 2

The script measures the machine by the fastest of many matrix products, and of many additions of tensors that are too
large for any cache. It counts the multiplications of a step's convolutions, and the bytes that must move at least
when no operations are fused. It compares both with the measured time of one step, which PyTorch's profiler splits
into convolutions, quantizers, normalisation and the rest. The network is ResNet-20 on 3×32×32 images, not compiled.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.compression.compress import calibrate, compress
from bench.compression.policy import FULL_PRECISION_BITS, uniform
from bench.compression.shapes import NetworkShape, trace
from bench.costs.counter import price
from bench.execution.task_loader import on_device
from bench.models.resnet import resnet20
from bench.spec.schema import Schedule
from bench.training.loop import sgd, weight_groups

_FLOAT = 4
_PASSES = {"convolution": 3 + 3, "normalisation": 3 + 3, "activation": 2 + 3}
"""Reads and writes of a tensor of the layer's size, forward and backward. A convolution reads its input and writes
its output; backward it reads the gradient twice and its input once, and writes a gradient. A normalisation reads
its input for the statistics and again to normalise, and writes; backward it reads the gradient and the input, and
writes. An activation reads and writes; backward it reads the gradient and the result, and writes."""
_QUANTIZER_PASSES = {"metric": 1, "value": 2, "gradient": 3}
_KINDS = {
    "convolutions": ("aten::mkldnn_convolution", "aten::convolution_backward", "aten::cudnn_convolution"),
    "normalisation": ("aten::native_batch_norm", "aten::native_batch_norm_backward"),
}
_QUANTIZERS = ("_Quantize", "_BitSharing", "_QuantizeBackward", "_BitSharingBackward")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The speed of the machine: operations and bytes per second."""

    flops: float
    bandwidth: float


def fastest(work: Callable[[], object], times: int = 15) -> float:
    """Return the seconds of the fastest of some calls, which other processes disturb least."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def measured_machine() -> Machine:
    """Measure matrix products of 1,536 rows and columns, and in-place additions of 64 million numbers."""
    side, length = 1536, 2**26
    a, b = torch.randn(side, side), torch.randn(side, side)
    large = torch.zeros(length)
    return Machine(
        flops=2 * side**3 / fastest(lambda: a @ b),
        bandwidth=2 * _FLOAT * length / fastest(lambda: large.add_(1.0)),
    )


def flops(network: NetworkShape, batch: int) -> float:
    """Count the operations of convolutions and linear layers in one step; backward has twice those of forward."""
    macs = price(network, uniform(network, FULL_PRECISION_BITS)).macs
    return float(3 * 2 * macs * batch)


def elements(network: NetworkShape, batch: int) -> tuple[float, float]:
    """Count the numbers in all outputs of convolutions, and in all inputs that are quantized."""
    outputs = sum(layer.out_channels * layer.out_size[0] * layer.out_size[1] for layer in network.layers)
    inputs = sum(layer.in_channels * layer.in_size[0] * layer.in_size[1] for layer in network.middle)
    return float(batch * outputs), float(batch * inputs)


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Make the function that does one update of a network."""
    model.train()
    optimizer = sgd(weight_groups(model), Schedule())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def parts(step: Callable[[], None]) -> dict[str, float]:
    """Return the seconds of one step by kind of operation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    events = {event.key: event for event in profile.key_averages()}
    found = {
        kind: sum(events[name].self_cpu_time_total for name in names if name in events) / 1e6
        for kind, names in _KINDS.items()
    }
    found["quantizers"] = sum(events[name].cpu_time_total for name in _QUANTIZERS if name in events) / 1e6
    everything = sum(event.self_cpu_time_total for event in events.values()) / 1e6
    return {**found, "the rest": everything - sum(found.values())}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    machine = measured_machine()
    print(f"machine: {machine.flops / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s")  # noqa: T201
    cpu = torch.device("cpu")
    network = trace(resnet20(3, 100), (3, 32, 32), name="resnet20", dataset="cifar100")
    images = torch.randn(asked.batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 100, (asked.batch_size,))
    float_model = on_device(resnet20(3, 100), cpu)
    quantized = on_device(compress(float_model, network, uniform(network, 4)), cpu)
    calibrate(quantized, images)
    outputs, inputs = elements(network, asked.batch_size)
    plain_bytes = _FLOAT * outputs * sum(_PASSES.values())
    qat_bytes = _FLOAT * inputs * (_QUANTIZER_PASSES["value"] + _QUANTIZER_PASSES["gradient"])
    search_bytes = _FLOAT * inputs * sum(_QUANTIZER_PASSES.values())
    work = flops(network, asked.batch_size)
    print(  # noqa: T201
        f"convolutions: {work / 1e9:.1f} GFLOP, {1000 * work / machine.flops:.0f} ms at the machine's best\n"
        f"bytes of a float step, unfused: {plain_bytes / 1e6:.0f} MB, {1000 * plain_bytes / machine.bandwidth:.0f} ms; "
        f"quantizers add {qat_bytes / 1e6:.0f} MB ({1000 * qat_bytes / machine.bandwidth:.0f} ms) in fine-tuning, "
        f"{search_bytes / 1e6:.0f} MB ({1000 * search_bytes / machine.bandwidth:.0f} ms) in a search"
    )
    for name, model in (("float", float_model), ("4 bit", quantized)):
        step = training_step(model, images, labels)
        step()
        split = ", ".join(f"{kind} {1000 * seconds:.0f}" for kind, seconds in parts(step).items())
        print(f"{name} step: {1000 * fastest(step):.0f} ms; by kind: {split}")  # noqa: T201


if __name__ == "__main__":
    main()
