"""The plain quantizer (paper, Section 2, Eqs. 1–4): the common recipe of every method.

With k bits the step is s = 1/(2^k − 1) on [0, 1] and

    activations  z = clip(x/v, 0, 1)                Q(x) = v · D(z, s)
    weights      z = (clip(w/v, −1, 1) + 1)/2       Q(w) = v · (2 · D(z, s) − 1)
    D(z, s) = s · ⌈z/s − 1/2⌉

The gradients are straight-through: D counts as the identity in z. Hence dQ/dx is 1 inside the clip range and 0 outside.
dQ/dv has two terms: the level itself, and −z (−w/v for weights) inside the range.

There are two implementations of the same mathematics. `quantize_literal` reads like the equations and is differentiated
by autograd. Networks use `quantize`. It keeps its input and its output, which the convolution keeps anyway, and
recomputes the rest in the backward pass (`bench.compression.kernels`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench.compression.kernels import Kind, gradients, quantized, steps

_SMALLEST_CLIP = 1e-6
_WEIGHT_STD_FLOOR = 1e-12
_CALIBRATION_STEPS = 80
_CALIBRATION_SAMPLE = 2**16
_CALIBRATION_OFFSETS = 8
_OFFSET_SAMPLE = 2**12

Clips = Mapping[str, float]
"""Parameters of the common quantizers, by "<layer>.weight" and "<layer>.activation", and by "<layer>.offset" for inputs
that can be negative. The right operand of a product of activations has "<layer>.weight" and "<layer>.weight.offset"."""


def clamped(x: Tensor, low: float | Tensor | None = None, high: float | Tensor | None = None) -> Tensor:
    """Clip a tensor, with a derivative of 1 at the bounds themselves.

    On a bound the derivative of a clip is a choice: 1, 0 or something between. PyTorch made another choice in version
    2.14 (0 for numbers as bounds, 1/2 for tensors) than before it (1). Ties are not rare: the zeros after a ReLU lie on
    a bound, and so does a range that was calibrated to all levels of its grid. With 1, a parameter that lies on its
    bound still learns, and a quantizer is the identity on the whole range that it represents. The fast form of the
    quantizer makes the same choice (`bench.compression.kernels.Gradients`).

    Use it wherever autograd differentiates a clip; elsewhere `Tensor.clamp` gives the same values.

    Args:
        x: Tensor of any shape.
        low: Lower bound, a number or a tensor that is broadcastable to `x`; `None` for no bound. A tensor gets the
            gradient of the elements below it.
        high: Upper bound, at least `low`, of the same kinds.
    """
    if low is not None:
        x = torch.where(x < low, low, x)
    if high is not None:
        x = torch.where(x > high, high, x)
    return x


def discretize(z: Tensor, bits: int) -> Tensor:
    """Compute D(z, s) of Eq. 3: the nearest of the 2^k levels in [0, 1], the lower one on a tie; without gradient."""
    return (z.detach() * steps(bits) - 0.5).ceil_().div_(steps(bits))


def normalize(x: Tensor, clip: Tensor, kind: Kind) -> Tensor:
    """Map a tensor to z in [0, 1] by its clip value (Eqs. 1, 2)."""
    if kind == "activation":
        return clamped(x / clip, 0, 1)
    return (clamped(x / clip, -1, 1) + 1) / 2


def denormalize(z: Tensor, clip: Tensor, kind: Kind) -> Tensor:
    """Invert `normalize` inside the clip range."""
    return clip * z if kind == "activation" else clip * (2 * z - 1)


def straight_through(z: Tensor, bits: int) -> Tensor:
    """Compute D(z, s) with the gradient of the identity."""
    return z + (discretize(z, bits) - z).detach()


def quantize_literal(x: Tensor, clip: Tensor, bits: int, kind: Kind) -> Tensor:
    """Compute Q(x) equation by equation; arguments and result are those of `quantize`."""
    return denormalize(straight_through(normalize(x, clip, kind), bits), clip, kind)


class _Quantize(torch.autograd.Function):
    """Q with straight-through gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, count: int | Tensor, kind: Kind) -> Tensor:
        values = quantized(x, clip, count, kind)
        ctx.save_for_backward(x, clip, values)
        ctx.kind = kind
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None]:
        x, clip, values = ctx.saved_tensors
        result = gradients(grads[0], x, values, clip, ctx.kind)
        return result.to_x, result.to_clip, None, None


