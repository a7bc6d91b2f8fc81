"""LIMPQ: learned quantization steps as importances, and bits from an exact integer programme.

From Tang et al. 2022 (arXiv 2203.08368) and the authors' code, github.com/1hunters/LIMPQ. Every weight and every input
has one LSQ quantizer for each candidate number of bits (`methods.shared.quantizers.learned_step`). One short training
teaches all their steps at once: each batch is passed with all layers at every candidate in turn, and once with a random
candidate in each layer. The gradients of these passes add up to one update. Then a tensor's step at b bits is its
importance at b bits: a wide step says that the layer loses much there. The programme takes

    min Σ_l s^a_l(a_l) + α · s^w_l(w_l)  subject to  Σ_l cost_l(w_l, a_l) ≤ budget.

A step that is narrower than that of the next higher candidate is an artefact of the joint training. Its candidate is
taken only where nothing else is left.

The steps are all that is kept of the training: fine-tuning starts from the pretrained weights, as in the paper.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise, product
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench.api import (
    Capabilities,
    GeneratorState,
    Meter,
    Options,
    Policy,
    QuantizedLayer,
    QuantizedProduct,
    QuantizerFactory,
    SearchJob,
    SearchResult,
    Stateful,
    calibrate,
    compress,
    quantized_layer,
    sgd,
    uniform,
)
from bench.compression.kernels import Kind
from bench.compression.quantizer import Shifted
from methods.shared.allocation import Group, Pair, allocate, cost_table
from methods.shared.decisions import What
from methods.shared.history import History
from methods.shared.options import RISING, ChoosesBits
from methods.shared.quantizers.learned_step import LearnedStep, learned_step
from methods.shared.quantizers.starts import ClipInit
from methods.shared.search import start_accuracy

SMOOTHING = 0.1
"""Label smoothing in the training of the steps (the code)."""
LARGEST_GRADIENT = 1.0
"""Largest absolute value of an element of a gradient (the code)."""

_WHAT: tuple[What, What] = ("weight_bits", "activation_bits")

Importances = Mapping[tuple[str, What], Sequence[float]]
"""Importances at all candidate bits, rising, by layer and tensor."""


class LimpqOptions(Options):
    """Options of LIMPQ.

    Attributes:
        bits: Candidate bits for weights and activations, rising (2 to 6 in the paper).
        alpha: Factor α of the importances of weights (2 in the code).
        step_lr: Learning rate of the steps (0.01 in the code, for weights and steps).
        clip_init: First steps: of the least squared error on a batch ("calibrated"), or those of the code ("paper").
    """

    bits: Annotated[tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(min_length=1), RISING] = (2, 4, 8)
    alpha: Annotated[float, Field(gt=0)] = 2.0
    step_lr: Annotated[float, Field(gt=0)] = 0.01
    clip_init: ClipInit = "calibrated"


class Limpq(ChoosesBits):
    """Steps of all candidates from one training, then an exact knapsack."""

    family = "sensitivity"
    summary = "LIMPQ: steps of LSQ that one training learns for all candidates, and bits by an exact integer programme"
    source = (
        "Tang, Ouyang, Wang, Zhu, Ji, Wang, Zhu 2022, Mixed-Precision Neural Network Quantization via Learned "
        "Layer-wise Importance, ECCV, arXiv 2203.08368; github.com/1hunters/LIMPQ"
    )
    deviations = (
        "Candidates are by default 2, 4 and 8 bits, as for most methods here; the paper has 2 to 6, which "
        "bits = [2,3,4,5,6] gives.",
        "Steps train for the epochs of the search; the code has 5 epochs of ImageNet, and calls 3 to 10 enough.",
        "Weights have the constant rate of the search's schedule in this training, and steps the code's; the code has "
        "one rate for both, which falls as a cosine.",
        "Steps start at the least squared error on one batch, like the clip values of all methods; clip_init = 'paper' "
        "starts them as the code does.",
        "The gradient of an input's step is scaled by the number of inputs for one image, as in LSQ's paper; the code "
        "counts those of the whole batch, so that steps of inputs hardly move in a short search.",
        "Steps have no upper bound; the code has one of 1, which inputs of a few bits would reach.",
        "Normalisations are shared by all candidates; the code has one for each.",
        "The first and the last layer have 8 bits in the training, too; the code leaves them at full precision there.",
        "One limit is on what the budget limits; the code can limit the model's size besides bit operations.",
        "An implausible importance becomes larger than all others together; the code sets it to 1e8, with the same "
        "effect.",
        "Where the best policy costs less than the window of the budget, the best one inside the window is taken.",
        "Inputs that can be negative have a learned offset, as in all methods here.",
    )
    capabilities = Capabilities(budget="direct", mixed_precision=True, own_quantizer=True)
    Options = LimpqOptions
    options: LimpqOptions

    @property
    def quantizer(self) -> QuantizerFactory:
        """LSQ's quantizer."""
        return learned_step

    def search(self, job: SearchJob) -> SearchResult:
        """Train the steps, then solve the integer programme.

        Raises:
            UnreachableBudgetError: Even the lowest candidates cost more than the budget.
        """
        bits, options = self.options.bits, self.options
        pairs = list(product(bits, bits))
        cost_table(job, [(layer.name,) for layer in job.task.network.middle], pairs)  # is it worth the training?
        network = StepNetwork(job, options)
        start_top1, start = start_accuracy(job, network.model), network.importances()
        history = network.train()
        importances = network.importances()
        policy = allocate(job, values(importances, pairs, bits, options.alpha), pairs)
        passes = len(bits) + 1
        return SearchResult(
            policy=policy,
            state=job.pretrained,
            quantizers=network.learned(policy),
            record={
                "effort": f"{job.steps:,} updates of {passes} passes each on {job.schedule.batch_size} images",
                "passes": passes * job.steps,
                "start_top1": start_top1,
                "importances": _by_tensor(importances),
                "first_steps": _by_tensor(start),
                "implausible": _named(importances, bits),
                "history": history.entries,
            },
        )


