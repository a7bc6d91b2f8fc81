"""Trials of a tuning: search, repair, a short fine-tuning, and validation."""

from dataclasses import asdict

from bench.execution.context import UnitContext
from bench.execution.stages.finetuning import compressed_network, finetune
from bench.execution.stages.pretraining import pretrained_state
from bench.execution.stages.search import matched_search
from bench.matching.trial import Trial
from bench.planning.methods import method_of_study
from bench.planning.units import TrialUnit
from bench.training.loop import evaluate


def perform_trial(context: UnitContext) -> None:
    """Perform a trial and write `trial.json`."""
    unit, spec = context.unit, context.spec
    if not isinstance(unit, TrialUnit):
        raise TypeError(f"{unit} is not a trial")
    tuning = unit.tuning
    method = method_of_study(tuning.spec, tuning.method)
    state, _ = pretrained_state(context, tuning.pretraining)
    matched = matched_search(context, method, tuning.budget, unit.knobs, state)
    with context.phase("prepare"):
        network = compressed_network(context, method, matched)
    if spec.tuning.finetune_epochs:
        short = {"epochs": spec.tuning.finetune_epochs, "decay": "cosine", "milestones": ()}
        finetune(context, network, spec.finetune.model_copy(update=short))
    data = context.task.data
    with context.phase("validate"):
        result = evaluate(network, data, data.validation)
    cost = tuning.budget.price(context.network, matched.policy)
    trial = Trial(
        number=unit.number,
        knobs=dict(unit.knobs),
        raw_cost=matched.raw_cost,
        cost=cost,
        repaired_gates=matched.repaired_gates,
        within_budget=tuning.budget.matches(cost),
        validation_top1=result.top1,
        validation_loss=result.loss,
        validation_images=len(data.validation),
        seconds=context.clock.total(),
        policy=matched.policy.to_json(),
        curves=context.curves.entries,
        record=matched.result.record,
    )
    context.write("trial.json", asdict(trial))
