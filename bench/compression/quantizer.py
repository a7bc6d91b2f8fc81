"""The plain quantizer (paper, Section 2, Eqs. 1–4): the common recipe of every method.

With k bits the step is s = 1/(2^k − 1) on [0, 1] and

    activations  z = clip(x/v, 0, 1)                Q(x) = v · D(z, s)
    weights      z = (clip(w/v, −1, 1) + 1)/2       Q(w) = v · (2 · D(z, s) − 1)
    D(z, s) = s · ⌈z/s − 1/2⌉

Straight-through gradients: D is the identity in z. Hence dQ/dx = 1 inside the clip range and 0 outside, and
dQ/dv has two terms: the level itself, and −z (−w/v for weights) inside the range.

Two forms of the same mathematics. `quantize_literal` reads like the equations and is differentiated by autograd.
`quantize` is what networks run: it keeps its input, and its output, which the convolution keeps anyway, and recomputes
the rest in the backward pass, through `bench.compression.kernels`.
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
"""Parameters of the common quantizers: "<layer>.weight" and "<layer>.activation", and "<layer>.offset" where the
input can be negative."""


def discretize(z: Tensor, bits: int) -> Tensor:
    """D(z, s) of Eq. 3: the nearest of the 2^k levels of [0, 1], of two the lower; no gradient of its own."""
    return (z.detach() * steps(bits) - 0.5).ceil_().div_(steps(bits))


def normalize(x: Tensor, clip: Tensor, kind: Kind) -> Tensor:
    """Map a tensor to z in [0, 1] by its clip value (Eqs. 1, 2)."""
    if kind == "activation":
        return (x / clip).clamp(0, 1)
    return ((x / clip).clamp(-1, 1) + 1) / 2


def denormalize(z: Tensor, clip: Tensor, kind: Kind) -> Tensor:
    """The inverse of `normalize` inside the clip range."""
    return clip * z if kind == "activation" else clip * (2 * z - 1)


def straight_through(z: Tensor, bits: int) -> Tensor:
    """D(z, s) whose gradient is that of the identity."""
    return z + (discretize(z, bits) - z).detach()


def quantize_literal(x: Tensor, clip: Tensor, bits: int, kind: Kind) -> Tensor:
    """Q(x), equation by equation; args and result are those of `quantize`."""
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
        found = gradients(grads[0], x, values, clip, ctx.kind)
        return found.to_x, found.to_clip, None, None


def quantize(x: Tensor, clip: Tensor, bits: int, kind: Kind) -> Tensor:
    """Q(x) at k bits with straight-through gradients for `x` and `clip`.

    Args:
        x: Any shape.
        clip: v, a positive scalar.
        bits: k.
        kind: Weights or activations.
    """
    return _quantize_to(x, clip, steps(bits), kind)


def _quantize_to(x: Tensor, clip: Tensor, count: int | Tensor, kind: Kind) -> Tensor:
    result: Tensor = _Quantize.apply(x, clip, count, kind)  # type: ignore[no-untyped-call]
    return result


def standardize(weight: Tensor, mask: Tensor | None = None) -> Tensor:
    """Weight normalisation: (w − mean)/std over the tensor, the statistics without gradient.

    Args:
        weight: Any shape.
        mask: 1 where a weight survives pruning, broadcastable to `weight`; the statistics are those of the
            surviving weights, so that a searched network and its reduced form agree. All when absent.
    """
    with torch.no_grad():
        if mask is None:
            mean, std = weight.mean(), weight.std()
        else:
            kept = mask.expand_as(weight)
            count = kept.sum()
            mean = (weight * kept).sum() / count
            std = (((weight - mean).square() * kept).sum() / (count - 1)).sqrt()
    return (weight - mean) / std.clamp_min(_WEIGHT_STD_FLOOR)


def positive(clip: Tensor) -> Tensor:
    """The clip value as it is used: positive whatever the optimizer did."""
    return clip.abs().clamp_min(_SMALLEST_CLIP)


def drawn_sample(x: Tensor, count: int = _CALIBRATION_SAMPLE) -> Tensor:
    """A tensor's elements, or some of them, the same on every call, where there are many; one dimension.

    Evenly spaced elements would all come from one column of the maps, whose widths are powers of two.
    """
    x = x.flatten()
    if x.numel() <= count:
        return x
    drawn = torch.randint(x.numel(), (count,), generator=torch.Generator().manual_seed(0))
    return x[drawn.to(x.device)]


def best_clip(x: Tensor, bits: int, kind: Kind) -> float:
    """The clip value with the least mean squared error of Q(x) at `bits`, from a scan over the tensor's range.

    Large tensors are represented by a drawn sample.
    """
    x = drawn_sample(x)
    largest = float(x.abs().max())
    if largest == 0:
        return 1.0
    candidates = [largest * (step + 1) / _CALIBRATION_STEPS for step in range(_CALIBRATION_STEPS)]

    def error(value: float) -> float:
        clip = torch.tensor(value, dtype=x.dtype, device=x.device)
        return float((denormalize(discretize(normalize(x, clip, kind), bits), clip, kind) - x).square().mean())

    return min(candidates, key=error)


class Quantizer(Protocol):
    """What a layer of a compressed network applies to its weight or its input."""

    bits: int

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize a tensor."""
        ...

    def calibrate(self, x: Tensor) -> None:
        """Set the quantizer's parameters from a tensor as it arrives."""
        ...


