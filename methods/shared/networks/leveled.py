"""A network that takes any policy of some candidates without being built again, and computes only what has changed.

All quantizers are calibrated once, on the float network: one for every tensor and candidate. Filters are dropped by
masks, with the result that the physically reduced network has. Normalisations use the statistics of each batch, since
standardised weights change the scale of a layer, and stored statistics do not follow.

Policies are evaluated one after the other on the same images. A layer is computed again only if a choice at it or at an
earlier layer, in the order of execution, differs from the policy before; otherwise its output is the one of that time.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bench.api import (
    LayerShape,
    Policy,
    QuantizedLayer,
    QuantizedProduct,
    SearchJob,
    UniformQuantizer,
    quantized_layer,
    replace_layer,
)
from bench.compression.policy import EDGE_BITS, kept_inputs, kept_outputs
from bench.compression.quantizer import positive, quantize, standardize

Kept = tuple[int, ...] | None
"""Kept filters; `None` for all."""
Choice = tuple[int, int, Kept, Kept]
"""Bits of weight and input, and the kept filters of the layer and of its producer."""

_EARLIER_WEIGHTS = 8
"""Number of quantized weights that a layer keeps."""


def choice_of(policy: Policy, layer: LayerShape) -> Choice:
    """Return everything in a policy that acts on a layer."""
    own = policy.layers[layer.name]
    return own.weight_bits, own.activation_bits, kept_outputs(policy, layer), kept_inputs(policy, layer)


class _Walk:
    """The position in one forward pass.

    Attributes:
        choices: Choices of the policy, layer by layer.
        shared: Number of first layers whose choices are those of the policy before; −1 for the first policy.
        reached: Number of searched layers that have begun.
    """

    def __init__(self) -> None:
        self.choices: Sequence[Choice] = ()
        self.shared, self.reached = -1, 0

    def begin(self, choices: Sequence[Choice]) -> None:
        """Begin a pass with a policy."""
        pairs = zip(self.choices, choices, strict=False)
        changed = (index for index, (before, now) in enumerate(pairs) if before != now)
        self.shared = next(changed, len(choices)) if self.choices else -1
        self.choices, self.reached = choices, 0


class _Remembered(nn.Module):
    """A module whose output is computed again only if it may have changed.

    Args:
        module: The module.
        walk: Position in the pass.
        index: Index of the searched layer; `None` for other modules.
    """

    def __init__(self, module: nn.Module, walk: _Walk, index: int | None = None) -> None:
        super().__init__()
        self.module = module
        self._walk, self._index = walk, index
        self._output: Tensor | None = None
        self._version = 0

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the output of the module, or that of the policy before."""
        if self._index is not None:
            self._walk.reached = self._index + 1
        known = self._output
        # What follows may have changed the output in place.
        if known is not None and self._walk.shared >= self._walk.reached and known._version == self._version:
            return known
        result: Tensor = self.module(*inputs)
        self._output, self._version = result, result._version
        return result

    def forget(self) -> None:
        """Drop the output."""
        self._output = None


