"""Runs: search at the tuned knobs, repair, fine-tuning, and one reading of the test split."""

import math
from collections.abc import Mapping

from torch import nn

from bench.compression.policy import EDGE_BITS, uniform
from bench.compression.shapes import NetworkShape
from bench.costs.breakdown import breakdown
from bench.costs.measures import Measure
from bench.errors import UnreachableBudgetError
from bench.execution.context import UnitContext
from bench.execution.stages.finetuning import (
    compressed_network,
    finetune,
    quantizer_name,
    quantizer_of,
    reduced_form,
)
from bench.execution.stages.pretraining import pretrained_state
from bench.execution.stages.search import MatchedSearch, check_reachable, matched_search, measure_of
from bench.planning.methods import method_of_study
from bench.planning.units import RunUnit, finetuning_updates
from bench.store.outcomes import SkippedError
from bench.training.loop import Evaluation, evaluate


def perform_run(context: UnitContext) -> None:
    """Perform a run: complete its record, and write its policy, curves and network."""
    unit = context.unit
    if not isinstance(unit, RunUnit):
        raise TypeError(f"{unit} is not a run")
    knobs = _tuned_knobs(context, unit)
    context.record["knobs"] = dict(knobs)
    method = method_of_study(unit.spec, unit.method)
    if unit.search_trains and unit.budget is not None:
        check_reachable(unit.network, method, unit.method, unit.budget)
    state, pretrained_top1 = pretrained_state(context, unit.pretraining)
    matched = matched_search(context, method, unit.budget, knobs, state)
    with context.phase("prepare"):
        network = compressed_network(context, method, matched)
    updates = finetuning_updates(context.spec, matched.updates, context.task.data.batches_per_epoch)
    finetune(context, network, context.spec.finetune, updates)
    data = context.task.data
    with context.phase("evaluate"):
        validation = evaluate(network, data, data.validation)
        test = evaluate(network, data, data.test)
    context.record.update(
        normalized_weights=matched.result.normalized_weights,
        quantizer=quantizer_name(quantizer_of(context.spec, method)),
    )
    _complete_record(context, unit, matched, _accuracies(matched, validation, test, pretrained_top1))
    _write_files(context, matched, network)


def _tuned_knobs(context: UnitContext, unit: RunUnit) -> Mapping[str, float]:
    """Read the knobs that tuning chose.

    Raises:
        UnreachableBudgetError, SkippedError: Tuning ended without knobs.
    """
    if unit.tuning is None:
        return {}
    record = context.store.record("tuning", unit.tuning.identity) or {}
    if record.get("status") == "unreachable":
        raise UnreachableBudgetError(str(record["reason"]), float(record["nearest_cost"]))
    if record.get("status") != "done":
        reason = record.get("reason") or record.get("status") or "it was not done"
        raise SkippedError(f"tuning of {unit.method} did not finish: {reason}")
    return {str(name): float(value) for name, value in record["knobs"].items()}


def _complete_record(
    context: UnitContext, unit: RunUnit, matched: MatchedSearch, accuracies: Mapping[str, float | None]
) -> None:
    """Add figures, times, and final costs; these are those of the physically reduced network."""
    network = context.network
    model, image = context.task.make_model(), context.task.data.image_shape
    final = reduced_form(network, model, matched.policy, image)
    cost = measure_of(unit.budget).price(*final)
    context.record.update(
        metrics={
            **accuracies,
            **_training(context, matched),
            "repair_share": repair_share(context.network, matched, measure_of(unit.budget)),
            **breakdown(context.spec.accelerator, *final).metrics(),
            "cost": cost,
        },
        times={
            "search_seconds": context.clock.seconds("search"),
            "finetune_seconds": context.clock.seconds("finetune"),
            "total_seconds": context.clock.total(),
        },
        within_budget=None if unit.budget is None else unit.budget.matches(cost),
        filters={layer.name: layer.filters for layer in network.layers},
    )


def _accuracies(
    matched: MatchedSearch, validation: Evaluation, test: Evaluation, pretrained_top1: float
) -> dict[str, float | None]:
    start = matched.result.record.get("start_top1")
    return {
        "top1": test.top1,
        "top5": test.top5,
        "loss": test.loss,
        "validation_top1": validation.top1,
        "pretrained_top1": pretrained_top1,
        "start_top1": None if start is None else float(start),
        "raw_cost": matched.raw_cost,
        "repaired_gates": matched.repaired_gates,
    }


def repair_share(network: NetworkShape, matched: MatchedSearch, measure: Measure) -> float:
    """Return the share of a policy's compression that repair made, between 0 and 1.

    Compression is counted on a logarithmic scale from uniform 8 bit, or from the search's policy if that costs more.
    """
    if not matched.repaired_gates:
        return 0.0
    raw, final = matched.raw_cost, measure.price(network, matched.policy)
    dearest = max(raw, final, measure.price(network, uniform(network, EDGE_BITS)))
    changed, whole = abs(math.log(raw / final)), math.log(dearest / min(raw, final))
    return changed / whole if whole else 0.0


def _training(context: UnitContext, matched: MatchedSearch) -> dict[str, int]:
    """Return what the run drew from the data, and the updates after pretraining that its final weights have seen."""
    search, finetuning = context.data_use.of("search"), context.data_use.of("finetune")
    return {
        "trained_updates": matched.updates + finetuning["training_batches"],
        "training_images": (search["training_images"] + search["architecture_images"] + finetuning["training_images"]),
        "evaluated_images": search["evaluated_images"],
    }


def _write_files(context: UnitContext, matched: MatchedSearch, network: nn.Module) -> None:
    context.write("policy.json", matched.policy.to_json())
    context.write("raw_policy.json", matched.result.policy.to_json())
    context.write("curves.json", context.curves.entries)
    context.write("search.json", matched.result.record)
    context.write_state("network.pt", network)