def quantize(x: Tensor, clip: Tensor, bits: int, kind: Kind) -> Tensor:
    """Quantize a tensor, with straight-through gradients for `x` and `clip`.

    Args:
        x: Tensor of any shape.
        clip: Clip value v, a positive scalar.
        bits: Number of bits k.
        kind: Kind of quantizer, for weights or for activations.
    """
    return _quantize_to(x, clip, steps(bits), kind)


def _quantize_to(x: Tensor, clip: Tensor, count: int | Tensor, kind: Kind) -> Tensor:
    result: Tensor = _Quantize.apply(x, clip, count, kind)
    return result


def standardize(weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """Standardise weights: (w − mean)/std over the tensor, with statistics that have no gradient.

    A single weight has no deviation. It is divided by its absolute value: a normalisation that follows undoes that.

    Args:
        weight: Weights of any shape.
        mask: 1 for kept and 0 for pruned weights, broadcastable to `weight`. The statistics are those of the kept
            weights, so that a searched network agrees with its reduced form. All are kept by default.
    """
    with torch.no_grad():
        mean, std = _mean_and_std(weight, mask)
    return (weight - mean) / std.clamp_min(_WEIGHT_STD_FLOOR)


def _mean_and_std(weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the kept weights; 0 and the absolute value where a single one is kept."""
    if mask is None and weight.numel() > 1:
        return weight.mean(), weight.std()
    kept = torch.ones_like(weight) if mask is None else mask.expand_as(weight)
    count, total = kept.sum(), (weight * kept).sum()
    mean = total / count
    std = (((weight - mean).square() * kept).sum() / (count - 1)).sqrt()
    return torch.where(count == 1, 0, mean), torch.where(count == 1, total.abs(), std)


def positive(clip: Tensor) -> Tensor:
    """Make a clip value positive, whatever value the optimizer gave it."""
    return clamped(clip.abs(), _SMALLEST_CLIP)


def drawn_sample(x: Tensor, count: int = _CALIBRATION_SAMPLE) -> Tensor:
    """Return a tensor's elements in one dimension, or a random choice of them that is the same on every call.

    Evenly spaced elements would all come from one column of the maps, since maps have powers of two as sizes.

    Args:
        x: Tensor of any shape.
        count: Largest number of elements to return.
    """
    x = x.flatten()
    if x.numel() <= count:
        return x
    drawn = torch.randint(x.numel(), (count,), generator=torch.Generator().manual_seed(0))
    return x[drawn.to(x.device)]


def best_clip(x: Tensor, bits: int, kind: Kind) -> float:
    """Find the clip value with the least mean squared error of Q(x), by a scan over the tensor's range.

    A large tensor is represented by a random sample.
    """
    x = drawn_sample(x)
    largest = float(x.abs().max())
    if largest == 0:
        return 1.0
    candidates = x.new_tensor([largest * (step + 1) / _CALIBRATION_STEPS for step in range(_CALIBRATION_STEPS)])
    rows = max(1, _CALIBRATION_SAMPLE // x.numel())
    starts = range(0, _CALIBRATION_STEPS, rows)
    errors = torch.cat([_squared_errors(x, candidates[start : start + rows], bits, kind) for start in starts]).tolist()
    return largest * (errors.index(min(errors)) + 1) / _CALIBRATION_STEPS


@torch.no_grad()
def _squared_errors(x: Tensor, clips: Tensor, bits: int, kind: Kind) -> Tensor:
    """Compute the mean of (Q(x) − x)² for each of some clip values, rounded as `quantize_literal` rounds it.

    Args:
        x: Tensor in one dimension.
        clips: Clip values, `[n]`.
        bits: Number of bits.
        kind: Kind of quantizer.

    Returns:
        Errors, `[n]`.
    """
    clip = clips[:, None]
    z = x / clip
    # `normalize` without gradients: in place, which takes a quarter of the time.
    z = z.clamp_(0, 1) if kind == "activation" else z.clamp_(-1, 1).add_(1).div_(2)
    return denormalize(discretize(z, bits), clip, kind).sub_(x).square_().mean(dim=1)


class Quantizer(Protocol):
    """A quantizer of a layer's weight or input in a compressed network.

    Attributes:
        bits: Number of bits.
    """

    bits: int

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize a tensor."""
        ...

    def calibrate(self, x: Tensor) -> None:
        """Set the quantizer's parameters from a tensor to be quantized."""
        ...


class QuantizerFactory(Protocol):
    """Factory of the quantizer of one tensor: `factory(bits=4, kind="weight", normalized=True)`."""

    def __call__(self, *, bits: int, kind: Kind, normalized: bool) -> nn.Module:
        """Make a module that satisfies `Quantizer`."""
        ...


class UniformQuantizer(nn.Module):
    """The common quantizer, with one trainable clip value (Eqs. 1–4).

    Args:
        bits: Number of bits; 32 (full precision) leaves tensors unchanged.
        kind: Kind of quantizer, for weights or for activations.
        normalized: Whether weights are standardised first (convolutions' are, the classifier's are not).
    """

    def __init__(self, *, bits: int, kind: Kind, normalized: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.kind: Kind = kind
        self.normalized = normalized
        self.clip = nn.Parameter(torch.ones(()))
        self.count: Tensor
        self.register_buffer("count", torch.tensor(float(steps(bits))), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor of any shape."""
        if self.bits >= 32:
            return x
        # As a tensor, the number of steps is no constant of the compiled code, which then serves all policies.
        count = self.count if torch.compiler.is_compiling() else steps(self.bits)
        return _quantize_to(standardize(x) if self.normalized else x, positive(self.clip), count, self.kind)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the clip value to that with the least mean squared error."""
        if self.bits < 32:
            self.clip.fill_(best_clip(standardize(x) if self.normalized else x, self.bits, self.kind))

    def extra_repr(self) -> str:
        """Describe the quantizer in the network's printed form."""
        return f"bits={self.bits}, kind={self.kind}, normalized={self.normalized}"


class Shifted(nn.Module):
    """A quantizer of tensors that can be negative: Q(x − β) + β with a learned offset β.

    The form and its gradient are those of LSQ+ (Bhalgat et al. 2020, arXiv 2004.09576, Eqs. 2 and 6), which the paper
    uses for inputs that follow hard-swish (Appendix G): dQ/dβ is 0 inside the range and 1 outside. Offset and clip
    value are initialised together, for the least squared error on a batch.

    Args:
        quantizer: Quantizer of the non-negative tensor x − β.
    """

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor of any shape."""
        shifted: Tensor = self.quantizer(x - self.offset)
        return shifted + self.offset

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set offset and quantizer for the least squared error, with an offset between the tensor's minimum and 0."""
        lowest = min(0.0, float(x.min()))
        sample = drawn_sample(x, _OFFSET_SAMPLE)
        errors = {}
        for step in range(_CALIBRATION_OFFSETS + 1):
            offset = lowest * step / _CALIBRATION_OFFSETS
            self._set(offset, sample)
            errors[offset] = float((self(sample) - sample).square().mean())
        self._set(min(errors, key=errors.__getitem__), drawn_sample(x))

    def _set(self, offset: float, x: Tensor) -> None:
        self.offset.fill_(offset)
        self.quantizer.calibrate(x - self.offset)  # type: ignore[operator]


def clips_of(name: str, weight: nn.Module, activation: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """List the parameters of a layer's common quantizers with their keys in `Clips`."""
    parameters: list[tuple[str, nn.Parameter]] = []
    for key, offset, quantizer in (("weight", "weight.offset", weight), ("activation", "offset", activation)):
        if isinstance(quantizer, Shifted):
            parameters.append((f"{name}.{offset}", quantizer.offset))
        inner = quantizer.quantizer if isinstance(quantizer, Shifted) else quantizer
        if isinstance(inner, UniformQuantizer):
            parameters.append((f"{name}.{key}", inner.clip))
    return parameters


def read_clips(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """Return the values of quantizers' parameters; clip values are made positive."""
    return {
        key: (parameter if key.endswith(".offset") else positive(parameter)).item() for key, parameter in parameters
    }


@torch.no_grad()
def restore_clips(parameters: Iterable[tuple[str, Tensor]], clips: Clips) -> None:
    """Set quantizers' parameters to the values in `clips`; others are left unchanged."""
    for key, parameter in parameters:
        if key in clips:
            parameter.fill_(clips[key])


def clip_parameters(module: nn.Module) -> Sequence[nn.Parameter]:
    """Return the quantizers' parameters of a network, which are trained like weights but without decay."""
    named = [(name.rpartition(".")[2], parameter) for name, parameter in module.named_parameters()]
    return [parameter for name, parameter in named if name.startswith(("clip", "offset"))]
