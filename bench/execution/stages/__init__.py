"""The stages of a unit: what its process does between the request and the result.

`perform` runs them for any unit. A *pretraining* trains the float network that all methods start from. A *search* asks
the method for a policy and repairs it onto the budget. *Fine-tuning* trains the compressed network. A *trial* and a
*run* consist of both.
"""

from bench.execution.stages.perform import WorkResult, perform

__all__ = ["WorkResult", "perform"]
