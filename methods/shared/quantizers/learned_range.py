"""Quantizers that learn their step and their range, from which the width follows, and networks of them.

DQ (`methods.dq`) and DJPQ (`methods.djpq`) quantize a tensor to

    Q(x) = sign(x) · d · ⌊min(|x|, q)^t / d + 1/2⌋        negative x ↦ 0 where a tensor has no sign

with a step d, a range q and, in DJPQ, an exponent t (t = 1 in DQ). That takes q^t/d levels besides 0, and so

    b = log2(q^t/d + 1)          bits, and one more for the sign of a weight.

Here are Q with its gradients, the part of a quantizer that both share, and the network that both search in. How b is
rounded, what keeps d, q and t in their bounds and what limits their gradients is each method's own.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Self, overload

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bench.api import (
    EDGE_BITS,
    Decision,
    LayerShape,
    LayerSpace,
    Meter,
    Options,
    Policy,
    QuantizedLayer,
    SearchJob,
    Stateful,
    calibrate,
    evaluate,
    input_quantizer,
    policy_of,
    reestimate_norms,
    replace_layer,
    replicas,
    uniform,
)
from bench.compression.kernels import Kind
from bench.compression.quantizer import Shifted, drawn_sample
from bench.costs.relaxed import Interpolation
from methods.shared.decisions import What
from methods.shared.history import History
from methods.shared.search import edge_layer

WidthCandidates = Annotated[tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=2)]
"""A signed grid with 0 needs two bits at least."""

_WIDTHS: tuple[What, What] = ("weight_bits", "activation_bits")
_KINDS: tuple[Kind, Kind] = ("weight", "activation")
"""The order of a layer's two quantizers."""
_MOMENTUM = 0.9
"""Of steps, ranges and exponents, as of everything in DQ's code."""
_LOWERED_AFTER = (0.5, 0.75)
"""Shares of the search after which their rate falls to a tenth; in DQ's code 80 and 120 epochs of 160."""
_NOTHING: Mapping[str, Stateful] = {}

SMALLEST = 1e-6
"""Steps and ranges stay above it whatever an optimizer did."""


class WidthOptions(Options):
    """Options of both methods.

    Attributes:
        bits: Candidate widths for weights and activations, rising.
    """

    bits: WidthCandidates

    @model_validator(mode="after")
    def _bits_rise(self) -> Self:
        if any(high <= low for low, high in pairwise(self.bits)):
            raise ValueError(f"bit candidates {list(self.bits)} must rise, e.g. [2, 4, 8]")
        return self


# --- Q and its gradients ----------------------------------------------------------------------------------------


@overload
def levels_of(bits: int, signed: bool) -> int: ...
@overload
def levels_of(bits: int | Tensor, signed: Tensor) -> Tensor: ...
def levels_of(bits: int | Tensor, signed: bool | Tensor) -> int | Tensor:
    """The largest q^t/d of a width: 2^(b−1) − 1 with a sign, 2^b − 1 without; of any shape."""
    levels: int | Tensor = 2 ** (bits - 1 * signed) - 1
    return levels


def passed_on(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of one tensor, exactly, with the gradient of another (straight-through)."""
    return hard.detach() + (soft - soft.detach())


class _Quantize(torch.autograd.Function):
    """Q; its gradients are those of the formula with rounding taken for the identity (straight-through).

    With u = min(|x|, q)^t:  dQ/dd = (Q − sign(x)·u)/d, the rounding error; dQ/dq = sign(x)·t·q^(t−1) where |x| > q;
    dQ/dt = sign(x)·u·log min(|x|, q); dQ/dx = t·|x|^(t−1) where |x| ≤ q. For t < 1 the last one is infinite at 0: below
    (d/2)^(1/t), where Q is 0, it stays what it is there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, limit: Tensor, exponent: Tensor | None, signed: bool) -> Tensor:
        size, sign = _size_and_sign(x, signed)
        values = sign * torch.floor(_power(torch.minimum(size, limit), exponent) / step + 0.5) * step
        ctx.save_for_backward(x, values, step, limit, exponent)
        ctx.signed = signed
        return values.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        x, values, step, limit, exponent = ctx.saved_tensors
        grad = grads[0].to(values.dtype)
        size, sign = _size_and_sign(x, ctx.signed)
        clipped, beyond = torch.minimum(size, limit), size > limit
        power, along = _power(clipped, exponent), grad * sign
        to_step = (grad * (values - sign * power)).sum() / step
        passed = torch.where(beyond if ctx.signed else beyond | (x < 0), 0, grad)
        to_limit = torch.where(beyond, along, 0).sum()
        if exponent is None:
            return passed.to(x.dtype), to_step, to_limit, None, None
        floor = (step / 2) ** (1 / exponent)
        slope = exponent * torch.maximum(clipped, floor) ** (exponent - 1)
        to_exponent = (along * torch.xlogy(power, clipped)).sum()
        return (passed * slope).to(x.dtype), to_step, to_limit * exponent * limit ** (exponent - 1), to_exponent, None


