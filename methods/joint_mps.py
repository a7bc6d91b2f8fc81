"""Joint pruning and mixed precision by one softmax with a zero-bit option (Motetti et al. 2024, arXiv 2407.01054).

A group g of filters has the candidates 0, 2, 4 and 8 bits, where 0 removes it. Their probabilities come from logits α
at a temperature τ that falls during the search:

    θ_g = softmax((α_0g, α_2, α_4, α_8)/τ)        W_g = Σ_p θ_pg · Q_p(W_g),  Q_0 = 0

A policy of this project has one number of bits for each weight, so that α_2, α_4 and α_8 belong to the layer and only
α_0 to the group. The sum then is (1 − θ_0g) times the mixture of the layer, as EdMIPS has it (`methods.edmips`). The
factor acts where the next layer reads the filters: before a normalisation, it would be undone. Inputs have a softmax
over 2, 4 and 8 bits, as in EdMIPS.

Weights and logits learn in the same step on the training data, by L_ce plus the cost term. The cost is that of the
expected bits, and of the expected filters Σ_g (1 − θ_0g) · size: with independent choices this is the expected cost.
After the search, the candidate of the largest logit is taken.

"The code" is the authors' github.com/eml-eda/plinio (MPS) and github.com/eml-eda/mixprec-pruning.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bench.api import (
    EDGE_BITS,
    Capabilities,
    Decision,
    LayerShape,
    NetworkShape,
    Policy,
    SearchJob,
    UniformQuantizer,
    policy_of,
    sgd,
    uniform,
    weight_groups,
)
from methods.shared.decisions import group_decisions
from methods.shared.gates import filter_groups, of_inputs
from methods.shared.history import History
from methods.shared.networks.paths import MixedLayer, PathNetwork, PathOptions
from methods.shared.space import ChoosesFromSpace, SearchSpace, grouped_space
from methods.shared.training import TrainingMethod, train_jointly


class JointMpsOptions(PathOptions):
    """Options of joint MPS, in addition to `PathOptions`.

    Attributes:
        group_size: Number of filters of a group; as the model states when absent.
        temperature_end: Last temperature τ; the first is 1, and it falls exponentially (by exp(−0.045) in each epoch in
            the code, which is to 0.1 in 51 epochs).
    """

    group_size: Annotated[int, Field(ge=1)] | None = None
    temperature_end: Annotated[float, Field(gt=0, le=1)] = 0.1


class JointMps(TrainingMethod["JointNetwork"], ChoosesFromSpace):
    """Joint mixed-precision search and pruning."""

    summary = "Joint MPS: EdMIPS's softmax over bits with a zero-bit option for each group of filters"
    family = "multi-path"
    source = (
        "Motetti, Risso, Burrello, Macii, Poncino, Jahier Pagliari 2024: Joint Pruning and Channel-wise "
        "Mixed-Precision Quantization for Efficient Deep Neural Networks, IEEE Transactions on Computers 73(11), "
        "arXiv 2407.01054; github.com/eml-eda/plinio"
    )
    deviations = (
        "Weights have one number of bits for each layer, and the zero-bit option belongs to groups of filters; in the "
        "paper every filter has its own bits, 0 among them.",
        "The factor 1 − θ_0 acts where the next layer reads the filters; the authors fold normalisations into weights "
        "and multiply these. Removed filters still count in the statistics of standardised weights until the search "
        "has ended.",
        "As in the code, weights are divided once by the first 1 − θ_0, where no normalisation makes up for it.",
        "The group of a layer with the least α_0 always stays.",
        "The common quantizer replaces the code's.",
        "The cost term is the harness's; the code adds λ times the cost, or its hinge over a target.",
        "Logits learn by Adam with a rate that follows from the length of the search; the code has SGD with 0.01 and "
        "momentum for up to 500 epochs. Weights learn as in all searches here; the code has Adam.",
        "The temperature falls to 0.1 over a search of any length.",
        "The search starts from pretrained weights, and its network is fine-tuned from the searched ones.",
    )
    capabilities = Capabilities(budget="strength", prunes=True, mixed_precision=True, data_parallel=True)
    Options = JointMpsOptions
    options: JointMpsOptions

    def stated_options(self, network: NetworkShape) -> dict[str, Any]:
        """Return the options, with the network's own group size where no other is asked for."""
        return {**super().stated_options(network), "group_size": self.options.group_size or network.group_size}

    def space(self, network: NetworkShape) -> SearchSpace:
        """Build the space of bits and filters."""
        return grouped_space(network, self.options.bits, self.options.group_size or network.group_size)

    def network(self, job: SearchJob) -> "JointNetwork":
        """Build a network in which all candidates of a layer share one weight."""
        return JointNetwork(job, self.options.bits, self.space(job.task.network))

    def train(self, job: SearchJob, network: "JointNetwork") -> History:
        """Train weights and logits together."""
        logits, term = network.logits(), job.cost_term()
        temperature = Temperature(self.options.temperature_end, job.steps)
        of_weights = sgd(weight_groups(network.model, exclude=logits), job.schedule)
        of_logits = torch.optim.Adam(logits, lr=self.options.logit_travel / job.steps)

        def penalty() -> Tensor:
            return term(network.expected_cost(), network.actual_cost())

        return train_jointly(
            job,
            network,
            {"of_weights": of_weights, "of_logits": of_logits},
            penalty,
            draw=lambda _: network.draw(temperature.advance(), None),
            others={"temperature": temperature},
        )


