"""Bit sharing beyond the paper: scaled metrics, gates that are probed, and a clip value for each candidate."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.compression.kernels import Kind, gradients, quantized, steps
from bench.compression.quantizer import best_clip, positive
from methods.shared.bit_sharing.network import SharedNetwork
from methods.shared.bit_sharing.quantization import gate_metrics, gate_products, gated_quantization
from methods.shared.bit_sharing.quantizer import SharedQuantizer
from methods.shared.gates import FilterGroups, gate


class ScaledQuantizer(SharedQuantizer):
    """Bit sharing whose metrics have factors, and some of whose gates act as if they were shut.

    Attributes:
        scale: Factors of the metrics, shape (K − 1,).
        probed: 1 for gates that act as if they were shut, 0 for others, shape (K − 1,); `None` for none. The gates
            themselves, and with them the cost, stay as they are. The task's gradient on a probed gate is that of a
            shut one.
    """

    scale: Tensor
    probed: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("scale", torch.ones_like(self.thresholds.detach()), persistent=False)
        self.register_buffer("probed", None, persistent=False)

    def share(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Quantize values that are not negative, or weights."""
        clip = positive(self.clip)
        self.metric = self.scale * self.metrics(x, clip.detach(), mask)
        self.gates = gate(self.metric, self.thresholds)
        acting = self.gates if self.probed is None else self.gates - (self.gates * self.probed).detach()
        return self.quantize(x, clip, acting if self.task_gradient else acting.detach())

    def metrics(self, x: Tensor, clip: Tensor, mask: Tensor | None) -> Tensor:
        """Compute the metrics without their factors, shape (K − 1,)."""
        return gate_metrics(x, clip, self.bits, self.kind, mask)

    def quantize(self, x: Tensor, clip: Tensor, gates: Tensor) -> Tensor:
        """Quantize at the bits that gates choose."""
        return gated_quantization(x, clip, gates, self.bits, self.kind)


class SeparateClipsQuantizer(ScaledQuantizer):
    """Bit sharing with a clip value for each candidate.

    The value is Q_1 + g_2(Q_2 − Q_1 + g_3(Q_3 − Q_2 + …)) with Q_j = v_j · D_bj(x/v_j). Candidates share their weights,
    but no longer their grid, so that Theorem 1 does not hold. Each metric is taken on the grid of the candidate below
    its gate.

    Attributes:
        clip: v_1, …, v_K, shape (K,).
    """

    def _first_clip(self, like: Tensor) -> Tensor:
        return like.new_ones(len(self.bits))

    def _calibrate_clip(self, x: Tensor) -> None:
        self.clip.copy_(self.clip.new_tensor([best_clip(x, b, self.kind) for b in self.bits]))

    def clip_of(self, bits: int) -> Tensor:
        """Return the clip value of one of the candidates."""
        return self.clip[self.bits.index(bits)]

    def metrics(self, x: Tensor, clip: Tensor, mask: Tensor | None) -> Tensor:
        """Compute the metrics without their factors, shape (K − 1,)."""
        grids = zip(clip, zip(self.bits, self.bits[1:], strict=False), strict=False)
        errors = [gate_metrics(x, own, pair, self.kind, mask) for own, pair in grids]
        return torch.cat([clip.new_zeros(0), *errors])

    def quantize(self, x: Tensor, clip: Tensor, gates: Tensor) -> Tensor:
        """Quantize at the bits that gates choose."""
        values: Tensor = _SeparateClips.apply(x, clip, gates, self.bits, self.kind)
        return values


class _SeparateClips(torch.autograd.Function):
    """The value at the chosen bits, with their own clip value.

    dL/dg_j comes from the products ⟨dL/dy, Q_j⟩, one pass for each candidate. The clip value of the chosen one
    alone learns.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, clips: Tensor, gates: Tensor, bits: tuple[int, ...], kind: Kind) -> Tensor:
        chosen = gates.cumprod(0).sum().long()
        counts = clips.new_tensor([steps(b) for b in bits])
        values = quantized(x, _entry(clips, chosen), _entry(counts, chosen), kind)
        ctx.save_for_backward(x, clips, values, gates, chosen)
        ctx.bits, ctx.kind = bits, kind
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, clips, values, gates, chosen = ctx.saved_tensors
        parts = gradients(grads[0], x, values, _entry(clips, chosen), ctx.kind)
        to_clips = torch.zeros_like(clips).index_copy(0, chosen.view(1), parts.to_clip.view(1))
        if not ctx.needs_input_grad[2] or len(ctx.bits) == 1:
            return parts.to_x, to_clips, None, None, None
        products = [
            gradients(grads[0], x, quantized(x, clip, steps(b), ctx.kind), clip, ctx.kind).value
            for clip, b in zip(clips, ctx.bits, strict=True)
        ]
        return parts.to_x, to_clips, gate_products(torch.stack(products).diff(), gates), None, None


def _entry(values: Tensor, index: Tensor) -> Tensor:
    """Select one entry of a vector as a scalar, without waiting for the device."""
    return values.index_select(0, index.view(1)).squeeze(0)


class ScaledGroups(FilterGroups):
    """Groups of filters whose metrics have one factor."""

    def __init__(self, groups: FilterGroups, scale: Tensor) -> None:
        self.__dict__.update(vars(groups))
        self._scale = scale

    def metric(self, weight: Tensor) -> Tensor:
        """Average the absolute weights of each group, times the factor, shape (G,)."""
        return super().metric(weight) * self._scale


class ExtendedNetwork(SharedNetwork):
    """A network of bit sharing whose quantizers are scaled ones."""

    def scaled_quantizers(self) -> Iterator[ScaledQuantizer]:
        """Yield the quantizers of weight and input of each layer, in order of execution."""
        for layer in self.layers.values():
            for quantizer in layer.quantizers().values():
                if isinstance(quantizer, ScaledQuantizer):
                    yield quantizer

    def scale_groups(self, layer: str, factor: float) -> None:
        """Give the metrics of a layer's filter groups a factor."""
        gates = self.layers[layer].filter_gates
        if gates is not None:
            gates.groups = ScaledGroups(gates.groups, gates.threshold.new_tensor(factor))

    @torch.no_grad()
    def probe(self, share: float, noise: torch.Generator) -> None:
        """Draw a share of the gates of bits, which act as if they were shut in the following forward passes.

        Args:
            share: Between 0, which ends probing, and 1.
            noise: Generator of the draws.
        """
        for quantizer in self.scaled_quantizers():
            like = quantizer.thresholds
            quantizer.probed = (torch.rand(like.shape, generator=noise) < share).to(like) if share else None