def _size_and_sign(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """|x| and sign(x), in single precision at least; without a sign, what is negative counts as 0."""
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return (x.abs(), x.sign()) if signed else (x.clamp_min(0), (x > 0).to(x.dtype))


def _power(size: Tensor, exponent: Tensor | None) -> Tensor:
    return size if exponent is None else size**exponent


def quantize(x: Tensor, step: Tensor, limit: Tensor, exponent: Tensor | None = None, *, signed: bool) -> Tensor:
    """Q(x).

    Args:
        x: Any shape.
        step: d, a positive scalar.
        limit: q, a positive scalar.
        exponent: t, a positive scalar; 1, without a gradient, when absent.
        signed: Whether the grid has a negative half.
    """
    result: Tensor = _Quantize.apply(x, step, limit, exponent, signed)  # type: ignore[no-untyped-call]
    return result


class _Bounded(torch.autograd.Function):
    """The identity, whose gradient is cut off at a bound."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(bound)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (bound,) = ctx.saved_tensors
        return torch.clamp(grads[0], -bound, bound), None


def bounded(value: Tensor, bound: Tensor) -> Tensor:
    """A parameter whose gradient has at most the size of a bound, for training loops that know nothing of it.

    Args:
        value: Any shape.
        bound: Positive, of the same shape.
    """
    result: Tensor = _Bounded.apply(value, bound.detach())  # type: ignore[no-untyped-call]
    return result


def least_error(x: Tensor, candidates: Iterable[tuple[float, float]], *, signed: bool) -> tuple[float, float]:
    """The step and range, of some, with which Q(x) has the least squared error; of a drawn sample where x is large."""
    few = drawn_sample(x)

    def error(candidate: tuple[float, float]) -> float:
        step, limit = few.new_tensor(candidate)
        return float((quantize(few, step, limit, signed=signed) - few).square().mean())

    return min(candidates, key=error)


class LearnedQuantizer(nn.Module, ABC):
    """A quantizer with a learned step and range.

    The parameters' names begin with "clip": by that the harness knows what weight decay must leave alone.

    Args:
        bits: The width that `calibrate` aims at; in fine-tuning, the width.
        kind: Weights, which have a sign, or activations, which have none.
        searching: Whether the width is still to be found, by a training that keeps the parameters in their bounds.

    Attributes:
        clip_step: d.
        clip_range: q.
    """

    def __init__(self, *, bits: int, kind: Kind, searching: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.kind: Kind = kind
        self.signed = kind == "weight"
        self.searching = searching
        self.clip_step = nn.Parameter(torch.ones(()))
        self.clip_range = nn.Parameter(torch.ones(()))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Quantize a tensor of any shape."""

    @abstractmethod
    def calibrate(self, x: Tensor) -> None:
        """Set the parameters from a tensor as it arrives."""

    def extra_repr(self) -> str:
        """Shown in the network's printed form."""
        return f"bits={self.bits}, kind={self.kind}, searching={self.searching}"


# --- the network ------------------------------------------------------------------------------------------------

MakeLayer = Callable[[nn.Module, LayerShape, nn.Module, nn.Module], QuantizedLayer]
"""Builds a searched layer from the float one, its shape, and the quantizers of its weight and its input."""


def plain_layer(module: nn.Module, shape: LayerShape, weight: nn.Module, activation: nn.Module) -> QuantizedLayer:
    """A searched layer without more to it than its quantizers."""
    return QuantizedLayer(module, weight, activation)


class RangeNetwork(ABC):
    """A model whose searched layers have learned ranges; first and last layer are fixed at 8 bits.

    Quantities of the quantizers have shape (2, L): weights, then inputs, of the L searched layers.

    Args:
        job: The search.
        bits: Candidate widths, rising.
        quantizer: Makes a quantizer whose width is to be found: `quantizer(bits=…, kind=…)`.
        start_bits: At which width quantizers are set before the search.
        layer: Builds the searched layers.
        pruned: The layers that may lose filters.

    Attributes:
        model: The network, in which layers keep their names.
        layers: The searched layers by name, in order of execution.
        quantizers: The 2 L quantizers, weights first.
    """

    def __init__(
        self,
        job: SearchJob,
        bits: tuple[int, ...],
        quantizer: Callable[..., LearnedQuantizer],
        *,
        start_bits: int,
        layer: MakeLayer = plain_layer,
        pruned: Iterable[str] = (),
    ) -> None:
        self.bits = bits
        self.network = job.task.network
        self.model = job.float_model()
        self.layers: dict[str, QuantizedLayer] = {}

        def make(*, bits: int, kind: Kind, normalized: bool = False) -> LearnedQuantizer:
            return quantizer(bits=bits, kind=kind, searching=True)

        for shape in self.network.layers:
            module = self.model.get_submodule(shape.name)
            if shape.position == "middle":
                weight = make(bits=start_bits, kind="weight")
                self.layers[shape.name] = layer(module, shape, weight, input_quantizer(shape, start_bits, make))
                replace_layer(self.model, shape.name, self.layers[shape.name])
            else:
                replace_layer(self.model, shape.name, edge_layer(module, shape))
        self.quantizers = [self._quantizer(name, kind) for kind in _KINDS for name in self.layers]
        self._pruned = tuple(pruned)
        choices = {
            name: LayerSpace(weight_bits=bits, activation_bits=bits, group_size=int(name in self._pruned))
            for name in self.layers
        }
        self.relaxed = job.measure.relaxed(self.network, choices, job.task.device, EDGE_BITS)
        rows = [bits] * (2 * len(self.layers))
        like = self.relaxed.in_channels
        self._interpolation = Interpolation(rows, len(bits), like, slope_at_lowest=True)
        signed = torch.tensor([[True], [False]], device=job.task.device)
        self.signed = signed.expand(2, len(self.layers))
        self.candidates = torch.tensor(bits, device=job.task.device, dtype=torch.float64)

    def _quantizer(self, name: str, kind: Kind) -> LearnedQuantizer:
        quantizer = getattr(self.layers[name], f"{kind}_quantizer")
        inner = quantizer.quantizer if isinstance(quantizer, Shifted) else quantizer
        if not isinstance(inner, LearnedQuantizer):
            raise TypeError(f"the quantizer of {name} has no range to learn")
        return inner

    def parameters(self, *names: str) -> list[nn.Parameter]:
        """The parameters of these names of all quantizers."""
        return [getattr(quantizer, name) for name in names for quantizer in self.quantizers]

    def stacked(self, name: str) -> Tensor:
        """The same as one tensor, shape (2, L), differentiable."""
        return torch.stack([*self.parameters(name)]).view(2, -1)

    @torch.no_grad()
    def fill(self, name: str, values: Tensor) -> None:
        """Set the parameter of that name of all quantizers from a tensor of shape (2, L)."""
        for parameter, value in zip(self.parameters(name), values.flatten(), strict=True):
            parameter.copy_(value)

    @abstractmethod
    def widths(self) -> Tensor:
        """The widths that the cost term sees, shape (2, L), between the candidates' ends; differentiable."""

    @abstractmethod
    def chosen(self) -> Tensor:
        """Positions of the candidates that the search would return now, shape (2, L)."""

    @abstractmethod
    def margins(self) -> Tensor:
        """How many bits each width lies above the border of each two neighbouring candidates, shape (2, L, K − 1)."""

    @abstractmethod
    def project(self) -> None:
        """Bring parameters back into their bounds after an update."""

    @abstractmethod
    def bound_gradients(self) -> None:
        """Cut the quantizers' gradients off before an update."""

    def channels(self) -> dict[str, Tensor]:
        """`in_channels` and `out_channels` for the cost, differentiable; all when absent."""
        return {}

    def relaxed_cost(self) -> Tensor:
        """The cost as a function of the widths.

        A width between two candidates costs what lies between. At a candidate the slope is that of the step below, what
        there is to save; at the lowest one that of the first step up: without it the task alone would act there, and
        its noise would drive widths away that the cost has just brought down.
        """
        return self._cost(self._interpolation(self.widths().flatten()), self.channels())

    @torch.no_grad()
    def actual_cost(self) -> Tensor:
        """The cost of the policy that the search would return now."""
        chosen = F.one_hot(self.chosen().flatten(), len(self.bits)).double()
        return self._cost(chosen, {name: counts.detach() for name, counts in self.channels().items()})

    def _cost(self, shares: Tensor, channels: Mapping[str, Tensor]) -> Tensor:
        of_weights, of_inputs = shares.view(2, len(self.layers), -1)
        return self.relaxed(of_weights, of_inputs, **channels)

    @torch.no_grad()
    def decisions(self) -> list[Decision]:
        """Every width that was found; repair may move it the sooner, the closer it lies to the next candidate."""
        chosen, margins = self.chosen().tolist(), self.margins().tolist()
        return [
            Decision(layer=name, what=what, options=self.bits, chosen=chosen[kind][i], margins=tuple(margins[kind][i]))
            for i, name in enumerate(self.layers)
            for kind, what in enumerate(_WIDTHS)
        ]

    def policy(self, decisions: Sequence[Decision]) -> Policy:
        """The policy of these decisions; first and last layer at 8 bits."""
        base = uniform(self.network, EDGE_BITS)
        for name in self._pruned:
            base = base.with_layer(name, kept_filters=tuple(range(self.network[name].out_channels)))
        return policy_of(base, decisions)

    def state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Weights and buffers under the float model's names."""
        mine = self.model.state_dict()
        return {name: mine[name].detach().clone() for name in names}

    def learned(self, names: Iterable[str] = ("clip_step", "clip_range")) -> dict[str, Tensor]:
        """What the quantizers have learned, as `SearchResult.quantizers`.

        Args:
            names: The parameters that a quantizer of fixed width has.
        """
        kept = (*names, "offset")
        return {
            f"{layer}.{name}": value.detach().clone()
            for layer, module in self.layers.items()
            for name, value in module.named_parameters()
            if "_quantizer." in name and name.rpartition(".")[2] in kept
        }

    def figures(self) -> dict[str, Any]:
        """The widths that the parameters stand for, by layer: weight, input; for the record."""
        widths = self.widths().detach().T.tolist()
        return {"widths": dict(zip(self.layers, widths, strict=True))}


# --- the search -------------------------------------------------------------------------------------------------


def start(job: SearchJob, network: RangeNetwork) -> float:
    """Set all quantizers on a batch and the norms' statistics after them.

    Returns:
        The accuracy on validation images before the search, in percent.
    """
    data = job.task.data
    calibrate(network.model, data.calibration_batches(1, job.schedule.batch_size)[0])
    network.project()
    reestimate_norms(network.model, data, job.schedule.batch_size)
    return evaluate(network.model, data, data.validation).top1


def train(
    job: SearchJob,
    network: RangeNetwork,
    optimizers: Mapping[str, torch.optim.Optimizer],
    rates: torch.optim.lr_scheduler.LRScheduler,
    *,
    penalty: Callable[[], Tensor],
    carried: Mapping[str, Stateful] = _NOTHING,
    before: Callable[[int], None] | None = None,
) -> History:
    """Weights and quantizers in the same step, by cross-entropy and what is added to it.

    Args:
        job: Data and schedule.
        network: What is trained.
        optimizers: Of all its parameters, by name.
        rates: Of the quantizers' optimizer.
        penalty: What is added to the cross-entropy, a scalar.
        carried: What else an interrupted search must find again.
        before: Called before each forward pass with the number of its images.
    """
    history = History()
    network.model.train()
    forward = job.in_training(network.model)
    parts: dict[str, Stateful] = {"model": network.model, "history": history, "rates": rates}
    parts |= {**optimizers, **carried}
    for epoch, batches in job.epochs(parts):
        meter = Meter(job.task.device)
        for images, labels in batches:
            if before is not None:
                before(len(images))
            outputs = forward(images)
            loss = F.cross_entropy(outputs, labels)
            network.model.zero_grad(set_to_none=True)
            (loss + penalty()).backward()  # type: ignore[no-untyped-call]
            replicas.average_gradients(network.model.parameters())
            network.bound_gradients()
            for optimizer in optimizers.values():
                optimizer.step()
            rates.step()
            network.project()
            meter.add(loss, outputs, labels)
        history.end_epoch(job, network, epoch, meter.figures())
    return history


def range_optimizer(
    job: SearchJob, network: RangeNetwork, names: Iterable[str], travel: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """SGD for parameters of the quantizers, with the momentum of DQ's code and its rate that falls twice.

    Args:
        job: The search.
        network: What is trained.
        names: The parameters.
        travel: First rate × updates.
    """
    optimizer = torch.optim.SGD(network.parameters(*names), lr=travel / job.steps, momentum=_MOMENTUM, fused=True)
    milestones = [round(share * job.steps) for share in _LOWERED_AFTER]
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