def _by_tensor(rows: Importances) -> dict[str, list[float]]:
    """Return the rows under names that JSON can have."""
    return {f"{layer}.{what}": list(row) for (layer, what), row in rows.items()}


def _named(importances: Importances, bits: Sequence[int]) -> dict[str, list[int]]:
    """List the candidates of implausible importance, by tensor, where there are any."""
    wrong = {
        f"{layer}.{what}": [b for b, implausibly in zip(bits, implausible(row), strict=True) if implausibly]
        for (layer, what), row in importances.items()
    }
    return {name: found for name, found in wrong.items() if found}


def implausible(importances: Sequence[float]) -> list[bool]:
    """Return which importances are smaller than that of the next higher candidate; the highest one never is."""
    return [*(low < high for low, high in pairwise(importances)), False]


def values(
    importances: Importances, pairs: Sequence[Pair], bits: Sequence[int], alpha: float
) -> dict[Group, list[float]]:
    """Compute s^a(a) + α · s^w(w) of every pair in every layer.

    Args:
        importances: Importances of both tensors of all layers.
        pairs: Pairs of bits of weights and inputs.
        bits: Candidate bits of the importances, rising.
        alpha: Factor α.
    """
    above_all = 1 + sum((alpha if what == "weight_bits" else 1) * max(row) for (_, what), row in importances.items())
    kept: dict[tuple[str, What], dict[int, float]] = {
        (layer, what): {
            b: above_all if wrong else (alpha if what == "weight_bits" else 1) * value
            for b, value, wrong in zip(bits, row, implausible(row), strict=True)
        }
        for (layer, what), row in importances.items()
    }
    names = dict.fromkeys(layer for layer, _ in importances)
    return {
        (name,): [kept[name, "weight_bits"][w] + kept[name, "activation_bits"][a] for w, a in pairs] for name in names
    }


