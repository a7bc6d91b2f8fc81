"""The variational information bottleneck on channels (VIBNet, Dai et al. 2018, arXiv 1802.10399).

Each channel that may be removed is multiplied by

    z = μ + ε·σ,  ε normal

between its normalisation and its activation. In evaluation it is multiplied by μ, or by 0 where

    log α = log(σ²/μ²)

exceeds a threshold. The information that a channel passes on is at most ½ log(1 + μ²/σ²).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.api import NetworkShape, QuantizedLayer, clamped, replicas
from methods.shared.gates import FilterGroups, gate

_FIRST_MEAN, _FIRST_LOG_VARIANCE = 1.0, -9.0
"""First values of μ and log σ². VIBNet draws them around these values, with a standard deviation of 0.01."""
_SMALLEST_MEAN = 1e-6
"""Lower bound of |μ| in log α."""


class ChannelGates(nn.Module):
    """z = μ + ε·σ for each channel of a layer.

    Args:
        channels: Number of channels, C.
        device: Device of the gates.
        group_size: Number of filters that are removed together, by the mean of their log α.
        threshold: Value of log α above which filters are removed.
        softness: Width of the sigmoid whose slope replaces that of the threshold.

    Attributes:
        mean, log_variance: μ and log σ², shape (C,).
        groups: Groups of filters, G of them.
        noise: ε of the next training step, shape (images, C); `None` for no noise.
    """

    def __init__(
        self, channels: int, device: torch.device, *, group_size: int, threshold: float, softness: float
    ) -> None:
        super().__init__()
        self.groups = FilterGroups(channels, group_size, device)
        self._threshold, self._softness = threshold, softness
        self.mean = nn.Parameter(torch.full((channels,), _FIRST_MEAN, device=device))
        self.log_variance = nn.Parameter(torch.full((channels,), _FIRST_LOG_VARIANCE, device=device))
        self.noise: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the channels of (N, C, H, W) by z; in evaluation, by μ or 0."""
        if not self.training:
            return x * (self.mean * self.kept().detach()).view(1, -1, 1, 1)
        if self.noise is None:
            return x * self.mean.view(1, -1, 1, 1)
        z = self.mean + self.noise * torch.exp(self.log_variance / 2)
        return x * z.unsqueeze(2).unsqueeze(3)

    def draw(self, noise: torch.Generator, images: int) -> None:
        """Draw ε for a replica's images; the draws of the whole batch do not depend on the number of replicas."""
        drawn = torch.randn(images * replicas.count(), len(self.mean), generator=noise)
        self.noise = replicas.mine(drawn).to(self.mean.device)

    def information(self) -> Tensor:
        """Compute Σ ½ log(1 + μ²/σ²), a scalar."""
        return torch.log1p(self.mean.square() * torch.exp(-self.log_variance)).sum() / 2

    def excess(self) -> Tensor:
        """Compute by how much the mean log α of each group exceeds the threshold, shape (G,)."""
        log_alpha = self.log_variance - torch.log(clamped(self.mean.square(), _SMALLEST_MEAN**2))
        sizes = self.groups.sizes.to(log_alpha.dtype)
        return torch.zeros_like(sizes).index_add(0, self.groups.owner, log_alpha) / sizes - self._threshold

    def opened(self) -> Tensor:
        """Compute 1 for groups that stay and 0 for others, shape (G,), with the slope of a sigmoid.

        The group with the least log α always stays, since a layer needs filters.
        """
        excess = self.excess() / self._softness
        strongest = F.one_hot(excess.argmin(), len(excess)).to(excess.dtype)
        open_ = gate(torch.zeros_like(excess), excess)
        return open_ + strongest * (1 - open_.detach())

    def kept(self) -> Tensor:
        """Compute the same for each filter, shape (C,)."""
        return self.groups.spread(self.opened())

    def count(self) -> Tensor:
        """Count the filters that stay, a scalar, differentiable."""
        return (self.opened() * self.groups.sizes).sum()


class BottleneckLayer(QuantizedLayer):
    """A searched layer that reads nothing from removed channels in evaluation, as in the physically reduced network.

    A channel that is zero after its normalisation need not be zero when it is read: a depthwise convolution, or a grid
    with an offset, can lie in between. So the weights that read it are set to zero too.

    Args:
        module: The float layer.
        weight, activation: Quantizers of weight and input.
        gates: Gates of the layer's own channels; `None` when all stay.
        producer: Gates of the layer's inputs; `None` when all stay, or when the layer does not mix them.
    """

    def __init__(
        self,
        module: nn.Module,
        weight: nn.Module,
        activation: nn.Module,
        gates: ChannelGates | None,
        producer: ChannelGates | None,
    ) -> None:
        super().__init__(module, weight, activation)
        self.gates = gates
        self._producer = (producer,)  # a tuple keeps it from becoming a submodule

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to a quantized input with the quantized weight."""
        weight, producer = self.weight_quantizer(self.weight), self._producer[0]
        if producer is not None and not self.training:
            weight = weight * producer.kept().detach().view(1, -1, *[1] * (weight.ndim - 2))
        return self.geometry.convolve(self.activation_quantizer(x), weight, self.bias)


def gated_norms(network: NetworkShape) -> dict[str, str]:
    """Find the normalisation whose channels are gated, for each layer that may lose filters.

    It is the first one that shrinks with the layer. A layer without a normalisation of its own is left out.
    """
    own: dict[str, str] = {}
    for norm, layer in network.norms:
        if network[layer].normalized and network[layer].prunable:
            own.setdefault(layer, norm)
    return own


def insert_gates(norm: nn.Module, gates: ChannelGates) -> None:
    """Multiply every output of a normalisation by its gates."""

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        multiplied: Tensor = gates(output)
        return multiplied

    norm.register_forward_hook(hook)
