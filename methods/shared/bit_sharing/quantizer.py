"""Bit sharing of one tensor as a module: its clip value, its thresholds, and the gates of the latest forward pass."""

import torch
from torch import Tensor, nn

from bench.api import UniformQuantizer
from bench.compression.kernels import Kind
from bench.compression.quantizer import Shifted, best_clip, positive
from methods.shared.bit_sharing.quantization import bit_sharing
from methods.shared.gates import opened
from methods.shared.quantizers.starts import calibration_bits
from methods.shared.space import FULL_PRECISION


class SharedQuantizer(nn.Module):
    """Quantize a tensor at the bits that its own gates choose (Eq. 10).

    Args:
        bits: Chain of candidate bits, K of them. The only candidate 32 leaves tensors as they are.
        kind: Weights or activations.
        like: Tensor whose type and device the parameters have.
        signed_input: Whether activations can be negative. They then get an offset β, and Q(x) is Q(x − β) + β.
        task_gradient: Whether the task loss reaches the gates.

    Attributes:
        clip: v, a scalar.
        thresholds: α_b2, …, α_bK, shape (K − 1,); 0 at the start (Algorithm 1, line 2).
        offset: β, a scalar, or `None`.
        gates: g_b2, …, g_bK of the latest forward pass, shape (K − 1,), differentiable.
        metric: Â of these gates, shape (K − 1,), without gradient.
    """

    def __init__(
        self,
        bits: tuple[int, ...],
        kind: Kind,
        like: Tensor,
        *,
        signed_input: bool = False,
        task_gradient: bool = True,
    ) -> None:
        super().__init__()
        self.bits, self.kind = bits, kind
        self.task_gradient = task_gradient
        self.clip = nn.Parameter(self._first_clip(like))
        self.thresholds = nn.Parameter(like.new_zeros(len(bits) - 1))
        self.offset = nn.Parameter(like.new_zeros(())) if signed_input else None
        self.gates = self.metric = like.new_zeros(0)

    def _first_clip(self, like: Tensor) -> Tensor:
        return like.new_ones(())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Quantize a tensor of any shape.

        Args:
            x: Any shape.
            mask: 1 for elements that count in the metrics, broadcastable to `x`; all when absent.
        """
        if self.bits == FULL_PRECISION:
            return x
        if self.offset is None:
            return self.share(x, mask)
        return self.share(x - self.offset, mask) + self.offset

    def share(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Quantize values that are not negative, or weights."""
        values, self.gates, self.metric = bit_sharing(
            x,
            positive(self.clip),
            self.thresholds,
            self.bits,
            self.kind,
            mask,
            task_gradient=self.task_gradient,
        )
        return values

    def chosen_bits(self) -> Tensor:
        """Compute the bits as a function of the gates (Eq. 14), a scalar."""
        return opened(self.bits, self.gates)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set clip value and offset to the least squared error on a tensor."""
        if self.bits == FULL_PRECISION:
            return
        if self.offset is not None:
            plain = UniformQuantizer(bits=calibration_bits(self.bits), kind=self.kind)
            shifted = Shifted(plain).to(x.device)
            shifted.calibrate(x)
            self.offset.copy_(shifted.offset)
            x = x - shifted.offset
        self._calibrate_clip(x)

    def _calibrate_clip(self, x: Tensor) -> None:
        self.clip.fill_(best_clip(x, calibration_bits(self.bits), self.kind))

    def clip_of(self, bits: int) -> Tensor:
        """Return the clip value of the plain quantizer at one of the candidates: the same for all."""
        return self.clip

    @torch.no_grad()
    def decide(self, bits: int) -> None:
        """Fix all gates at one of the candidates: open gates get the threshold −∞, shut ones +∞."""
        chosen = self.bits.index(bits)
        self.thresholds[:chosen] = -torch.inf
        self.thresholds[chosen:] = torch.inf