class _LeveledLayer(nn.Module):
    """A convolution or linear layer at any candidate bits and with any kept filters.

    Args:
        shape: Shape of the layer.
        at_bits: The quantized layer at each candidate, calibrated.
        walk: Position in the pass.
        index: Index of the layer.
    """

    def __init__(self, shape: LayerShape, at_bits: dict[int, QuantizedLayer], walk: _Walk, index: int) -> None:
        super().__init__()
        self._shape, self._walk, self._index = shape, walk, index
        self._at_bits = at_bits
        self._weights: dict[tuple[int, Kept, Kept], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer as the policy says."""
        weight_bits, activation_bits, outputs, inputs = self._walk.choices[self._index]
        layer = self._at_bits[activation_bits]
        weight = self._weight(weight_bits, outputs, inputs)
        return layer.geometry.convolve(layer.activation_quantizer(x), weight, layer.bias)

    def _weight(self, bits: int, outputs: Kept, inputs: Kept) -> Tensor:
        key = bits, outputs, inputs
        if key not in self._weights:
            while len(self._weights) >= _EARLIER_WEIGHTS:
                del self._weights[next(iter(self._weights))]
            self._weights[key] = self._quantized(*key)
        return self._weights[key]

    def _quantized(self, bits: int, outputs: Kept, inputs: Kept) -> Tensor:
        """Quantize the surviving weights as the reduced network does, and set the others to zero."""
        layer = self._at_bits[bits]
        weight, quantizer = layer.weight, layer.weight_quantizer
        mask = self._mask(weight, outputs, inputs)
        if quantizer.normalized:
            weight = standardize(weight, mask)
        values = quantize(weight, positive(quantizer.clip), bits, "weight")  # type: ignore[arg-type]
        return values if mask is None else values * mask

    def _mask(self, weight: Tensor, outputs: Kept, inputs: Kept) -> Tensor | None:
        """Mark weights whose filter and input both survive with 1; `None` when all do."""
        rows = None if outputs is None else self._shape.rows(outputs)
        columns = None if inputs is None or self._shape.depthwise else self._shape.columns(inputs)
        if rows is None and columns is None:
            return None
        mask = torch.zeros_like(weight)
        mask[rows or slice(None)] = 1
        if columns is not None:
            dropped = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
            dropped[columns] = False
            mask[:, dropped] = 0
        return mask


class _LeveledProduct(nn.Module):
    """A product of two activations at any candidate bits.

    Args:
        at_bits: The quantized product at each candidate, calibrated.
        walk: Position in the pass.
        index: Index of the product among the searched layers.
    """

    def __init__(self, at_bits: dict[int, QuantizedProduct], walk: _Walk, index: int) -> None:
        super().__init__()
        self._walk, self._index, self._at_bits = walk, index, at_bits

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiply as the policy says."""
        right_bits, left_bits, _, _ = self._walk.choices[self._index]
        quantized = self._at_bits[left_bits].activation_quantizer(left)
        result: Tensor = self._at_bits[left_bits].product(quantized, self._at_bits[right_bits].weight_quantizer(right))
        return result


class LeveledNetwork:
    """The pretrained network under any policy of some candidates, for evaluation without training.

    Args:
        job: Model, weights and calibration images.
        bits: Candidate bits.
    """

    def __init__(self, job: SearchJob, bits: Sequence[int]) -> None:
        self._shapes, self._walk = job.task.network.middle, _Walk()
        self.model = job.float_model().eval()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        layers = _calibrated(job, self.model, bits)
        norms = [name for name, module in self.model.named_modules() if isinstance(module, nn.BatchNorm2d)]
        order = {shape.name: index for index, shape in enumerate(self._shapes)}
        for name, at_bits in layers.items():
            self._replace(name, self._leveled(job.task.network[name], at_bits, order.get(name)), order.get(name))
        for name in norms:
            self._replace(name, self.model.get_submodule(name), None)

    def _leveled(
        self, shape: LayerShape, at_bits: dict[int, QuantizedLayer | QuantizedProduct], index: int | None
    ) -> nn.Module:
        if index is None:
            return at_bits[EDGE_BITS]
        if shape.kind == "matmul":
            return _LeveledProduct(at_bits, self._walk, index)  # type: ignore[arg-type]
        return _LeveledLayer(shape, at_bits, self._walk, index)  # type: ignore[arg-type]

    def _replace(self, name: str, module: nn.Module, index: int | None) -> None:
        replace_layer(self.model, name, _Remembered(module, self._walk, index))

    @torch.no_grad()
    def outputs(self, policies: Sequence[Policy], images: Tensor) -> Iterator[Tensor]:
        """Yield the logits of each policy, shape (N, classes); neighbours in the list should agree in first layers.

        Args:
            policies: Policies with candidate bits.
            images: Normalised images, shape (N, C, H, W).
        """
        self._walk.choices = ()
        for policy in policies:
            self._walk.begin([choice_of(policy, shape) for shape in self._shapes])
            yield self.model(images)
        for module in self.model.modules():
            if isinstance(module, _Remembered):
                module.forget()


@torch.no_grad()
def _calibrated(
    job: SearchJob, model: nn.Module, bits: Sequence[int]
) -> dict[str, dict[int, QuantizedLayer | QuantizedProduct]]:
    """Make every layer at every candidate, calibrated on one batch of the float network.

    Args:
        job: Network and images.
        model: The float network, as it is evaluated.
        bits: Candidates of the searched layers; the first and the last layer have 8 bits.
    """
    made: dict[str, dict[int, QuantizedLayer | QuantizedProduct]] = {}

    def calibrate(layer: LayerShape, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        made[layer.name] = {}
        for own in bits if layer.position == "middle" else [EDGE_BITS]:
            quantized = quantized_layer(module, layer, (own, own), UniformQuantizer, normalized=True)
            quantized.to(inputs[0].device).calibrate(*inputs)
            made[layer.name][own] = quantized

    hooks = [
        model.get_submodule(layer.name).register_forward_pre_hook(partial(calibrate, layer))
        for layer in job.task.network.layers
    ]
    model(job.task.data.calibration_batches(1, job.schedule.batch_size)[0])
    for hook in hooks:
        hook.remove()
    return made