class Temperature:
    """τ, which falls exponentially from 1 in the first update to its end in the last.

    Args:
        end: Last value.
        updates: Number of updates.
    """

    def __init__(self, end: float, updates: int) -> None:
        self._end, self._last = end, max(1, updates - 1)
        self._count = 0

    def advance(self) -> float:
        """Return τ of the next update."""
        share = self._count / self._last
        self._count += 1
        value: float = self._end**share
        return value

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._count = state["count"]


class ZeroOptions(nn.Module):
    """The zero-bit options of a layer's filter groups.

    Args:
        shape: Shape of the layer.
        group_size: Number of filters of a group.
        device: Device of the logits.

    Attributes:
        logits: α_0 of each group, shape (G,); 0 at the start.
        groups: Groups of filters.
        kept: 1 − θ_0 of each group at the present temperature, shape (G,).
    """

    def __init__(self, shape: LayerShape, group_size: int, device: torch.device) -> None:
        super().__init__()
        self.groups = filter_groups(shape, group_size, device)
        self.logits = nn.Parameter(torch.zeros(len(self.groups.members), device=device))
        self.kept = torch.ones_like(self.logits)

    def draw(self, of_bits: Tensor, temperature: float) -> None:
        """Compute 1 − θ_0 = Σ_p exp(α_p/τ) / (exp(α_0/τ) + Σ_p exp(α_p/τ)) from the layer's logits, shape (K,)."""
        self.kept = torch.sigmoid(torch.logsumexp(of_bits / temperature, 0) - self.logits / temperature)

    def margins(self, of_bits: Tensor) -> Tensor:
        """Compute by how much the largest logit of the layer's bits exceeds α_0, shape (G,); at 0 a group stays."""
        return of_bits.max() - self.logits


