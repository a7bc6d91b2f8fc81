"""A baseline: the same share of filters taken from every layer that can lose some, at one width in bits.

What remains when nothing is chosen layer by layer. Of each prunable layer the filters with the largest sum of absolute
weights stay; the share is the largest that fits the budget.
"""

from typing import Annotated

from pydantic import Field

from bench.api import (
    Capabilities,
    Method,
    NetworkShape,
    Options,
    Policy,
    SearchJob,
    SearchResult,
    UnreachableBudgetError,
    uniform,
)

_WIDEST = 16


class WidthOptions(Options):
    """Options of the uniformly narrower network.

    Attributes:
        bits: Width in bits of all middle layers; when absent, the least one whose full network exceeds the budget.
    """

    bits: Annotated[int, Field(ge=1, le=_WIDEST)] | None = None


class Width(Method):
    """A uniformly narrower network in uniform precision."""

    summary = "Uniformly narrower: the same share of filters from every prunable layer, at uniform precision"
    source = "Li, Kadav, Durdanovic, Samet and Graf 2017, Pruning Filters for Efficient ConvNets, arXiv 1608.08710"
    deviations = (
        "One share for all layers, the largest that fits the budget; the paper sets it by hand, stage by stage.",
        "The narrower network is quantized to one width as well.",
    )
    capabilities = Capabilities(budget="direct", prunes=True, data_parallel=True)
    Options = WidthOptions
    options: WidthOptions

    def cheapest(self, network: NetworkShape) -> Policy:
        """One filter a layer, at the width that was asked for or one bit."""
        policy = uniform(network, self.options.bits or 1)
        for layer in network.layers:
            if layer.prunable:
                policy = policy.with_layer(layer.name, kept_filters=(0,))
        return policy

    def search(self, job: SearchJob) -> SearchResult:
        """Take the largest share that fits.

        Raises:
            UnreachableBudgetError: Even one filter a layer costs more than the budget.
        """
        network = job.task.network
        bits = self.options.bits or self._first_above(job)
        ranked = _ranked_filters(job)
        most = max((len(filters) for filters in ranked.values()), default=0)
        policy = uniform(network, bits)
        for kept in range(most, 0, -1):
            policy = _narrowed(network, bits, ranked, kept / most)
            if job.price(policy) <= job.budget:
                return SearchResult(policy=policy, state=job.pretrained, record={"bits": bits, "share": kept / most})
        nearest = job.price(policy)
        reason = f"one filter a layer at {bits} bits costs {job.measure.in_words(nearest)}, above the budget"
        raise UnreachableBudgetError(reason, nearest)

    def _first_above(self, job: SearchJob) -> int:
        """The least width at which something must go."""
        widths = range(1, min(_WIDEST, job.measure.max_bits) + 1)
        above = [bits for bits in widths if job.price(uniform(job.task.network, bits)) > job.budget]
        return above[0] if above else widths[-1]


def _ranked_filters(job: SearchJob) -> dict[str, list[int]]:
    """The filters of each prunable layer, the strongest first."""
    return {
        layer.name: job.pretrained[f"{layer.name}.weight"].abs().flatten(1).sum(1).argsort(descending=True).tolist()
        for layer in job.task.network.layers
        if layer.prunable
    }


def _narrowed(network: NetworkShape, bits: int, ranked: dict[str, list[int]], share: float) -> Policy:
    """The policy that keeps a share of the filters of every prunable layer, at least one."""
    policy = uniform(network, bits)
    for name, filters in ranked.items():
        kept = max(1, round(share * len(filters)))
        if kept < len(filters):
            policy = policy.with_layer(name, kept_filters=tuple(sorted(filters[:kept])))
    return policy
