"""Fixed precision: the same width in every layer but the first and the last, which have 8 bits."""

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


class FixedOptions(Options):
    """Options of fixed precision.

    Attributes:
        bits: The width; when absent, the largest one whose network fits the budget.
    """

    bits: Annotated[int, Field(ge=1, le=_WIDEST)] | None = None


class Fixed(Method):
    """Uniform precision, quantized by the common quantizer."""

    summary = "Uniform precision: the largest k bits that fit the budget"
    source = "this project: the baseline of the SBS paper's tables, with the common quantizer"
    capabilities = Capabilities(budget="direct", data_parallel=True)
    Options = FixedOptions
    options: FixedOptions

    def cheapest(self, network: NetworkShape) -> Policy:
        """One bit everywhere, or the width that was asked for."""
        return uniform(network, self.options.bits or 1)

    def search(self, job: SearchJob) -> SearchResult:
        """Take the largest width within the budget; nothing is trained.

        Raises:
            UnreachableBudgetError: Even the least width costs more.
        """
        network = job.task.network
        widths = [self.options.bits] if self.options.bits else list(range(min(_WIDEST, job.measure.max_bits), 0, -1))
        for bits in widths:
            policy = uniform(network, bits)
            if job.price(policy) <= job.budget:
                return SearchResult(policy=policy, state=job.pretrained, record={"bits": bits})
        nearest = job.price(uniform(network, widths[-1]))
        reason = f"uniform {widths[-1]} bit costs {job.measure.in_words(nearest)}, above the budget"
        raise UnreachableBudgetError(reason, nearest)
