"""Networks of companded quantizers, whose continuous bits are kept between two bounds: those of DJPQ and GETA."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.api import SearchJob
from methods.shared.networks.ranges import RangeNetwork
from methods.shared.quantizers.companded import CompandedQuantizer
from methods.shared.quantizers.learned_range import SMALLEST, levels_of

LINEAR = ("clip_step", "clip_range")
"""Parameters that a linear quantizer learns."""
COMPANDED = (*LINEAR, "clip_exponent")
"""Parameters of a quantizer with an exponent."""


class CompandedNetwork(RangeNetwork):
    """A model whose searched layers have companded quantizers.

    Args:
        job: Model, weights and measure of cost.
        bits: Candidate bits, rising.
        quantizer: Factory of the quantizers; see `RangeNetwork`.
        exponent_bounds: Lower and upper bound of exponents.
        others: Other arguments of `RangeNetwork`.

    Attributes:
        lowest, highest: Bounds of the continuous bits, broadcastable to (2, L); at first the ends of the candidates.
    """

    fixed_parameters: ClassVar[tuple[str, ...]] = ("clip_range", "clip_exponent")

    def __init__(
        self,
        job: SearchJob,
        bits: tuple[int, ...],
        quantizer: Callable[..., CompandedQuantizer],
        *,
        exponent_bounds: tuple[float, float] = (1.0, 1.0),
        **others: Any,
    ) -> None:
        super().__init__(job, bits, quantizer, **others)
        self._exponent_bounds = exponent_bounds
        self.lowest, self.highest = self.candidates[0], self.candidates[-1]

    def continuous_bits(self) -> Tensor:
        """Compute b = log2(q^t/d + 1), and 1 more for weights, shape (2, L), differentiable."""
        step, limit, exponent = (self.stacked(name) for name in COMPANDED)
        return (torch.log2(limit**exponent / step + 1) + self.signed).double()

    def relaxed_bits(self) -> Tensor:
        """Compute the continuous bits."""
        return self.continuous_bits()

    @torch.no_grad()
    def margins(self) -> Tensor:
        """Compute distances to the middles between two candidates."""
        middles = (self.candidates[1:] + self.candidates[:-1]) / 2
        return self.continuous_bits().unsqueeze(2) - middles

    @torch.no_grad()
    def chosen(self) -> Tensor:
        """Find the nearest candidates; in a middle, the lower one."""
        return (self.margins() > 0).sum(2)

    @torch.no_grad()
    def project(self) -> None:
        """Keep parameters positive and t in its bounds, and change d to keep bits between their bounds."""
        limit = self.stacked("clip_range").clamp_min(SMALLEST)
        exponent = self.stacked("clip_exponent").clamp(*self._exponent_bounds)
        self.fill("clip_range", limit)
        self.fill("clip_exponent", exponent)
        self.fill("clip_step", torch.clamp(self.stacked("clip_step"), *self.step_bounds()))

    @torch.no_grad()
    def step_bounds(self) -> tuple[Tensor, Tensor]:
        """Compute the least and the largest d, those of the most and of the fewest bits, each of shape (2, L)."""
        power = self.stacked("clip_range") ** self.stacked("clip_exponent")
        fewest, most = (levels_of(bits, self.signed).to(power) for bits in (self.lowest, self.highest))
        return power / most, power / fewest

    @torch.no_grad()
    def bound_gradients(self) -> None:
        """Clip gradients so that none is larger than its parameter."""
        for parameter in self.parameters(*COMPANDED):
            if parameter.grad is not None:
                parameter.grad.clamp_(-parameter, parameter)