class _GatedGeometry:
    """The geometry of a layer that reads filters, each multiplied by the probability that it stays.

    It is the same function as that of multiplied inputs after their quantization, on a far smaller tensor.

    Args:
        geometry: Geometry of the layer.
        shape: Shape of the layer.
        zeros: Zero-bit options of the filters that it reads.
    """

    def __init__(self, geometry: Any, shape: LayerShape, zeros: ZeroOptions) -> None:
        self._geometry, self._shape, self._zeros = geometry, shape, zeros

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply the layer to the filters that stay."""
        gates = of_inputs(self._zeros.groups.spread(self._zeros.kept), self._shape)
        gated = weight * gates.to(weight).view(1, -1, *[1] * (weight.ndim - 2))
        result: Tensor = self._geometry.convolve(x, gated, bias)
        return result


class JointNetwork(PathNetwork):
    """A model whose searched layers mix their candidates, with zero-bit options for groups of filters.

    Args:
        job: Model, weights and measure of cost.
        bits: Candidate bits, K of them.
        space: Choices of every searched layer.

    Attributes:
        zeros: Zero-bit options by layer.
    """

    def __init__(self, job: SearchJob, bits: tuple[int, ...], space: SearchSpace) -> None:
        super().__init__(job, bits, UniformQuantizer, shared=True)
        self.zeros: dict[str, ZeroOptions] = {}
        for name, layer in self.layers.items():
            if space[name].group_size:
                zeros = ZeroOptions(self.network[name], space[name].group_size, job.task.device)
                self.zeros[name] = layer.zeros = zeros  # a part of the model, which checkpoints keep
        self._relaxed = job.measure.relaxed(self.network, space, job.task.device, EDGE_BITS)
        with torch.no_grad():
            for layer in self.layers.values():
                layer.logits.copy_(torch.tensor(bits) / bits[-1])
        self.draw(1.0, None)
        for name, layer in self.layers.items():
            shape = self.network[name]
            if isinstance(layer, MixedLayer) and shape.producer in self.zeros and not shape.depthwise:
                self._read(layer, shape, self.zeros[shape.producer])

    @staticmethod
    @torch.no_grad()
    def _read(layer: MixedLayer, shape: LayerShape, zeros: ZeroOptions) -> None:
        """Let a layer read filters by their probabilities, at first with the result that it had before."""
        layer.geometry = _GatedGeometry(layer.geometry, shape, zeros)  # type: ignore[assignment]
        if not shape.normalized:
            layer.weight[0].div_(zeros.kept[0])

    def logits(self) -> list[nn.Parameter]:
        """List the logits of all bits, then those of zero-bit options."""
        return [*super().logits(), *(zeros.logits for zeros in self.zeros.values())]

    def draw(self, temperature: float, noise: torch.Generator | None) -> None:
        """Compute the probabilities of all layers and groups at a temperature."""
        super().draw(temperature, noise)
        for name, zeros in self.zeros.items():
            zeros.draw(self.layers[name].logits[0], temperature)

    def expected_cost(self) -> Tensor:
        """Compute the cost at the expected bits and filters under the present probabilities, a scalar."""
        shares = torch.stack([layer.probabilities for layer in self.layers.values()])
        counts = {name: (zeros.kept * zeros.groups.sizes).sum().double() for name, zeros in self.zeros.items()}
        return self._relaxed(shares[:, 0], shares[:, 1], **self._relaxed.channels(counts))

    @torch.no_grad()
    def actual_cost(self) -> Tensor:
        """Compute the cost of the bits with the largest logits, and of the groups that they keep, a scalar."""
        chosen = torch.stack([layer.logits.argmax(1) for layer in self.layers.values()])
        shares = F.one_hot(chosen, len(self.bits)).double()
        counts = {}
        for name, zeros in self.zeros.items():
            margins = zeros.margins(self.layers[name].logits[0])
            open_ = (margins >= 0) | (F.one_hot(margins.argmax(), len(margins)) == 1)
            counts[name] = (open_ * zeros.groups.sizes).sum().double()
        return self._relaxed(shares[:, 0], shares[:, 1], **self._relaxed.channels(counts))

    def decisions(self) -> list[Decision]:
        """List every choice of bits and of groups; margins are differences of logits."""
        decisions = super().decisions()
        for name, zeros in self.zeros.items():
            margins = zeros.margins(self.layers[name].logits[0]).detach()
            decisions += group_decisions(name, zeros.groups.members, margins.tolist(), int(margins.argmax()))
        return decisions

    def policy(self, decisions: Sequence[Decision]) -> Policy:
        """Build the policy of these decisions; the first and the last layer have 8 bits."""
        base = uniform(self.network, EDGE_BITS)
        for name in self.zeros:
            base = base.with_layer(name, kept_filters=tuple(range(self.network[name].filters)))
        return policy_of(base, decisions)

    def figures(self) -> dict[str, Any]:
        """Describe the trained network by its logits."""
        return {**super().figures(), "zero_logits": {name: zeros.logits.tolist() for name, zeros in self.zeros.items()}}
