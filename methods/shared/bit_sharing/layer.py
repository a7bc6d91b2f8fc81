"""The layer of a bit-sharing search: one weight for all candidates, with gates for bits and filters."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.api import LayerPolicy, LayerShape, LayerSpace, geometry_of
from bench.compression.quantizer import standardize
from methods.shared.bit_sharing.quantizer import SharedQuantizer
from methods.shared.decisions import What
from methods.shared.gates import FilterGates, of_inputs, of_outputs
from methods.shared.space import FULL_PRECISION

GatePlace = Literal["next_input", "norm_output", "weight"]
GroupMetric = Literal["raw", "normalized"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSettings:
    """Behaviour of shared layers; see the options of `sbs`.

    Attributes:
        gate_place: Place where a pruning gate acts.
        group_metric: Weights on which the metric of a group is taken.
        weight_normalization: Whether weights that a normalisation follows are standardised.
        task_gradient: Whether the task loss reaches the gates.
    """

    gate_place: GatePlace
    group_metric: GroupMetric
    weight_normalization: bool
    task_gradient: bool


class SharedOperation(nn.Module):
    """What layers and products of activations have in common: two tensors whose bits gates choose.

    Args:
        shape: Shape of the layer or product.
        space: Choices of bits and filters that the search has in the layer.

    Attributes:
        weight_quantizer: Bit sharing of the weight, or of the right operand.
        activation_quantizer: Bit sharing of the input, or of the left operand.
        filter_gates: Pruning gates; `None` when the search does not prune filters here.
        channel_gates: Gate of each filter in the latest forward pass, by the layer's own decision; `None` when all
            filters are kept.
    """

    weight_quantizer: SharedQuantizer
    activation_quantizer: SharedQuantizer

    def __init__(self, shape: LayerShape, space: LayerSpace) -> None:
        super().__init__()
        self.shape, self.space = shape, space
        self.filter_gates: FilterGates | None = None
        self.channel_gates: Tensor | None = None

    def quantizers(self) -> dict[What, SharedQuantizer]:
        """Return both quantizers, by what they decide."""
        return {"weight_bits": self.weight_quantizer, "activation_bits": self.activation_quantizer}

    def clips(self, policy: LayerPolicy) -> dict[str, Tensor]:
        """Return clip values and offsets at the bits of a policy, by the kinds of `SearchResult.clips`."""
        clips = {
            "weight": self.weight_quantizer.clip_of(policy.weight_bits),
            "activation": self.activation_quantizer.clip_of(policy.activation_bits),
        }
        offsets = {"weight.offset": self.weight_quantizer.offset, "offset": self.activation_quantizer.offset}
        return clips | {key: offset for key, offset in offsets.items() if offset is not None}

    def filters(self) -> Tensor:
        """Count the filters that survive by the layer's own decision, as a function of the gates; a scalar."""
        if self.filter_gates is not None:
            return self.filter_gates.count()
        if self.channel_gates is not None:
            return self.channel_gates.sum()
        return self.weight_quantizer.clip.new_tensor(float(self.shape.filters))

    def choices(self) -> list[float]:
        """Read the bits of both tensors and the number of filters that the gates choose."""
        chosen = (self.weight_quantizer.chosen_bits(), self.activation_quantizer.chosen_bits(), self.filters())
        return [number.item() for number in chosen]

    @torch.no_grad()
    def decide(self, policy: LayerPolicy) -> None:
        """Fix all gates as a policy says."""
        self.weight_quantizer.decide(policy.weight_bits)
        self.activation_quantizer.decide(policy.activation_bits)
        self.filter_gates = None
        self.channel_gates = self.fixed_channels(policy.kept_filters)

    def fixed_channels(self, kept: tuple[int, ...] | None) -> Tensor | None:
        """Return 1 for kept filters and 0 for others; `None` when all are kept."""
        if kept is None:
            return None
        mask = self.weight_quantizer.clip.new_zeros(self.shape.filters)
        mask[list(kept)] = 1
        return mask


