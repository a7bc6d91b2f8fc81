"""Builds the compressed network of a policy: filters physically removed, remaining tensors quantized."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import replicas
from bench.network import NetworkShape, prunables
from bench.policy import FULL_PRECISION_BITS, Policy, kept_inputs
from bench.quantization import QuantizerFactory, UniformQuantizer

Clips = Mapping[str, float]
"""Clip values by tensor: "<layer>.weight" and "<layer>.activation"."""


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """How a convolution moves over its input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self:
        """The geometry of a layer."""
        return cls(conv.stride, conv.padding, conv.dilation, conv.groups)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve (N, C, H, W) with a weight (out, in/groups, kh, kw)."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class _Calibrated(nn.Module):
    """A layer with one quantizer for its weight and one for its input."""

    weight: Tensor
    weight_quantizer: nn.Module
    activation_quantizer: nn.Module

    def calibrate(self, x: Tensor) -> None:
        """Set both quantizers from the weight and from an input of the layer."""
        for quantizer, tensor in ((self.weight_quantizer, self.weight), (self.activation_quantizer, x)):
            if not isinstance(quantizer, nn.Identity):
                quantizer.calibrate(tensor)  # type: ignore[operator]


class QuantizedConv2d(_Calibrated):
    """A convolution whose weight and input are quantized.

    The input of the first layer arrives as normalised 8-bit pixels: it is on an 8-bit grid already, so
    `activation_quantizer` is the identity there.
    """

    def __init__(self, conv: nn.Conv2d, weight_quantizer: nn.Module, activation_quantizer: nn.Module) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self.geometry = ConvGeometry.of(conv)
        self.weight_quantizer = weight_quantizer
        self.activation_quantizer = activation_quantizer

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a quantized input with the quantized weight."""
        return self.geometry.convolve(self.activation_quantizer(x), self.weight_quantizer(self.weight), self.bias)


class QuantizedLinear(_Calibrated):
    """A linear layer whose weight and input are quantized."""

    def __init__(self, linear: nn.Linear, weight_quantizer: nn.Module, activation_quantizer: nn.Module) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.weight_quantizer = weight_quantizer
        self.activation_quantizer = activation_quantizer

    def forward(self, x: Tensor) -> Tensor:
        """Multiply a quantized input by the quantized weight."""
        return F.linear(self.activation_quantizer(x), self.weight_quantizer(self.weight), self.bias)


QuantizedLayer = QuantizedConv2d | QuantizedLinear


def replace_layer(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Put another module at a dotted path of a model."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def reduce(model: nn.Module, network: NetworkShape, policy: Policy) -> nn.Module:
    """A copy of a float network from which the filters that a policy drops are physically removed."""
    reduced = copy.deepcopy(model)
    structure = prunables(model)
    for layer in network.layers:
        module = reduced.get_submodule(layer.name)
        kept_out = policy.layers[layer.name].kept_filters
        kept_in = kept_inputs(network, policy, layer)
        if not isinstance(module, nn.Conv2d) or (kept_out is None and kept_in is None):
            continue
        replace_layer(reduced, layer.name, _slice_conv(module, kept_out, kept_in))
        if kept_out is not None:
            norm = structure[layer.name].norm
            replace_layer(reduced, norm, _slice_norm(reduced.get_submodule(norm), kept_out))
    return reduced


def _slice_conv(conv: nn.Conv2d, kept_out: tuple[int, ...] | None, kept_in: tuple[int, ...] | None) -> nn.Conv2d:
    weight = conv.weight.detach()
    bias = None if conv.bias is None else conv.bias.detach()
    if kept_out is not None:
        index = torch.tensor(kept_out, device=weight.device)
        weight = weight[index]
        bias = None if bias is None else bias[index]
    if kept_in is not None:
        weight = weight[:, torch.tensor(kept_in, device=weight.device)]
    sliced = copy.deepcopy(conv)
    sliced.in_channels, sliced.out_channels = weight.shape[1], weight.shape[0]
    sliced.weight = nn.Parameter(weight.clone())
    sliced.bias = None if bias is None else nn.Parameter(bias.clone())
    return sliced


def _slice_norm(norm: nn.Module, kept: tuple[int, ...]) -> nn.Module:
    """A batch normalisation of the surviving channels."""
    sliced = copy.deepcopy(norm)
    if not isinstance(sliced, nn.BatchNorm2d):
        raise TypeError(f"only BatchNorm2d can follow a pruned layer, got {type(norm).__name__}")
    for name, tensor in (*sliced.named_parameters(), *sliced.named_buffers()):
        if tensor.ndim == 1:
            values = tensor.detach()[torch.tensor(kept, device=tensor.device)].clone()
            setattr(sliced, name, nn.Parameter(values) if isinstance(tensor, nn.Parameter) else values)
    sliced.num_features = len(kept)
    return sliced


def compress(
    model: nn.Module,
    network: NetworkShape,
    policy: Policy,
    *,
    clips: Clips | None = None,
    quantizer: QuantizerFactory = UniformQuantizer,
    normalized_weights: bool = True,
) -> nn.Module:
    """The compressed network: reduced, then quantized at the policy's bits.

    Args:
        model: The float network with the weights to start from.
        network: Its shapes.
        policy: What to do.
        clips: Clip values to start from; 1 where absent.
        quantizer: Makes the quantizer of each tensor.
        normalized_weights: Whether convolution weights are standardised first.
    """
    compressed = reduce(model, network, policy)
    for layer in network.layers:
        choice = policy.layers[layer.name]
        if choice.weight_bits == choice.activation_bits == FULL_PRECISION_BITS:
            continue
        module = compressed.get_submodule(layer.name)
        weight = quantizer(
            bits=choice.weight_bits, kind="weight", normalized=normalized_weights and layer.kind == "conv"
        )
        activation: nn.Module = nn.Identity()
        if layer.position != "first":
            activation = quantizer(bits=choice.activation_bits, kind="activation", normalized=False)
        replace_layer(compressed, layer.name, quantized_layer(module, weight, activation))
        _set_clips(layer.name, weight, activation, clips or {})
    return compressed


def quantized_layer(module: nn.Module, weight: nn.Module, activation: nn.Module) -> QuantizedLayer:
    """Wrap a convolution or linear layer with its two quantizers, on the layer's device."""
    if isinstance(module, nn.Conv2d):
        return QuantizedConv2d(module, weight, activation).to(module.weight.device)
    if isinstance(module, nn.Linear):
        return QuantizedLinear(module, weight, activation).to(module.weight.device)
    raise TypeError(f"cannot quantize a {type(module).__name__}")


def _set_clips(name: str, weight: nn.Module, activation: nn.Module, clips: Clips) -> None:
    for kind, quantizer in (("weight", weight), ("activation", activation)):
        value = clips.get(f"{name}.{kind}")
        if value is not None and isinstance(quantizer, UniformQuantizer):
            with torch.no_grad():
                quantizer.clip.fill_(value)


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Set every quantizer's parameters from one batch, layer by layer in the order of execution.

    Layers that have a method `calibrate` are given their input as it arrives through the layers before them,
    already calibrated.

    Args:
        model: A network with quantized layers.
        images: A batch of normalised training images.
    """

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        module.calibrate(inputs[0])  # type: ignore[operator]

    layers = [module for module in model.modules() if hasattr(module, "calibrate") and hasattr(module, "weight")]
    hooks = [layer.register_forward_pre_hook(before) for layer in layers]
    was_training = model.training
    try:
        # Batch statistics: the stored ones belong to the float network and are wrong by the weights' scale.
        with replicas.alone():
            model.train()(images)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    replicas.share_state(model)
