"""Builds the compressed network of a policy: filters physically removed, remaining tensors quantized."""

import copy
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import replicas
from bench.compression.policy import FULL_PRECISION_BITS, Policy, kept_inputs, kept_outputs
from bench.compression.quantizer import Clips, QuantizerFactory, Shifted, UniformQuantizer, clips_of, restore_clips
from bench.compression.shapes import LayerShape, NetworkShape


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


@dataclass(frozen=True, slots=True)
class LinearGeometry:
    """A linear layer has none."""

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply (N, in) by a weight (out, in)."""
        return F.linear(x, weight, bias)


Geometry = ConvGeometry | LinearGeometry


def geometry_of(module: nn.Module) -> Geometry:
    """How a convolution or a linear layer is carried out.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(module, nn.Conv2d):
        return ConvGeometry.of(module)
    if isinstance(module, nn.Linear):
        return LinearGeometry()
    raise TypeError(f"cannot quantize a {type(module).__name__}")


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose weight and input are quantized.

    The input of the first layer arrives as normalised 8-bit pixels: it is on an 8-bit grid already, so
    `activation_quantizer` is the identity there.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, module: nn.Module, weight_quantizer: nn.Module, activation_quantizer: nn.Module) -> None:
        super().__init__()
        self.geometry = geometry_of(module)
        self.weight, self.bias = module.weight, module.bias  # type: ignore[assignment]
        self.weight_quantizer = weight_quantizer
        self.activation_quantizer = activation_quantizer
        self.to(self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to a quantized input with the quantized weight."""
        return self.geometry.convolve(self.activation_quantizer(x), self.weight_quantizer(self.weight), self.bias)

    def calibrate(self, x: Tensor) -> None:
        """Set both quantizers from the weight and from an input of the layer."""
        for quantizer, tensor in ((self.weight_quantizer, self.weight), (self.activation_quantizer, x)):
            if not isinstance(quantizer, nn.Identity):
                quantizer.calibrate(tensor)  # type: ignore[operator]


def replace_layer(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Put another module at a dotted path of a model."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def reduce(model: nn.Module, network: NetworkShape, policy: Policy) -> nn.Module:
    """A copy of a float network from which the filters that a policy drops are physically removed."""
    reduced = copy.deepcopy(model)
    for layer in network.layers:
        kept_out, kept_in = kept_outputs(policy, layer), kept_inputs(policy, layer)
        if kept_out is not None or kept_in is not None:
            module = reduced.get_submodule(layer.name)
            replace_layer(reduced, layer.name, _slice_layer(module, kept_out, None if layer.depthwise else kept_in))
    for norm, layer_name in network.norms:
        kept = policy.layers[layer_name].kept_filters
        if kept is not None:
            replace_layer(reduced, norm, _slice_norm(reduced.get_submodule(norm), kept))
    return reduced


def _slice_layer(module: nn.Module, kept_out: tuple[int, ...] | None, kept_in: tuple[int, ...] | None) -> nn.Module:
    """A layer with the surviving filters, each with the weights of the surviving inputs."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise TypeError(f"cannot take filters from a {type(module).__name__}")
    sliced = copy.deepcopy(module)
    weight, bias = module.weight.detach(), module.bias
    if kept_out is not None:
        index = torch.tensor(kept_out, device=weight.device)
        weight = weight[index]
        bias = None if bias is None else bias.detach()[index]
    if kept_in is not None:
        weight = weight[:, torch.tensor(kept_in, device=weight.device)]
    sliced.weight = nn.Parameter(weight.clone())
    sliced.bias = None if bias is None else nn.Parameter(bias.clone())
    _set_widths(sliced, outputs=weight.shape[0], inputs=weight.shape[1])
    return sliced


def _set_widths(module: nn.Module, *, outputs: int, inputs: int) -> None:
    """The channel counts that a layer states of itself."""
    if isinstance(module, nn.Linear):
        module.in_features, module.out_features = inputs, outputs
    elif isinstance(module, nn.Conv2d) and module.groups > 1:  # depthwise
        module.in_channels = module.out_channels = module.groups = outputs
    elif isinstance(module, nn.Conv2d):
        module.in_channels, module.out_channels = inputs, outputs


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
        normalized_weights: Whether weights that a normalisation follows are standardised first.
    """
    compressed = reduce(model, network, policy)
    for layer in network.layers:
        choice = policy.layers[layer.name]
        if choice.weight_bits == choice.activation_bits == FULL_PRECISION_BITS:
            continue
        weight = quantizer(bits=choice.weight_bits, kind="weight", normalized=normalized_weights and layer.normalized)
        activation = input_quantizer(layer, choice.activation_bits, quantizer)
        replace_layer(compressed, layer.name, QuantizedLayer(compressed.get_submodule(layer.name), weight, activation))
        restore_clips(clips_of(layer.name, weight, activation), clips or {})
    return compressed


def input_quantizer(layer: LayerShape, bits: int, quantizer: QuantizerFactory) -> nn.Module:
    """The quantizer of a layer's input: none for the image, with an offset where the input can be negative."""
    if layer.position == "first":
        return nn.Identity()
    plain = quantizer(bits=bits, kind="activation", normalized=False)
    return Shifted(plain) if layer.signed_input else plain


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
