"""A baseline: the same share of filters taken from every layer that may lose some, at one number of bits.

Nothing is chosen layer by layer. Of each prunable layer, the filters with the largest sum of absolute weights stay
(Li et al. 2017, arXiv 1608.08710, Section 3.1). Their share is the largest that fits the budget.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from bench.api import Capabilities, LayerShape, Method, NetworkShape, Options, Policy, SearchJob, SearchResult, uniform
from methods.shared.budget import unreachable

_MOST_BITS = 16


class WidthOptions(Options):
    """Options of the uniformly narrower network.

    Attributes:
        bits: Bits of all layers but the first and the last. When absent, they are the fewest whose full network exceeds
            the budget.
    """

    bits: Annotated[int, Field(ge=1, le=_MOST_BITS)] | None = None


class Width(Method):
    """A uniformly narrower network in uniform precision."""

    summary = "Uniformly narrower: the same share of filters from every prunable layer, at uniform precision"
    family = "uniform"
    source = "Li, Kadav, Durdanovic, Samet and Graf 2017, Pruning Filters for Efficient ConvNets, arXiv 1608.08710"
    deviations = (
        "One share for all layers, the largest that fits the budget; the paper sets shares by hand for each stage.",
        "The narrower network is also quantized, to one number of bits.",
    )
    capabilities = Capabilities(budget="direct", prunes=True, data_parallel=True)
    Options = WidthOptions
    options: WidthOptions

    def cheapest(self, network: NetworkShape) -> Policy:
        """Keep one filter a layer, at the bits of the options or at one bit."""
        policy = uniform(network, self.options.bits or 1)
        for layer in network.layers:
            if layer.prunable:
                policy = policy.with_layer(layer.name, kept_filters=(0,))
        return policy

    def costliest(self, network: NetworkShape) -> Policy:
        """Keep all filters, at the bits of the options or at the most that are tried."""
        return uniform(network, self.options.bits or _MOST_BITS)

    def search(self, job: SearchJob) -> SearchResult:
        """Take the largest share that fits the budget; nothing is trained.

        Raises:
            UnreachableBudgetError: Even one filter a layer costs more than the budget.
        """
        network = job.task.network
        bits = self.options.bits or self._fewest_above(job)
        ranked = _ranked_filters(job)
        most = max((len(filters) for filters in ranked.values()), default=0)
        policy = uniform(network, bits)
        for kept in range(most, 0, -1):
            policy = _narrowed(network, bits, ranked, kept / most)
            if job.price(policy) <= job.budget:
                return SearchResult(policy=policy, state=job.pretrained, record={"bits": bits, "share": kept / most})
        raise unreachable(job, f"one filter a layer at {bits} bits", job.price(policy))

    def _fewest_above(self, job: SearchJob) -> int:
        """Find the fewest bits whose full network exceeds the budget; if none does, the most that may be chosen."""
        allowed = range(1, min(_MOST_BITS, job.measure.max_quantized_bits) + 1)
        above = [bits for bits in allowed if job.price(uniform(job.task.network, bits)) > job.budget]
        return above[0] if above else allowed[-1]


def _ranked_filters(job: SearchJob) -> dict[str, list[int]]:
    """Sort the filters of each prunable layer by their sum of absolute weights, the largest first."""

    def sizes(layer: LayerShape) -> Tensor:
        rows = job.pretrained[f"{layer.name}.weight"].abs().flatten(1).sum(1)
        return rows.view(layer.parts, layer.filters, -1).sum((0, 2))

    return {
        layer.name: sizes(layer).argsort(descending=True).tolist()
        for layer in job.task.network.layers
        if layer.prunable
    }


def _narrowed(network: NetworkShape, bits: int, ranked: dict[str, list[int]], share: float) -> Policy:
    """Build the policy that keeps a share of the filters of every prunable layer, at least one."""
    policy = uniform(network, bits)
    for name, filters in ranked.items():
        kept = max(1, round(share * len(filters)))
        if kept < len(filters):
            policy = policy.with_layer(name, kept_filters=tuple(sorted(filters[:kept])))
    return policy
