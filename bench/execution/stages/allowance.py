"""The training allowance: which weights a search hands on, and how long its network is fine-tuned.

Methods that train while they search would otherwise compare longer trained networks with those of methods that only
choose. `StudySpec.allowance` says how a study equalises them. Updates are counted where they are drawn, by the data.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, equal

from bench.execution.context import UnitContext
from bench.method import SearchResult
from bench.spec.schema import FinetuneSchedule


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


def finetuning_schedule(context: UnitContext, updates: int) -> FinetuneSchedule:
    """Return the schedule of fine-tuning, longer by the updates of the search that the network has not seen.

    The number of epochs is rounded; the course of the learning rate is stretched.

    Args:
        context: Context of the run.
        updates: Updates of the search that the network's weights have seen.
    """
    spec, per_epoch = context.spec, context.task.data.batches_per_epoch
    schedule = spec.finetune
    if spec.allowance != "equal":
        return schedule
    missing = spec.search.epochs * per_epoch(spec.search.batch_size) - updates
    return lengthened(schedule, schedule.epochs + max(0, round(missing / per_epoch(schedule.batch_size))))


def lengthened(schedule: FinetuneSchedule, epochs: int) -> FinetuneSchedule:
    """Stretch a schedule to a number of epochs; the milestones of its rate stay at the same shares."""
    milestones = tuple(round(milestone * epochs / schedule.epochs) for milestone in schedule.milestones)
    return schedule.model_copy(update={"epochs": epochs, "milestones": milestones})
