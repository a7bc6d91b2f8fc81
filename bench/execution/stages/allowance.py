"""The training allowance: which weights a search hands on, and how many updates of the search they have seen.

Methods that train while they search would otherwise compare longer trained networks with those of methods that only
choose. `StudySpec.allowance` says how a study equalises them, and `bench.planning.units.finetuning_updates` how long
fine-tuning is. Updates are counted where they are drawn, by the data.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, equal

from bench.execution.context import UnitContext
from bench.method import SearchResult


def handed_on(context: UnitContext, result: SearchResult, pretrained: Mapping[str, Tensor]) -> SearchResult:
    """Return what fine-tuning starts from: the whole result of a search, or its policy with the pretrained weights."""
    if context.spec.allowance != "policy":
        return result
    return replace(result, state=pretrained, clips={}, quantizers={})


def updates_of_weights(context: UnitContext, result: SearchResult, pretrained: Mapping[str, Tensor]) -> int:
    """Count the training batches of the search that its weights have seen; 0 if they are the pretrained ones.

    Statistics of normalisations do not count as weights; they are re-estimated in any case.
    """
    drawn = context.data_use.of("search")["training_batches"]
    return 0 if _same_weights(context, result.state, pretrained) else drawn


def _same_weights(context: UnitContext, state: Mapping[str, Tensor], pretrained: Mapping[str, Tensor]) -> bool:
    names = [name for name, _ in context.task.make_model().named_parameters()]
    return all(name in state and equal(state[name].to(context.device), pretrained[name]) for name in names)
