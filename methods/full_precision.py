"""The reference: the network at full precision, trained on as long as every compressed one."""

from bench.api import FULL_PRECISION_BITS, Capabilities, Method, SearchJob, SearchResult, uniform


class FullPrecision(Method):
    """Nothing is compressed; fine-tuning is the same as everybody's."""

    summary = "Reference: no compression, fine-tuned as long as the others"
    source = "this project: the reference of every study"
    capabilities = Capabilities(budget="ignored", data_parallel=True)

    def search(self, job: SearchJob) -> SearchResult:
        """Keep the pretrained weights."""
        return SearchResult(policy=uniform(job.task.network, FULL_PRECISION_BITS), state=job.pretrained)
