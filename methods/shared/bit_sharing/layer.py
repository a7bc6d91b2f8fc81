"""The layer of a bit-sharing search: one weight, one clip value a tensor, gates for bits and filters."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bench.api import LayerPolicy, LayerShape, LayerSpace, UniformQuantizer, geometry_of
from bench.compression.kernels import Kind
from bench.compression.quantizer import Shifted, best_clip, positive, standardize
from methods.shared.bit_sharing.quantization import bit_sharing
from methods.shared.gates import FilterGroups, opened
from methods.shared.space import FULL_PRECISION

GatePlace = Literal["next_input", "norm_output", "weight"]
GroupMetric = Literal["raw", "normalized"]
ClipSharing = Literal["one", "per_width"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSettings:
    """How shared layers behave; see the options of `sbs`."""

    gate_place: GatePlace
    group_metric: GroupMetric
    weight_normalization: bool
    task_gradient: bool
    calibration_bits: int
    clip_sharing: ClipSharing = "one"


class SharedLayer(nn.Module):
    """A convolution or linear layer that encodes all its candidates in one path (paper, Section 3.2).

    A pruned filter is dead exactly as in the physically reduced network: its channel is masked where the next layer
    that mixes channels reads it, after quantization, by way of that layer's weight. There a shut gate still has a
    gradient; between normalisation and ReLU it would have none, and on its own weight none or an exploding one.
    Statistics and metrics count surviving weights and channels only, for the same agreement. A depthwise convolution
    in between computes the dead channel, which nobody reads.

    Args:
        module: The float layer.
        shape: What is known of it.
        space: What may be chosen.
        settings: How it behaves.
        producer, leader: The layers whose gates are those of its inputs, and of its outputs where these are not its
            own; see `LayerShape`.

    Attributes:
        clip_weight, clip_activation: v, a scalar; or one for each candidate, shape (K,).
        scale_weight, scale_activation, scale_filters: Factors of the metrics, of each gate, and of all groups.
        thresholds_weight, thresholds_activation: α_b2 … α_bK of weights and of inputs.
        threshold_filters: α_b1, one for the layer.
        offset_activation: β where the input can be negative; see `Shifted`.
        probed_weight, probed_activation: Gates of bits that the next passes take for shut, 1 for such a one, shape
            (K − 1,); `None` while there are no probes.
        weight_gates, activation_gates, group_gates: Gates of the latest forward pass, differentiable.
        weight_metric, activation_metric, group_metric: Their metrics.
        channel_gates: The gate of each filter by its own decision; `None` when there is none.
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
    ) -> None:
        super().__init__()
        self.weight, self.bias = module.weight, module.bias  # type: ignore[assignment]
        self.geometry = geometry_of(module)
        self.space, self.settings = space, settings
        self._depthwise = shape.depthwise
        self._normalized = settings.weight_normalization and shape.normalized
        # A tuple keeps them from becoming submodules.
        self._producer, self._leader = (producer,), (leader,)
        self.clip_weight = self._new_clip(space.weight_bits)
        self.clip_activation = self._new_clip(space.activation_bits)
        self.offset_activation = nn.Parameter(self.weight.new_zeros(())) if shape.signed_input else None
        self.thresholds_weight = nn.Parameter(self.weight.new_zeros(len(space.weight_bits) - 1))
        self.thresholds_activation = nn.Parameter(self.weight.new_zeros(len(space.activation_bits) - 1))
        self.scale_weight: Tensor
        self.scale_activation: Tensor
        self.scale_filters: Tensor
        self.register_buffer("scale_weight", torch.ones_like(self.thresholds_weight.detach()))
        self.register_buffer("scale_activation", torch.ones_like(self.thresholds_activation.detach()))
        self.register_buffer("scale_filters", self.weight.new_ones(()))
        self.probed_weight: Tensor | None = None
        self.probed_activation: Tensor | None = None
        self.threshold_filters: nn.Parameter | None = None
        self.groups: FilterGroups | None = None
        if space.group_size:
            self.groups = FilterGroups(len(self.weight), space.group_size, self.weight.device)
            self.threshold_filters = nn.Parameter(self.weight.new_zeros(()))
        self.channel_gates = self._fixed_channels(space.kept_filters)
        self.group_gates = self.group_metric = self.weight.new_zeros(0)
        self.weight_gates = self.weight_metric = self.weight.new_zeros(0)
        self.activation_gates = self.activation_metric = self.weight.new_zeros(0)

    def _new_clip(self, chain: tuple[int, ...]) -> nn.Parameter:
        shape = () if self.settings.clip_sharing == "one" else (len(chain),)
        return nn.Parameter(self.weight.new_ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer at the active widths, with the channels that its producer keeps."""
        self._open_groups()
        weight = self._shared_weight()
        return self.geometry.convolve(self._shared_input(x), weight, self.bias)

    def _open_groups(self) -> None:
        if self.groups is None or self.threshold_filters is None:
            return
        raw = self.settings.group_metric == "raw"
        measured = self.groups.metric(self.weight if raw else standardize(self.weight.detach()))
        self.group_metric = measured * self.scale_filters
        self.group_gates = self.groups.gates(self.group_metric, self.threshold_filters)
        if not self.settings.task_gradient:
            self.channel_gates = self.groups.spread(self.group_gates.detach())
        else:
            self.channel_gates = self.groups.spread(self.group_gates)

    def _shared_weight(self) -> Tensor:
        if self.space.weight_bits == FULL_PRECISION:
            weight = self.weight
        else:
            survivors = self._surviving_weights()
            standard = standardize(self.weight, survivors) if self._normalized else self.weight
            weight, self.weight_gates, self.weight_metric = bit_sharing(
                standard,
                positive(self.clip_weight),
                self.thresholds_weight,
                self.space.weight_bits,
                "weight",
                survivors,
                self.scale_weight,
                self.probed_weight,
                task_gradient=self.settings.task_gradient,
            )
        if self.settings.gate_place == "weight" and self.channel_gates is not None:
            return weight * _along(self.channel_gates, 0, weight)
        return self._without_dead_inputs(weight)

    def _without_dead_inputs(self, weight: Tensor) -> Tensor:
        gates = self.input_gates
        if gates is None or self._depthwise or self.settings.gate_place == "weight":
            return weight
        if self.settings.gate_place == "norm_output":
            # A channel that was set to zero is not zero any more where its range has an offset, or had no norm to
            # be masked after. The mask here changes no gradient of a gate.
            gates = gates.detach()
        # The same function as masking the input, with the same gradients, on a far smaller tensor.
        return weight * _along(gates, 1, weight)

    def _shared_input(self, x: Tensor) -> Tensor:
        if self.space.activation_bits == FULL_PRECISION:
            return x
        channels, offset = self.input_gates, self.offset_activation
        values, self.activation_gates, self.activation_metric = bit_sharing(
            x if offset is None else x - offset,
            positive(self.clip_activation),
            self.thresholds_activation,
            self.space.activation_bits,
            "activation",
            None if channels is None else _along(channels.detach(), 1, x),
            self.scale_activation,
            self.probed_activation,
            task_gradient=self.settings.task_gradient,
        )
        return values if offset is None else values + offset

    @property
    def input_gates(self) -> Tensor | None:
        """The gate of each input channel; `None` when all are there."""
        producer = self._producer[0]
        return None if producer is None else producer.channel_gates

    @property
    def output_gates(self) -> Tensor | None:
        """The gate of each filter, its own or its leader's; `None` when all are there."""
        leader = self._leader[0]
        return self.channel_gates if leader is None else leader.channel_gates

    def _surviving_weights(self) -> Tensor | None:
        """1 for weights whose filter and input channel both survive."""
        outputs, inputs = self.output_gates, None if self._depthwise else self.input_gates
        if outputs is None and inputs is None:
            return None
        mask = self.weight.new_ones([1] * self.weight.ndim)
        if outputs is not None:
            mask = mask * _along(outputs.detach(), 0, self.weight)
        if inputs is not None:
            mask = mask * _along(inputs.detach(), 1, self.weight)
        return mask

    def bits(self) -> tuple[Tensor, Tensor]:
        """Widths of weight and input as functions of the gates (Eq. 14), two scalars."""
        return (
            opened(self.space.weight_bits, self.weight_gates),
            opened(self.space.activation_bits, self.activation_gates),
        )

    def filters(self) -> Tensor:
        """Surviving filters by its own decision, as a function of the gates, a scalar."""
        if self.groups is not None:
            return (self.group_gates * self.groups.sizes).sum()
        if self.channel_gates is not None:
            return self.channel_gates.sum()
        return self.weight.new_tensor(float(self.weight.shape[0]))

    def clips(self) -> dict[str, nn.Parameter]:
        """Clip values and offset, by kind."""
        found = {"weight": self.clip_weight, "activation": self.clip_activation}
        return found if self.offset_activation is None else {**found, "offset": self.offset_activation}

    def decided_clips(self) -> dict[str, Tensor]:
        """The same for the widths that were decided on, each a scalar."""
        decided = {"weight": self.thresholds_weight, "activation": self.thresholds_activation}
        return {
            kind: clip if clip.ndim == 0 else clip[int(decided[kind].isneginf().sum())]
            for kind, clip in self.clips().items()
        }

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set clip values and offset for the calibration width, or for the only width that there is."""
        if self.space.weight_bits != FULL_PRECISION:
            standard = standardize(self.weight) if self._normalized else self.weight
            self._set_clip(self.clip_weight, standard, self.space.weight_bits, "weight")
        if self.space.activation_bits == FULL_PRECISION:
            return
        chain = self.space.activation_bits
        if self.offset_activation is not None:
            range_ = UniformQuantizer(bits=self._width(chain), kind="activation").to(x.device)
            shifted = Shifted(range_).to(x.device)
            shifted.calibrate(x)
            self.offset_activation.copy_(shifted.offset)
            x = x - shifted.offset
        self._set_clip(self.clip_activation, x, chain, "activation")

    def _set_clip(self, clip: nn.Parameter, x: Tensor, chain: tuple[int, ...], kind: Kind) -> None:
        """Each clip value for its own width, or the one of all for the calibration width."""
        widths = [self._width(chain)] if clip.ndim == 0 else chain
        clip.copy_(clip.new_tensor([best_clip(x, width, kind) for width in widths]).view_as(clip))

    def _width(self, chain: tuple[int, ...]) -> int:
        """The candidate nearest to the calibration width."""
        return min(chain, key=lambda width: abs(width - self.settings.calibration_bits))

    @torch.no_grad()
    def decide(self, policy: LayerPolicy) -> None:
        """Fix all gates as a policy says: open gates get the threshold −∞, shut ones +∞."""
        for thresholds, chain, width in (
            (self.thresholds_weight, self.space.weight_bits, policy.weight_bits),
            (self.thresholds_activation, self.space.activation_bits, policy.activation_bits),
        ):
            opened = chain.index(width)
            thresholds[:opened] = -torch.inf
            thresholds[opened:] = torch.inf
        self.groups = None
        self.channel_gates = self._fixed_channels(policy.kept_filters)

    def _fixed_channels(self, kept: tuple[int, ...] | None) -> Tensor | None:
        if kept is None:
            return None
        mask = self.weight.new_zeros(self.weight.shape[0])
        mask[list(kept)] = 1
        return mask


def _along(gates: Tensor, dimension: int, like: Tensor) -> Tensor:
    """Gates of channels in a shape that multiplies a tensor along one of its dimensions."""
    shape = [1] * like.ndim
    shape[dimension] = -1
    return gates.view(shape)
