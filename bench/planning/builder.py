"""Making of units, and their specifications in the store.

The identity of a unit is the hash of those parts of the specification that its numbers depend on. Numbers of workers,
time limits, folders and names of studies do not belong to it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.costs.budget import Budget, parse_budget
from bench.costs.measured import times_on
from bench.errors import BenchError, StudyHaltedError
from bench.inputs.reading import file_hash
from bench.matching.tune import largest_trials
from bench.method import Method
from bench.models.weights import checkpoint_of
from bench.planning.methods import method_of_study
from bench.planning.networks import task_network
from bench.planning.units import RunUnit, TrialUnit, TuningUnit, Unit, kind_of, method_unit, title, trial_of
from bench.spec.schema import AcceleratorSpec, StudySpec, canonical_hash
from bench.spec.seeds import tuning_seed


class UnitBuilder:
    """Makes the units of one variant of a study.

    Args:
        spec: Specification of the study, with the change of the variant.
        variant: The change in words; empty for none.
        pretrainings, tunings: Units by identity over all variants; units that are made are added, each once.
    """

    def __init__(
        self, spec: StudySpec, variant: str, pretrainings: dict[str, Unit], tunings: dict[str, TuningUnit]
    ) -> None:
        self.spec, self.variant = spec, variant
        self.pretrainings, self.tunings = pretrainings, tunings
        self._dump = spec.model_dump(mode="json")
        self._task = self._dump["task"]
        checkpoint = checkpoint_of(spec.task)
        if checkpoint is not None:
            self._task = {**self._task, "checkpoint": _checkpoint_hash(checkpoint)}
        self._accelerator = _accelerator(spec.accelerator)
        self._machine = {"device": spec.device.partition(":")[0], "threads": spec.threads}
        if spec.devices > 1:
            self._machine["devices"] = spec.devices
        if spec.precision != "fp32":
            self._machine["precision"] = spec.precision

    def pretraining(self, seed: int) -> Unit:
        """Make the pretraining of a seed."""
        document: dict[str, Any] = {"kind": "pretrained", "task": self._task, "seed": seed, **self._machine}
        if self.spec.task.init == "pretrained" and self.spec.task.checkpoint is None:
            document["schedule"] = self._dump["pretrain"]
        identity = canonical_hash(document)
        unit = Unit(identity=identity, document=document, seed=seed, spec=self.spec, variant=self.variant)
        return self.pretrainings.setdefault(unit.identity, unit)

    def tuning(self, name: str, method: Method, budget: Budget) -> TuningUnit:
        """Make the tuning of a method onto a budget."""
        seed = tuning_seed(self.spec.tuning.seed)
        pretraining = self.pretraining(seed)
        document = {
            "kind": "tuning",
            **self._common(name, method, budget),
            "pretraining": pretraining.identity,
            "tuning": self._dump["tuning"],
            "seed": seed,
        }
        unit = TuningUnit(
            identity=canonical_hash(document),
            document=document,
            seed=seed,
            spec=self.spec,
            variant=self.variant,
            method=name,
            options=self.spec.options.get(name, {}),
            budget=budget,
            pretraining=pretraining,
            trials=largest_trials(self.spec.tuning, method.knobs(self.spec.tuning.match)),
        )
        return self.tunings.setdefault(unit.identity, unit)

    def run(self, name: str, method: Method, budget: Budget | None, seed: int) -> RunUnit:
        """Make a run, and the tuning and the pretraining that it needs."""
        target = None if method.capabilities.budget == "ignored" else budget
        trains = method.capabilities.budget == "strength"
        tuning = None
        if trains and budget is not None and method.knobs(self.spec.tuning.match):
            tuning = self.tuning(name, method, budget)
        pretraining = self.pretraining(seed)
        document = {
            "kind": "run",
            **self._common(name, method, target),
            "pretraining": pretraining.identity,
            "tuning": None if tuning is None else tuning.identity,
            **({"match": self.spec.tuning.match} if trains and tuning is None else {}),
            "repair": self.spec.tuning.repair,
            "accelerator": self._accelerator,  # latency and energy are recorded at every budget
            "seed": seed,
        }
        return RunUnit(
            identity=canonical_hash(document),
            document=document,
            seed=seed,
            spec=self.spec,
            variant=self.variant,
            method=name,
            options=self.spec.options.get(name, {}),
            budget=target,
            pretraining=pretraining,
            tuning=tuning,
            search_trains=trains,
        )

    def _common(self, name: str, method: Method, budget: Budget | None) -> dict[str, Any]:
        """Return what tunings and runs both depend on."""
        stated: dict[str, Any] | None = None
        if budget is not None:
            stated = {"text": budget.text, "limit": budget.limit, "tolerance": budget.tolerance}
            stated["measure"] = budget.measure.name
            if budget.measure.on_accelerator:
                stated["accelerator"] = self._accelerator
        return {
            "task": self._task,
            "method": name,
            "options": method.stated_options(task_network(self.spec.task)),
            "budget": stated,
            "allowance": self.spec.allowance,
            "recipe": self.spec.recipe,
            "search": self._dump["search"],
            "finetune": self._dump["finetune"],
            "compile": self.spec.compile,
            **self._machine,
        }


def _accelerator(spec: AcceleratorSpec) -> dict[str, Any]:
    """Return what latencies depend on: the settings of the simulation, or the checksum of the measured times."""
    if not spec.measured:
        return spec.model_dump(mode="json")
    times_on(spec)
    return {"measured": file_hash(Path(spec.hardware)), "batch": spec.batch}


def _checkpoint_hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise BenchError(f"cannot read the checkpoint '{path}': {error.strerror}") from error


# --- specifications in the store -----------------------------------------------------------------------------------


def stored_specification(unit: Unit) -> dict[str, Any]:
    """Return the content of a unit's `spec.json`: everything that is needed to work on the unit anywhere."""
    address: dict[str, Any] = {"kind": kind_of(unit), "seed": unit.seed, "variant": unit.variant}
    owner = method_unit(unit)
    if owner is not None:
        address |= {"method": owner.method, "budget": None if owner.budget is None else owner.budget.text}
    if isinstance(unit, TrialUnit):
        address |= {"number": unit.number, "knobs": dict(unit.knobs)}
    return {
        "id": unit.identity,
        "unit": address,
        "depends_on": unit.document,
        "specification": unit.spec.model_dump(mode="json"),
    }


