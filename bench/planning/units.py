"""Units of work: pretrainings, tunings, their trials, and runs. Each has an identity and a title."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.compression.shapes import NetworkShape
from bench.costs.budget import Budget
from bench.planning.networks import task_network
from bench.spec.schema import REPORT_SEEDS, StudySpec
from bench.store.files import UnitKind


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One piece of work; of this class itself, a pretraining.

    Attributes:
        identity: Hash of `document`.
        document: Everything that the unit's numbers depend on.
        seed: Seed of the run, or of a tuning's searches.
        spec: Specification of the study, with the change of an ablation.
        variant: The change of an ablation in words, e.g. "group_size=4"; empty for none.
    """

    identity: str
    document: Mapping[str, Any]
    seed: int
    spec: StudySpec
    variant: str = ""

    @property
    def network(self) -> NetworkShape:
        """Shapes of the model that the unit works on."""
        return task_network(self.spec.task)


@dataclass(frozen=True, kw_only=True)
class TuningUnit(Unit):
    """Tuning of one method onto one budget.

    Attributes:
        method, options: Name of the method, and the options that the study gives it.
        budget: Target.
        pretraining: Pretraining of the tuning's seed.
        trials: Largest number of searches.
    """

    method: str
    options: Mapping[str, Any]
    budget: Budget
    pretraining: Unit
    trials: int

    @property
    def label(self) -> str:
        """Name of the method, with the change of an ablation in brackets."""
        return label(self.method, self.variant)


@dataclass(frozen=True, kw_only=True)
class TrialUnit(Unit):
    """One trial of a tuning: a search at given knobs."""

    tuning: TuningUnit
    number: int
    knobs: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunUnit(Unit):
    """One (task, method, budget, seed).

    Attributes:
        method, options: Name of the method, and the options that the study gives it.
        budget: Target; `None` for a method that ignores budgets.
        pretraining: Pretraining of the seed.
        tuning: Tuning that finds the method's knobs; `None` for a method without knobs.
        search_trains: Whether the search has the epochs of the schedule of searches.
    """

    method: str
    options: Mapping[str, Any]
    budget: Budget | None
    pretraining: Unit
    tuning: TuningUnit | None
    search_trains: bool

    @property
    def label(self) -> str:
        """Name of the method, with the change of an ablation in brackets."""
        return label(self.method, self.variant)


def trial_of(tuning: TuningUnit, number: int, knobs: Mapping[str, float]) -> TrialUnit:
    """Make a trial of a tuning."""
    return TrialUnit(
        identity=f"{tuning.identity}-{number}",
        document={"kind": "trial", "tuning": tuning.identity, "number": number, "knobs": dict(knobs)},
        seed=tuning.seed,
        spec=tuning.spec,
        variant=tuning.variant,
        tuning=tuning,
        number=number,
        knobs=knobs,
    )


def kind_of(unit: Unit) -> UnitKind:
    """Return the kind under which the store keeps a unit."""
    kinds: dict[type[Unit], UnitKind] = {TuningUnit: "tuning", TrialUnit: "trials", RunUnit: "runs"}
    return kinds.get(type(unit), "pretrained")


def method_unit(unit: Unit) -> TuningUnit | RunUnit | None:
    """Return the tuning or run that states a unit's method and budget; `None` for a pretraining."""
    owner = unit.tuning if isinstance(unit, TrialUnit) else unit
    return owner if isinstance(owner, TuningUnit | RunUnit) else None


def method_name(unit: Unit) -> str | None:
    """Return the name of the method that a unit belongs to; `None` for a pretraining."""
    owner = method_unit(unit)
    return None if owner is None else owner.method


def method_source(unit: Unit) -> str | None:
    """Return the name or `/path/file.py:Class` by which a unit's method is loaded; `None` for a pretraining."""
    name = method_name(unit)
    return None if name is None else unit.spec.method_files.get(name, name)


def planned_epochs(unit: Unit) -> int:
    """Return how many training epochs a unit takes at most."""
    spec = unit.spec
    if isinstance(unit, TuningUnit):
        return unit.trials * (spec.search.epochs + spec.tuning.finetune_epochs)
    if isinstance(unit, RunUnit):
        return (spec.search.epochs if unit.search_trains else 0) + finetuning_epochs(unit)
    return spec.pretrain.epochs if "schedule" in unit.document else 0


def finetuning_epochs(unit: RunUnit) -> int:
    """Return how many epochs a run fine-tunes its network if its search trains weights in every update or in none.

    A search that trains them in a part of its updates is fine-tuned longer, which is known only when it has ended.
    """
    spec = unit.spec
    images = spec.finetune.batch_size * spec.search.batch_size  # any number that both divide

    def batches(size: int) -> int:
        return images // size

    trained = spec.search.epochs * batches(spec.search.batch_size) if unit.search_trains else 0
    return math.ceil(finetuning_updates(spec, trained, batches) / batches(spec.finetune.batch_size))


def finetuning_updates(spec: StudySpec, trained: int, batches_per_epoch: Callable[[int], int]) -> int:
    """Return the updates of fine-tuning: those of its schedule, and of the search those that the weights have not seen.

    Args:
        spec: Specification, whose `allowance` sets the rule.
        trained: Updates of the search that the network's weights have seen.
        batches_per_epoch: Function from a batch size to the number of batches in an epoch.
    """
    scheduled = spec.finetune.epochs * batches_per_epoch(spec.finetune.batch_size)
    if spec.allowance != "equal":
        return scheduled
    return scheduled + max(0, spec.search.epochs * batches_per_epoch(spec.search.batch_size) - trained)


def label(method: str, variant: str) -> str:
    """Write a method with the change of an ablation in brackets."""
    return f"{method}[{variant}]" if variant else method


def title(unit: Unit) -> str:
    """Describe a unit in words, e.g. "run sbs 4bit seed 0"."""
    words = _title(unit)
    return f"{words} on {unit.spec.task.model}" if unit.spec.further_models else words


def _title(unit: Unit) -> str:
    if isinstance(unit, TuningUnit):
        return f"tune {unit.label} {unit.budget.text}"
    if isinstance(unit, TrialUnit):
        return f"{_title(unit.tuning)} trial {unit.number + 1}"
    if isinstance(unit, RunUnit):
        budget = "" if unit.budget is None else f" {unit.budget.text}"
        return f"run {unit.label}{budget} seed {unit.seed}"
    purpose = f"seed {unit.seed}" if unit.seed < REPORT_SEEDS else "for tuning"
    return f"{label('pretrain', unit.variant)} {purpose}"
