"""Pretraining: the network that all methods of a seed start from."""

from typing import Any

from torch import nn

from bench import replicas
from bench.compression.policy import FULL_PRECISION_BITS, uniform
from bench.costs.counter import price
from bench.execution.context import UnitContext
from bench.models.weights import checkpoint_of
from bench.planning.checkpoints import load_checkpoint
from bench.planning.units import Unit
from bench.spec.schema import REPORT_SEEDS
from bench.spec.seeds import derive, generator, start_process_deterministically
from bench.store.files import load_state
from bench.store.outcomes import SkippedError
from bench.training.loop import evaluate, fit


def perform_pretraining(context: UnitContext) -> None:
    """Make the float network of a seed: from a checkpoint, by training, or as it is initialised."""
    spec, seed = context.spec, context.unit.seed
    start_process_deterministically(derive("pretrain", seed), spec.threads)
    task = context.task
    model = task.make_model()
    checkpoint = checkpoint_of(spec.task)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, spec.task.model)
    elif spec.task.init == "pretrained":
        with context.phase("pretrain"):
            fit(
                model,
                task.data,
                spec.pretrain,
                generator("order", "pretrain", seed),
                context.curves.reporter("pretrain"),
                context.checkpoints.stage("pretrain"),
                context.forward.prepare(model, "pretraining", None),
            )
    result = evaluate(model, task.data, task.data.validation)
    context.write_state("model.pt", model)
    context.write("curves.json", context.curves.entries)
    trained = checkpoint is not None or spec.task.init == "pretrained"
    context.record["metrics"] = {
        "validation_top1": result.top1,
        "validation_loss": result.loss,
        **(_reference(context, model) if trained and seed < REPORT_SEEDS else {}),
    }
    context.record["times"] = {"total_seconds": context.clock.total()}


def _reference(context: UnitContext, model: nn.Module) -> dict[str, float]:
    """Return the test accuracy and the cost of a pretrained network, for the reference row of the comparison.

    Nothing is chosen by it. The network of the tuning's seed has no such figures: no test accuracy is near a tuning.
    """
    data, cost = context.task.data, price(context.network, uniform(context.network, FULL_PRECISION_BITS))
    test = evaluate(model, data, data.test)
    return {"top1": test.top1, "top5": test.top5, "bops": cost.bops, "memory_kb": cost.memory_kb}


def pretrained_state(context: UnitContext, unit: Unit) -> tuple[dict[str, Any], float]:
    """Read the state of a pretraining onto the device, and its validation accuracy in percent.

    Args:
        context: Context of the unit that starts from it.
        unit: The pretraining.

    Raises:
        SkippedError: The pretraining did not finish, or its file is damaged.
    """
    store = context.store
    record = store.record("pretrained", unit.identity) or {}
    if record.get("status") != "done":
        reason = record.get("reason") or record.get("status") or "it was not done"
        raise SkippedError(f"pretraining of seed {unit.seed} did not finish: {reason}")
    damage = store.damage("pretrained", unit.identity, record, thorough=True)
    if damage is not None:
        if replicas.is_first():
            store.write_record("pretrained", unit.identity, record | {"status": "killed", "reason": damage})
        raise SkippedError(
            f"pretraining of seed {unit.seed} is damaged ({damage}); run the same command again to repeat it"
        )
    state = load_state(store.unit("pretrained", unit.identity) / "model.pt")
    top1 = float(record["metrics"]["validation_top1"])
    return {name: value.to(context.device) for name, value in state.items()}, top1
