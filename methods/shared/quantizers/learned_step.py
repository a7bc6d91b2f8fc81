"""LSQ, quantization with a learned step (Esser et al. 2020, arXiv 1902.08153).

    Q(x) = s · ⌊clip(x/s, −n, p)⌉        n = 2^(b−1), p = 2^(b−1) − 1 for weights        n = 0, p = 2^b − 1 for inputs

The gradient goes straight through the rounding, so that with v = x/s

    dQ/dx = 1 inside the grid, else 0        dQ/ds = ⌊v⌉ − v inside, −n below, p above.

The gradient of s is scaled by 1/√(N·p), so that steps and weights move at about the same relative rate. N is the number
of a layer's weights, or of its inputs for one image (Section 2.2).
"""

import math

import torch
from torch import Tensor, nn

from bench.compression.kernels import Kind
from bench.compression.quantizer import clamped, drawn_sample
from methods.shared.quantizers.starts import ClipInit

SMALLEST_STEP = 1e-5
"""Lower bound of steps (code of LIMPQ)."""
_CANDIDATES = 80
"""Number of steps that are compared for the least squared error, up to the one that reaches the largest value."""


def grid(bits: int, kind: Kind) -> tuple[int, int]:
    """Return the ends −n and p of the grid, in steps."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind == "weight" else (0, 2**bits - 1)


def quantize_by_step(x: Tensor, step: Tensor, bits: int, kind: Kind) -> Tensor:
    """Compute Q(x) with straight-through gradients for x and a scaled one for the step.

    Args:
        x: Weights of any shape, or inputs of shape (images, …).
        step: Step s, a positive scalar.
        bits: Number of bits, at least 2 for weights.
        kind: Weights, whose grid has a negative half, or activations, whose grid has none.
    """
    low, high = grid(bits, kind)
    count = x.numel() if kind == "weight" else x[0].numel()
    scale = 1 / math.sqrt(count * high)
    step = step.detach() + scale * (step - step.detach())
    value = clamped(x / step, low, high)
    return (value + (value.round() - value).detach()) * step


class LearnedStep(nn.Module):
    """LSQ's quantizer of one tensor.

    The name of its parameter begins with "clip", so that the harness exempts it from weight decay.

    Args:
        bits: Number of bits, at least 2 for weights.
        kind: Weights or activations.
        clip_init: First step: of the least squared error ("calibrated"), or that of LIMPQ's code ("paper").

    Attributes:
        clip_step: Step s, a scalar.

    Raises:
        ValueError: A weight has fewer than 2 bits: its grid would have no positive level.
    """

    def __init__(self, *, bits: int, kind: Kind, clip_init: ClipInit = "calibrated") -> None:
        super().__init__()
        if kind == "weight" and bits < 2:
            raise ValueError(f"the grid of a weight has no positive level at {bits} bit; give at least 2 bits")
        self.bits, self.kind, self.clip_init = bits, kind, clip_init
        self.clip_step = nn.Parameter(torch.ones(()))

    @property
    def step(self) -> Tensor:
        """The step, not below its lower bound."""
        return self.clip_step.clamp_min(SMALLEST_STEP)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor of any shape."""
        return quantize_by_step(x, self.step, self.bits, self.kind)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the first step for a tensor of any shape."""
        self.clip_step.fill_(max(SMALLEST_STEP, self._published(x) if self.clip_init == "paper" else self._best(x)))

    def _published(self, x: Tensor) -> float:
        """Compute LIMPQ's first step: three deviations of a weight; of an input, LSQ's rule."""
        if self.kind == "weight":
            mean, spread = float(x.mean()), 3 * float(x.std())
            return max(abs(mean - spread), abs(mean + spread)) / -grid(self.bits, self.kind)[0]
        return 2 * float(x.abs().mean()) / math.sqrt(grid(self.bits, self.kind)[1])

    def _best(self, x: Tensor) -> float:
        """Find the step with the least squared error, by a scan; a large tensor is represented by a drawn sample."""
        sample = drawn_sample(x)
        largest = float(sample.abs().max()) / grid(self.bits, self.kind)[1]
        steps = [largest * (number + 1) / _CANDIDATES for number in range(_CANDIDATES)] if largest else [1.0]

        def error(step: float) -> float:
            quantized = quantize_by_step(sample, sample.new_tensor(step), self.bits, self.kind)
            return float((quantized - sample).square().mean())

        return min(steps, key=error)

    def extra_repr(self) -> str:
        """Describe the quantizer in the printed form of a network."""
        return f"bits={self.bits}, kind={self.kind}"


def learned_step(*, bits: int, kind: Kind, normalized: bool) -> LearnedStep:
    """Make LSQ's quantizer; weights are not standardised, since the step is learned in their own units."""
    return LearnedStep(bits=bits, kind=kind)
