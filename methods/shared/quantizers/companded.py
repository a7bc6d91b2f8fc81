"""The quantizer of DJPQ and GETA: a learned step, range and exponent; at first the even grid of least error."""

import torch
from torch import Tensor, nn

from bench.compression.kernels import Kind
from bench.compression.quantizer import positive
from methods.shared.quantizers.learned_range import (
    SMALLEST,
    LearnedQuantizer,
    bounded,
    levels_of,
    passed_on,
    quantize,
)
from methods.shared.quantizers.starts import ClipInit, best_grid


class CompandedQuantizer(LearnedQuantizer):
    """Q with an exponent. At a fixed number of bits d is q^t over the number of levels.

    Args:
        bits: Number of bits at which a search starts, or the fixed number.
        kind: Weights or activations.
        searching: Whether the number of bits is searched.
        candidates: Candidates to which a search rounds its bits in each step; `None` for no rounding.
        linear: Whether the exponent stays 1.
        clip_init: First range: of the least squared error, or the largest value, as in GETA's code ("paper").

    Attributes:
        clip_exponent: Exponent t, a scalar.
    """

    def __init__(
        self,
        *,
        bits: int,
        kind: Kind,
        searching: bool = False,
        candidates: tuple[int, ...] | None = None,
        linear: bool = False,
        clip_init: ClipInit = "calibrated",
    ) -> None:
        super().__init__(bits=bits, kind=kind, searching=searching)
        self.linear, self.clip_init = linear, clip_init
        self.clip_exponent = nn.Parameter(torch.ones(()), requires_grad=not linear)
        self.levels: Tensor | None
        levels = None if candidates is None else [float(levels_of(bits, self.signed)) for bits in candidates]
        self.register_buffer("levels", None if levels is None else torch.tensor(levels), persistent=False)
        if not searching:
            del self.clip_step

    def forward(self, x: Tensor) -> Tensor:
        """Compute Q(x) for a tensor of any shape."""
        if self.searching:
            exponent = None if self.linear else self.clip_exponent
            return quantize(x, self._searched_step(), self.clip_range, exponent, signed=self.signed)
        limit = positive(bounded(self.clip_range, positive(self.clip_range)))
        levels = levels_of(self.bits, self.signed)
        if self.linear:
            return quantize(x, limit / levels, limit, signed=self.signed)
        power = positive(bounded(self.clip_exponent, positive(self.clip_exponent)))
        return quantize(x, limit**power / levels, limit, power, signed=self.signed)

    def _searched_step(self) -> Tensor:
        """Return d, or that of the nearest candidate with the gradient of d."""
        if self.levels is None:
            return self.clip_step
        power = self.clip_range.detach() ** self.clip_exponent.detach()
        candidates = torch.log2(self.levels + 1)
        nearest = (candidates - torch.log2(power / self.clip_step.detach() + 1)).abs().argmin()
        return passed_on(power / self.levels[nearest], self.clip_step)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the first grid for a tensor of any shape, with all levels of `bits` and t = 1."""
        if self.clip_init == "paper":
            limit = max(float(x.abs().max()), SMALLEST)
            step = limit / levels_of(self.bits, self.signed)
        else:
            step, limit = best_grid(x, self.bits, signed=self.signed)
        self.clip_range.fill_(limit)
        self.clip_exponent.fill_(1.0)
        if self.searching:
            self.clip_step.fill_(step)


def companded_quantizer(*, bits: int, kind: Kind, normalized: bool, linear: bool = False) -> CompandedQuantizer:
    """Make the quantizer of a fixed number of bits; weights are not standardised, since their range is learned."""
    return CompandedQuantizer(bits=bits, kind=kind, linear=linear)