class SharedLayer(SharedOperation):
    """A convolution or linear layer that encodes all its candidates in one path (paper, Section 3.2).

    A pruned filter is dead exactly as in the physically reduced network. Its channel is masked, after quantization,
    where the next layer that mixes channels reads it; the mask acts on that layer's weight. There a shut gate still
    has a gradient. Between normalisation and ReLU it would have none, and on its own weight none or an exploding one.
    For the same agreement, statistics and metrics count surviving weights and channels only. A depthwise convolution
    in between computes the dead channel, which no layer reads.

    Args:
        module: The float layer.
        shape: Shape of the layer.
        space: Choices of the layer.
        settings: Behaviour of the layer.
        producer: Layer whose pruning gates are those of the inputs; see `LayerShape`.
        leader: Layer whose pruning gates are those of the outputs, where the layer has none of its own.
        quantizer: Class of the two quantizers.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        module: nn.Module,
        shape: LayerShape,
        space: LayerSpace,
        settings: LayerSettings,
        *,
        producer: "SharedLayer | None" = None,
        leader: "SharedLayer | None" = None,
        quantizer: type[SharedQuantizer] = SharedQuantizer,
    ) -> None:
        super().__init__(shape, space)
        self.weight, self.bias = module.weight, module.bias  # type: ignore[assignment]
        self.geometry = geometry_of(module)
        self.settings = settings
        self._depthwise = shape.depthwise
        self._channel_dimension = -1 if shape.kind == "linear" else 1
        self._normalized = settings.weight_normalization and shape.normalized
        # A tuple keeps them from becoming submodules.
        self._producer, self._leader = (producer,), (leader,)
        felt = settings.task_gradient
        self.weight_quantizer = quantizer(space.weight_bits, "weight", self.weight, task_gradient=felt)
        self.activation_quantizer = quantizer(
            space.activation_bits, "activation", self.weight, signed_input=shape.signed_input, task_gradient=felt
        )
        self.filter_gates = FilterGates(self.weight, shape, space.group_size) if space.group_size else None
        self.channel_gates = self.fixed_channels(space.kept_filters)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer at the bits that its gates choose, to the channels that its producer keeps."""
        if self.filter_gates is not None:
            self.channel_gates = self._channel_gates(self.filter_gates)
        weight = self._shared_weight()
        return self.geometry.convolve(self._shared_input(x), weight, self.bias)

    def _channel_gates(self, filter_gates: FilterGates) -> Tensor:
        raw = self.settings.group_metric == "raw"
        gates: Tensor = filter_gates(self.weight if raw else standardize(self.weight.detach()))
        return gates if self.settings.task_gradient else gates.detach()

    def _shared_input(self, x: Tensor) -> Tensor:
        channels = self.input_gates
        mask = None if channels is None else along(channels.detach(), self._channel_dimension, x)
        values: Tensor = self.activation_quantizer(x, mask)
        return values

    def _shared_weight(self) -> Tensor:
        weight = self.weight
        if self.space.weight_bits != FULL_PRECISION:
            survivors = self._surviving_weights()
            weight = self.weight_quantizer(self._standardized(survivors), survivors)
        if self.settings.gate_place == "weight" and self.channel_gates is not None:
            return weight * along(of_outputs(self.channel_gates, self.shape), 0, weight)
        return self._without_dead_inputs(weight)

    def _standardized(self, survivors: Tensor | None = None) -> Tensor:
        return standardize(self.weight, survivors) if self._normalized else self.weight

    def _without_dead_inputs(self, weight: Tensor) -> Tensor:
        gates = self.input_gates
        if gates is None or self._depthwise or self.settings.gate_place == "weight":
            return weight
        if self.settings.gate_place == "norm_output":
            # A channel that was set to zero is not zero any more where its range has an offset, or had no norm to
            # be masked after. The mask here changes no gradient of a gate.
            gates = gates.detach()
        # The same function as masking the input, with the same gradients, on a far smaller tensor.
        return weight * along(gates, 1, weight)

    @property
    def input_gates(self) -> Tensor | None:
        """The gate of each input channel; `None` when all are kept."""
        producer = self._producer[0]
        gates = None if producer is None else producer.channel_gates
        return None if gates is None else of_inputs(gates, self.shape)

    @property
    def output_gates(self) -> Tensor | None:
        """The gate of each output, by the layer's own decision or its leader's; `None` when all are kept."""
        leader = self._leader[0]
        gates = self.channel_gates if leader is None else leader.channel_gates
        return None if gates is None else of_outputs(gates, self.shape)

    def _surviving_weights(self) -> Tensor | None:
        """Mark weights whose filter and input channel both survive with 1; `None` when all do."""
        outputs, inputs = self.output_gates, None if self._depthwise else self.input_gates
        if outputs is None and inputs is None:
            return None
        mask = self.weight.new_ones([1] * self.weight.ndim)
        if outputs is not None:
            mask = mask * along(outputs.detach(), 0, self.weight)
        if inputs is not None:
            mask = mask * along(inputs.detach(), 1, self.weight)
        return mask

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the parameters of both quantizers from the weight and from an input of the layer."""
        self.weight_quantizer.calibrate(self._standardized())
        self.activation_quantizer.calibrate(x)


class SharedProduct(SharedOperation):
    """A product of two activations that encodes all its candidates in one path.

    The right operand takes the place of a layer's weight. A product of heads computes those that are masked where the
    next layer reads them; its metrics count the surviving ones only.

    Args:
        product: Module that multiplies.
        shape: Shape of the product.
        space: Choices of the product.
        settings: Behaviour of the layers.
        like: Tensor whose type and device the parameters have.
        leader: Layer whose pruning gates are those of the heads; `None` when there are none.
        quantizer: Class of the two quantizers.
    """

    def __init__(
        self,
        product: nn.Module,
        shape: LayerShape,
        space: LayerSpace,
        settings: LayerSettings,
        like: Tensor,
        *,
        leader: SharedLayer | None = None,
        quantizer: type[SharedQuantizer] = SharedQuantizer,
    ) -> None:
        super().__init__(shape, space)
        self.product = product
        self._leader = (leader,)
        felt = settings.task_gradient
        self.weight_quantizer = quantizer(space.weight_bits, "activation", like, signed_input=True, task_gradient=felt)
        self.activation_quantizer = quantizer(
            space.activation_bits, "activation", like, signed_input=shape.signed_input, task_gradient=felt
        )

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiply at the bits that the gates choose."""
        leader = self._leader[0]
        heads = None if leader is None else leader.channel_gates
        mask = None if heads is None else heads.detach().view(-1, 1, 1)
        result: Tensor = self.product(self.activation_quantizer(left, mask), self.weight_quantizer(right, mask))
        return result

    @torch.no_grad()
    def calibrate(self, left: Tensor, right: Tensor) -> None:
        """Set the parameters of both quantizers from two operands."""
        self.activation_quantizer.calibrate(left)
        self.weight_quantizer.calibrate(right)


def along(gates: Tensor, dimension: int, like: Tensor) -> Tensor:
    """Give gates of channels a shape that multiplies a tensor along one of its dimensions."""
    shape = [1] * like.ndim
    shape[dimension] = -1
    return gates.view(shape)
