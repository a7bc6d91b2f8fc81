"""The reference: the network at full precision, trained further for as long as every compressed network."""

from bench.api import FULL_PRECISION_BITS, Capabilities, Method, SearchJob, SearchResult, uniform


class FullPrecision(Method):
    """No compression; fine-tuning is the same as for all methods."""

    summary = "Reference: no compression, fine-tuned as long as the others"
    family = "reference"
    source = "this project: the reference of every study"
    deviations = (
        "It is trained further, for as long as the compressed networks; full-precision rows of the SBS paper are the "
        "pretrained networks, whose accuracy every run records too.",
    )
    capabilities = Capabilities(budget="ignored", data_parallel=True)

    def search(self, job: SearchJob) -> SearchResult:
        """Keep the pretrained weights."""
        return SearchResult(policy=uniform(job.task.network, FULL_PRECISION_BITS), state=job.pretrained)
