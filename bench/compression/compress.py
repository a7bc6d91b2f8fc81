"""Build the compressed network of a policy: remove filters physically, and quantize the remaining tensors."""

import copy
from collections import Counter, OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bench import replicas
from bench.compression.geometry import geometry_of
from bench.compression.policy import FULL_PRECISION_BITS, Policy, kept_inputs, kept_outputs
from bench.compression.quantizer import Clips, QuantizerFactory, Shifted, UniformQuantizer, clips_of, restore_clips
from bench.compression.shapes import LayerShape, NetworkShape
from bench.errors import BenchError


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose weight and input are quantized.

    The input of the first layer is normalised 8-bit pixels, which are on an 8-bit grid already. Its
    `activation_quantizer` is therefore the identity.
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
        """Set both quantizers' parameters from the weight and from an input of the layer."""
        for quantizer, tensor in ((self.weight_quantizer, self.weight), (self.activation_quantizer, x)):
            if not isinstance(quantizer, nn.Identity):
                quantizer.calibrate(tensor)  # type: ignore[operator]


class QuantizedProduct(nn.Module):
    """A product whose operands are quantized; the right one takes the place of a layer's weight.

    Args:
        product: Module that multiplies.
        weight_quantizer: Quantizer of the right operand.
        activation_quantizer: Quantizer of the left operand.
    """

    def __init__(self, product: nn.Module, weight_quantizer: nn.Module, activation_quantizer: nn.Module) -> None:
        super().__init__()
        self.product = product
        self.weight_quantizer = weight_quantizer
        self.activation_quantizer = activation_quantizer

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiply the quantized operands."""
        return self.product(self.activation_quantizer(left), self.weight_quantizer(right))  # type: ignore[no-any-return]

    def calibrate(self, left: Tensor, right: Tensor) -> None:
        """Set both quantizers' parameters from two operands."""
        self.activation_quantizer.calibrate(left)  # type: ignore[operator]
        self.weight_quantizer.calibrate(right)  # type: ignore[operator]