class StepNetwork:
    """A network whose tensors have a quantizer for every candidate, of which one at a time is in use.

    Args:
        job: Model, weights and data.
        options: Candidates, α, rate and first steps.

    Attributes:
        model: The network, with the quantizers in use in its layers.
    """

    def __init__(self, job: SearchJob, options: LimpqOptions) -> None:
        self._job, self._options = job, options
        network, bits = job.task.network, options.bits

        def make(*, bits: int, kind: Kind, normalized: bool) -> LearnedStep:
            return LearnedStep(bits=bits, kind=kind, clip_init=options.clip_init)

        float_model = job.float_model()
        self.model = compress(float_model, network, uniform(network, bits[-1]), quantizer=make)
        self._layers: dict[str, QuantizedLayer | QuantizedProduct] = {}
        self._quantizers: dict[tuple[str, What, int], nn.Module] = {}
        for shape in network.middle:
            self._layers[shape.name] = self.model.get_submodule(shape.name)  # type: ignore[assignment]
            for b in bits:
                layer = quantized_layer(float_model.get_submodule(shape.name), shape, (b, b), make, normalized=False)
                layer.to(job.task.device)
                self._quantizers[shape.name, "weight_bits", b] = layer.weight_quantizer
                self._quantizers[shape.name, "activation_bits", b] = layer.activation_quantizer
        images = job.task.data.calibration_batches(1, job.schedule.batch_size)[0]
        for b in bits:  # the highest ones are in use afterwards
            self._use(b)
            calibrate(self.model, images)

    def _use(self, bits: int | Mapping[str, int]) -> None:
        """Put the quantizers of some bits into the layers: the same everywhere, or of each layer."""
        for name, layer in self._layers.items():
            own = bits if isinstance(bits, int) else bits[name]
            layer.weight_quantizer = self._quantizers[name, "weight_bits", own]
            layer.activation_quantizer = self._quantizers[name, "activation_bits", own]

    def train(self) -> History:
        """Train all steps, and the weights with them."""
        job, history, noise = self._job, History(), self._job.noise("widths")
        optimizer = self._optimizer()
        self.model.train()
        # Every pass has other quantizers in the layers; compiling them all would take longer than they do.
        forward = job.forward.prepare(self.model, job.name, None)
        state: dict[str, Stateful] = {"model": self.model, "quantizers": nn.ModuleList(self._quantizers.values())}
        state |= {"optimizer": optimizer, "noise": GeneratorState(noise), "history": history}
        for epoch, batches in job.epochs(state):
            meter = Meter(job.task.device)
            for images, labels in batches:
                optimizer.zero_grad(set_to_none=True)
                passes: list[int | Mapping[str, int]] = [*reversed(self._options.bits), self._drawn(noise)]
                for bits in passes:
                    self._use(bits)
                    outputs = forward(images)
                    loss = F.cross_entropy(outputs, labels, label_smoothing=SMOOTHING)
                    loss.backward()  # type: ignore[no-untyped-call]
                    meter.add(loss, outputs, labels)
                limit_gradients(parameter for group in optimizer.param_groups for parameter in group["params"])
                optimizer.step()
            self._use(self._options.bits[-1])  # a checkpoint names the parameters of the layers by their place
            history.end_epoch(job, self, epoch, meter.figures())
        return history

    def _drawn(self, noise: torch.Generator) -> dict[str, int]:
        """Draw a candidate for each layer, the same for its weight and its input."""
        bits = self._options.bits
        drawn = torch.randint(len(bits), (len(self._layers),), generator=noise).tolist()
        return {name: bits[index] for name, index in zip(self._layers, drawn, strict=True)}

    def _optimizer(self) -> torch.optim.Optimizer:
        """Make one optimizer of weights and steps; steps and offsets have a rate of their own and no decay."""
        learned = [parameter for quantizer in self._quantizers.values() for parameter in quantizer.parameters()]
        taken = {id(parameter) for parameter in learned}
        edges = [
            parameter
            for shape in self._job.task.network.layers
            if shape.position != "middle"
            for name, parameter in self.model.get_submodule(shape.name).named_parameters()
            if "_quantizer." in name
        ]
        taken |= {id(parameter) for parameter in edges}
        weights = [parameter for parameter in self.model.parameters() if id(parameter) not in taken]
        steps = {"params": [*learned, *edges], "lr": self._options.step_lr, "weight_decay": 0.0}
        return sgd([{"params": weights}, steps], self._job.schedule)

    @torch.no_grad()
    def importances(self) -> dict[tuple[str, What], list[float]]:
        """Read the steps of all tensors at all candidates."""
        return {
            (name, what): [step_of(self._quantizers[name, what, b]) for b in self._options.bits]
            for name in self._layers
            for what in _WHAT
        }

    def actual_cost(self) -> Tensor:
        """Compute the cost of the policy that the present steps give, a scalar."""
        bits = self._options.bits
        pairs = list(product(bits, bits))
        policy = allocate(self._job, values(self.importances(), pairs, bits, self._options.alpha), pairs)
        return torch.tensor(self._job.price(policy), dtype=torch.float64, device=self._job.task.device)

    def learned(self, policy: Policy) -> dict[str, Tensor]:
        """Copy the parameters of the quantizers that a policy chooses, as `SearchResult.quantizers`."""
        return {
            f"{name}.{what.removesuffix('_bits')}_quantizer.{parameter}": value.detach().clone()
            for name in self._layers
            for what in _WHAT
            for parameter, value in self._quantizers[name, what, getattr(policy.layers[name], what)].named_parameters()
        }


def step_of(quantizer: nn.Module) -> float:
    """Return the step of a quantizer, also of one with an offset."""
    inner = quantizer.quantizer if isinstance(quantizer, Shifted) else quantizer
    if not isinstance(inner, LearnedStep):
        raise TypeError(f"a {type(inner).__name__} has no step")
    return float(inner.step)


def limit_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Limit every element of the gradients, and drop gradients that are all 0, so that momentum moves nothing there."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.clamp_(-LARGEST_GRADIENT, LARGEST_GRADIENT)
            if not parameter.grad.any():
                parameter.grad = None