class QuantizerFactory(Protocol):
    """Makes the quantizer of one tensor: `factory(bits=4, kind="weight", normalized=True)`."""

    def __call__(self, *, bits: int, kind: Kind, normalized: bool) -> nn.Module:
        """Build a quantizer module that satisfies `Quantizer`."""
        ...


class UniformQuantizer(nn.Module):
    """The common quantizer as a module: one trainable clip value, Eqs. 1–4.

    Args:
        bits: Width; full precision (32) passes tensors through.
        kind: Weights or activations.
        normalized: Standardise weights first (convolutions do, the classifier does not).
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
        # Compiled code that does not know the width serves networks of all policies.
        count = self.count if torch.compiler.is_compiling() else steps(self.bits)
        return _quantize_to(standardize(x) if self.normalized else x, positive(self.clip), count, self.kind)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the clip value to the one with least mean squared error."""
        if self.bits < 32:
            self.clip.fill_(best_clip(standardize(x) if self.normalized else x, self.bits, self.kind))

    def extra_repr(self) -> str:
        """Shown in the network's printed form."""
        return f"bits={self.bits}, kind={self.kind}, normalized={self.normalized}"


class Shifted(nn.Module):
    """A quantizer of non-negative tensors, for one that can be negative: Q(x − β) + β with a learned offset β.

    The form and its gradient are those of LSQ+ (Bhalgat et al. 2020, arXiv 2004.09576, Eqs. 2 and 6), which the paper
    uses for the inputs that hard-swish makes (Appendix G): dQ/dβ is 0 inside the range and 1 outside. The offset is
    initialised with the range, for the least squared error on a batch.

    Args:
        quantizer: Of x − β.
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
        """Set offset and quantizer to what has the least squared error, of offsets between the minimum and 0."""
        lowest = min(0.0, float(x.min()))
        few = drawn_sample(x, _OFFSET_SAMPLE)
        errors = {}
        for step in range(_CALIBRATION_OFFSETS + 1):
            offset = lowest * step / _CALIBRATION_OFFSETS
            self._set(offset, few)
            errors[offset] = float((self(few) - few).square().mean())
        self._set(min(errors, key=errors.__getitem__), drawn_sample(x))

    def _set(self, offset: float, x: Tensor) -> None:
        self.offset.fill_(offset)
        self.quantizer.calibrate(x - self.offset)  # type: ignore[operator]


def clips_of(name: str, weight: nn.Module, activation: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of a layer's common quantizers, by the keys of `Clips`."""
    found = [(f"{name}.offset", activation.offset)] if isinstance(activation, Shifted) else []
    inner = activation.quantizer if isinstance(activation, Shifted) else activation
    for kind, quantizer in (("weight", weight), ("activation", inner)):
        if isinstance(quantizer, UniformQuantizer):
            found.append((f"{name}.{kind}", quantizer.clip))
    return found


def read_clips(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """Parameters of quantizers as they are used."""
    return {
        key: (parameter if key.endswith(".offset") else positive(parameter)).item() for key, parameter in parameters
    }


@torch.no_grad()
def restore_clips(parameters: Iterable[tuple[str, Tensor]], clips: Clips) -> None:
    """Set parameters of quantizers to values, where these are known."""
    for key, parameter in parameters:
        if key in clips:
            parameter.fill_(clips[key])


def clip_parameters(module: nn.Module) -> Sequence[nn.Parameter]:
    """The quantizer parameters of a network: trained like weights, but without decay."""
    named = [(name.rpartition(".")[2], parameter) for name, parameter in module.named_parameters()]
    return [parameter for name, parameter in named if name.startswith(("clip", "offset"))]