def replace_layer(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Replace the module at a dotted path of a model, under all its names; it is moved to the model's device."""
    layer.to(next(model.parameters()).device)
    for place in names_of(model, path):
        parent, _, name = place.rpartition(".")
        setattr(model.get_submodule(parent), name, layer)


def names_of(model: nn.Module, path: str) -> list[str]:
    """List the dotted paths under which a model has the module at one of them."""
    wanted = model.get_submodule(path)
    return [name for name, module in model.named_modules(remove_duplicate=False) if module is wanted]


def restore_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights and buffers that a model of this kind had, in the format that its modules write.

    A plain mapping has lost the versions of this format, and some modules refuse a state without them.

    Args:
        model: Model to load into.
        state: All weights and buffers, by name.

    Raises:
        RuntimeError: Names or shapes differ.
    """
    versioned = OrderedDict(state)
    versioned._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(versioned)


def reduce(model: nn.Module, network: NetworkShape, policy: Policy) -> nn.Module:
    """Return a copy of a float network with only the filters that a policy keeps."""
    reduced = copy.deepcopy(model)
    for layer in network.layers:
        kept_out, kept_in = kept_outputs(policy, layer), kept_inputs(policy, layer)
        if layer.kind != "matmul" and (kept_out is not None or kept_in is not None):
            rows = None if kept_out is None else layer.rows(kept_out)
            columns = None if kept_in is None or layer.depthwise else layer.columns(kept_in)
            replace_layer(reduced, layer.name, _slice_layer(reduced.get_submodule(layer.name), rows, columns))
    for table, layer_name in network.tables:
        kept = policy.layers[layer_name].kept_filters
        if kept is not None:
            _slice_table(reduced, table, kept)
    for norm, layer_name in network.norms:
        kept = policy.layers[layer_name].kept_filters
        if kept is not None:
            replace_layer(reduced, norm, _slice_norm(reduced.get_submodule(norm), kept))
    return reduced


def _slice_table(model: nn.Module, path: str, kept: tuple[int, ...]) -> None:
    """Leave the kept entries of a parameter's last dimension."""
    parent, _, name = path.rpartition(".")
    table: Tensor = getattr(model.get_submodule(parent), name)
    setattr(model.get_submodule(parent), name, _like(table, table[..., list(kept)]))


def _slice_layer(module: nn.Module, rows: list[int] | None, columns: list[int] | None) -> nn.Module:
    """Return a layer with some rows of its weight and bias, and some columns of its weight."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise TypeError(f"cannot take filters from a {type(module).__name__}")
    sliced = copy.deepcopy(module)
    weight, bias = module.weight.detach(), module.bias
    if rows is not None:
        index = torch.tensor(rows, device=weight.device)
        weight = weight[index]
        bias = None if bias is None else bias.detach()[index]
    if columns is not None:
        weight = weight[:, torch.tensor(columns, device=weight.device)]
    sliced.weight = _like(module.weight, weight)
    sliced.bias = None if module.bias is None or bias is None else _like(module.bias, bias)
    _set_channels(sliced, outputs=weight.shape[0], inputs=weight.shape[1])
    return sliced


def _like(parameter: Tensor, values: Tensor) -> nn.Parameter:
    """Make a parameter of some values, which is trained only if another one is."""
    return nn.Parameter(values.detach().clone(), requires_grad=parameter.requires_grad)


def _set_channels(module: nn.Module, *, outputs: int, inputs: int) -> None:
    """Set the channel counts in a layer's attributes."""
    if isinstance(module, nn.Linear):
        module.in_features, module.out_features = inputs, outputs
    elif isinstance(module, nn.Conv2d) and module.groups > 1:  # depthwise
        module.in_channels = module.out_channels = module.groups = outputs
    elif isinstance(module, nn.Conv2d):
        module.in_channels, module.out_channels = inputs, outputs


def _slice_norm(norm: nn.Module, kept: tuple[int, ...]) -> nn.Module:
    """Return a batch normalisation of the kept channels."""
    sliced = copy.deepcopy(norm)
    if not isinstance(sliced, nn.BatchNorm2d):
        raise TypeError(f"only BatchNorm2d can follow a pruned layer, got {type(norm).__name__}")
    for name, tensor in (*sliced.named_parameters(), *sliced.named_buffers()):
        if tensor.ndim == 1:
            values = tensor.detach()[torch.tensor(kept, device=tensor.device)].clone()
            setattr(sliced, name, _like(tensor, values) if isinstance(tensor, nn.Parameter) else values)
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
    """Build the compressed network: with the kept filters only, and quantized with the policy's bits.

    Args:
        model: Float network with the weights to start from.
        network: Shapes of the network.
        policy: Bits and kept filters of each layer.
        clips: Initial clip values by tensor; 1 by default.
        quantizer: Factory of the quantizers.
        normalized_weights: Whether weights that a batch normalisation follows are standardised before quantization.
    """
    compressed = reduce(model, network, policy)
    for layer in network.layers:
        choice = policy.layers[layer.name]
        if choice.weight_bits == choice.activation_bits == FULL_PRECISION_BITS:
            continue
        module = compressed.get_submodule(layer.name)
        bits = choice.weight_bits, choice.activation_bits
        quantized = quantized_layer(module, layer, bits, quantizer, normalized=normalized_weights)
        replace_layer(compressed, layer.name, quantized)
        restore_clips(clips_of(layer.name, quantized.weight_quantizer, quantized.activation_quantizer), clips or {})
    return compressed


def quantized_layer(
    module: nn.Module, layer: LayerShape, bits: tuple[int, int], quantizer: QuantizerFactory, *, normalized: bool
) -> QuantizedLayer | QuantizedProduct:
    """Make the quantized form of a layer or of a product of activations.

    Args:
        module: The float layer.
        layer: Shape of the layer.
        bits: Bits of the weight, or of the right operand, and of the input, or of the left operand.
        quantizer: Factory of the quantizers.
        normalized: Whether weights that a batch normalisation follows are standardised before quantization.
    """
    of_input = input_quantizer(layer, bits[1], quantizer)
    if layer.kind == "matmul":
        return QuantizedProduct(module, Shifted(quantizer(bits=bits[0], kind="activation", normalized=False)), of_input)
    return QuantizedLayer(
        module, quantizer(bits=bits[0], kind="weight", normalized=normalized and layer.normalized), of_input
    )


def input_quantizer(layer: LayerShape, bits: int, quantizer: QuantizerFactory) -> nn.Module:
    """Make the quantizer of a layer's input: the identity for the image, one with an offset for signed inputs."""
    if layer.position == "first":
        return nn.Identity()
    plain = quantizer(bits=bits, kind="activation", normalized=False)
    return Shifted(plain) if layer.signed_input else plain


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Set every quantizer's parameters from one batch, layer by layer in the order of execution.

    The method `calibrate` of each layer is called with the layer's operands, which come from layers that are calibrated
    already. Layers that are left out at random in training are calibrated in a second pass in evaluation mode.

    Args:
        model: Network with quantized layers.
        images: Batch of normalised training images.

    Raises:
        BenchError: A quantized layer is not executed, or more than once.
    """
    layers = {
        module: path
        for path, module in model.named_modules()
        if hasattr(module, "calibrate") and (hasattr(module, "weight") or hasattr(module, "product"))
    }
    missing, runs = set(layers), Counter[nn.Module]()

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        runs[module] += 1
        if module in missing:
            missing.remove(module)
            module.calibrate(*inputs)  # type: ignore[operator]

    hooks = [layer.register_forward_pre_hook(before) for layer in layers]
    was_training = model.training
    try:
        # Normalisations use batch statistics: the stored ones are those of the float network, whose weights have
        # another scale.
        for training in (True, False):
            if missing:
                runs.clear()
                with replicas.alone():
                    model.train(training)(images)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    for layer, path in layers.items():
        if layer in missing or runs[layer] > 1:
            raise BenchError(f"the quantized layer '{path}' was executed {runs[layer]} times in one pass, not once")
    replicas.share_state(model)
