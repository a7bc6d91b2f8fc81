"""The slow way to evaluate a policy without training: build its reduced and quantized network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bench.compression.compress import compress, input_quantizer
from bench.compression.policy import EDGE_BITS, Policy
from bench.compression.quantizer import Shifted, UniformQuantizer, clips_of, read_clips
from bench.compression.shapes import LayerShape
from bench.method import SearchJob

BITS = (2, 4, 8)


def batch_statistics(model: nn.Module) -> nn.Module:
    """The network as it is evaluated: nothing is random, and normalisations use the statistics of the batch."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return model


def clips(job: SearchJob) -> dict[tuple[str, str, int], dict[str, float]]:
    """Clip values of all tensors at all candidates, of the float network on one batch, tensor by tensor."""
    model, seen = batch_statistics(job.float_model()), dict[str, tuple[Tensor, ...]]()
    for layer in job.task.network.layers:
        module = model.get_submodule(layer.name)
        module.register_forward_pre_hook(lambda _, inputs, name=layer.name: seen.update({name: inputs}))
    with torch.no_grad():
        model(job.task.data.calibration_batches(1, job.schedule.batch_size)[0])
    found = {}
    for layer in job.task.network.layers:
        for bits in BITS if layer.position == "middle" else (EDGE_BITS,):
            right, left = quantizers(layer, bits)
            weight = seen[layer.name][1] if layer.kind == "matmul" else model.get_submodule(layer.name).weight
            right.calibrate(weight)  # type: ignore[operator]
            found[layer.name, "weight", bits] = read_clips(clips_of(layer.name, right, nn.Identity()))
            if layer.position != "first":
                left.calibrate(seen[layer.name][0])  # type: ignore[operator]
            found[layer.name, "activation", bits] = read_clips(clips_of(layer.name, nn.Identity(), left))
    return found


def quantizers(layer: LayerShape, bits: int) -> tuple[nn.Module, nn.Module]:
    right: nn.Module = UniformQuantizer(bits=bits, kind="weight", normalized=layer.normalized)
    if layer.kind == "matmul":
        right = Shifted(UniformQuantizer(bits=bits, kind="activation"))
    return right, input_quantizer(layer, bits, UniformQuantizer)


def compressed_outputs(
    job: SearchJob, policy: Policy, values: Mapping[tuple[str, str, int], Mapping[str, float]], images: Tensor
) -> Tensor:
    """The slow way: build the reduced, quantized network of a policy."""
    chosen: dict[str, float] = {}
    for name, choice in policy.layers.items():
        chosen |= values[name, "weight", choice.weight_bits]
        chosen |= values[name, "activation", choice.activation_bits]
    with torch.no_grad():
        network = batch_statistics(compress(job.float_model(), job.task.network, policy, clips=chosen))
        return network(images)  # type: ignore[no-any-return]
