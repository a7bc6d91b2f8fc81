"""Fixed precision: the same bits in every layer but the first and the last, which have 8."""

from typing import Annotated

from pydantic import Field

from bench.api import Capabilities, Method, NetworkShape, Options, Policy, SearchJob, SearchResult, uniform
from methods.shared.budget import unreachable
from methods.shared.quantizers.starts import ClipInit

_MOST_BITS = 16


class FixedOptions(Options):
    """Options of fixed precision.

    Attributes:
        bits: Number of bits. When absent, it is the largest one whose network fits the budget.
        clip_init: Clip values at which fine-tuning starts where it does not calibrate them anyway
            (`finetune.calibrate = false`): of the least squared error on a batch ("calibrated"), or 1 ("paper").
    """

    bits: Annotated[int, Field(ge=1, le=_MOST_BITS)] | None = None
    clip_init: ClipInit = "calibrated"


class Fixed(Method):
    """Uniform precision, quantized by the common quantizer."""

    summary = "Uniform precision: the largest k bits that fit the budget"
    family = "uniform"
    source = "this project: the baseline of the SBS paper's tables, with the common quantizer"
    deviations = (
        "Clip values are calibrated on a batch before fine-tuning, as for all methods here; clip_init = 'paper' and "
        "finetune.calibrate = false start them at 1 (the SBS paper's Appendix F).",
        "Any number of bits up to 16 may be taken, so a budget of, say, 3bit is met without a remainder; methods that "
        "choose among 2, 4 and 8 bits have to mix these.",
    )
    capabilities = Capabilities(budget="direct", data_parallel=True)
    Options = FixedOptions
    options: FixedOptions

    def cheapest(self, network: NetworkShape) -> Policy:
        """Take the bits of the options, or one bit, everywhere."""
        return uniform(network, self.options.bits or 1)

    def costliest(self, network: NetworkShape) -> Policy:
        """Take the bits of the options, or the most that are tried, everywhere."""
        return uniform(network, self.options.bits or _MOST_BITS)

    def search(self, job: SearchJob) -> SearchResult:
        """Take the most bits within the budget; nothing is trained.

        Raises:
            UnreachableBudgetError: Even the fewest bits cost more than the budget.
        """
        network = job.task.network
        most = min(_MOST_BITS, job.measure.max_quantized_bits)
        candidates = [self.options.bits] if self.options.bits else list(range(most, 0, -1))
        for bits in candidates:
            policy = uniform(network, bits)
            if job.price(policy) <= job.budget:
                return SearchResult(
                    policy=policy, state=job.pretrained, clips=self._clips(network), record={"bits": bits}
                )
        raise unreachable(job, f"uniform {candidates[-1]} bit", job.price(policy))

    def _clips(self, network: NetworkShape) -> dict[str, float]:
        """Return a clip value of 1 for every tensor, or none, which leaves them to calibration."""
        if self.options.clip_init == "calibrated":
            return {}
        return {f"{layer.name}.{tensor}": 1.0 for layer in network.layers for tensor in ("weight", "activation")}