def stored_unit(stored: Mapping[str, Any]) -> Unit:
    """Make the unit that `stored_specification` described.

    Raises:
        BenchError: The description does not fit the unit's id: it was changed, or something that it names has changed.
    """
    spec = StudySpec.model_validate_json(json.dumps(stored["specification"]))
    unit = _unit_at(stored["unit"], spec)
    if unit.identity != stored["id"]:
        raise StudyHaltedError(
            f"the specification stored for {title(unit)} is that of unit {unit.identity} now, not of {stored['id']}; "
            "run the study's command again"
        )
    return unit


def _unit_at(address: Mapping[str, Any], spec: StudySpec) -> Unit:
    builder = UnitBuilder(spec, address.get("variant", ""), {}, {})
    if address["kind"] == "pretrained":
        return builder.pretraining(address["seed"])
    method = method_of_study(spec, address["method"])
    text = address["budget"]
    network = task_network(spec.task)
    budget = None if text is None else parse_budget(text, network, spec.tuning.tolerance, spec.accelerator)
    if address["kind"] == "runs":
        return builder.run(address["method"], method, budget, address["seed"])
    if budget is None:
        raise StudyHaltedError(f"the stored tuning of {address['method']} has no budget; run the study's command again")
    tuning = builder.tuning(address["method"], method, budget)
    return tuning if address["kind"] == "tuning" else trial_of(tuning, address["number"], address["knobs"])
