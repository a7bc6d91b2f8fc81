"""Plans a study: which pretrainings, tunings and runs it consists of, each with its identity.

The identity of a unit is the hash of the part of the specification that its numbers depend on. Workers, time
limits, folders and names of studies are no part of it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench import replicas
from bench.compression.shapes import NetworkShape, trace
from bench.costs.budget import Budget, parse_budget
from bench.data.dataset import Dataset
from bench.errors import BenchError
from bench.method import Method
from bench.models.build import build_model
from bench.models.weights import checkpoint_of
from bench.planning.methods import method_class
from bench.planning.variants import Variant, in_words, variants
from bench.plugins.registry import load
from bench.spec.options import explain
from bench.spec.schema import StudySpec, TaskSpec, canonical_hash
from bench.spec.seeds import tuning_seed
from bench.store.files import UnitKind, file_hash


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One piece of work.

    Attributes:
        identity: Hash of `document`.
        document: Everything that its numbers depend on.
        seed: Of the run, or of the tuning's searches.
        spec: Of the study, with the changes of an ablation.
        variant: The change in words, "group_size=4"; empty for none.
    """

    identity: str
    document: Mapping[str, Any]
    seed: int
    spec: StudySpec
    variant: str = ""


@dataclass(frozen=True, kw_only=True)
class TuningUnit(Unit):
    """Tuning of one method onto one budget."""

    method: str
    options: Mapping[str, Any]
    budget: Budget
    pretraining: Unit

    @property
    def label(self) -> str:
        """The method, with the change of an ablation in brackets."""
        return label(self.method, self.variant)


@dataclass(frozen=True, kw_only=True)
class TrialUnit(Unit):
    """One trial of a tuning: a search at given knobs."""

    tuning: TuningUnit
    number: int
    knobs: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunUnit(Unit):
    """One (task, method, budget, seed)."""

    method: str
    options: Mapping[str, Any]
    budget: Budget | None
    pretraining: Unit
    tuning: TuningUnit | None

    @property
    def label(self) -> str:
        """The method, with the change of an ablation in brackets."""
        return label(self.method, self.variant)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One value of an ablated option, on all models.

    Attributes:
        key, value: The option and its value, in words; empty for the study as it stands.
        runs: Identities of its runs; those of the study as it stands where the value is the default.
    """

    key: str
    value: str
    runs: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All units of a study, in the order in which they are worked on.

    Attributes:
        spec: The study.
        network: Shapes of its first model.
        pretrainings, tunings, runs: Each once.
        ablations: What belongs to the study as it stands, and to which value of an ablated option.
    """

    spec: StudySpec
    network: NetworkShape
    pretrainings: Sequence[Unit]
    tunings: Sequence[TuningUnit]
    runs: Sequence[RunUnit]
    ablations: Sequence[Ablation] = ()


def make_plan(spec: StudySpec) -> Plan:
    """Plan a study.

    Args:
        spec: With a resolved device.

    Raises:
        BenchError: A name is unknown, an option or a budget is not allowed, or a method cannot do what is asked.
    """
    _check_devices(spec)
    pretrainings: dict[str, Unit] = {}
    tunings: dict[str, TuningUnit] = {}
    runs: dict[str, RunUnit] = {}
    members: dict[tuple[str, str], list[str]] = {}
    for variant in variants(spec):
        builder = _Builder(variant.spec, variant.label, pretrainings, tunings)
        units = [runs.setdefault(unit.identity, unit) for unit in _runs(variant, builder)]
        value = in_words(variant.value) if variant.key else ""
        members.setdefault((variant.key, value), []).extend(unit.identity for unit in units)
    return Plan(
        spec=spec,
        network=shape_of(spec.task),
        pretrainings=list(pretrainings.values()),
        tunings=list(tunings.values()),
        runs=list(runs.values()),
        ablations=[Ablation(key=key, value=value, runs=ids) for (key, value), ids in members.items()],
    )


def _runs(variant: Variant, builder: "_Builder") -> Iterator[RunUnit]:
    """The runs of one variant, by budget, method and seed."""
    spec = variant.spec
    network = shape_of(spec.task)
    for number, text in enumerate(spec.budgets):
        budget = parse_budget(text, network, spec.tuning.tolerance, spec.accelerator)
        for name in variant.methods:
            method = method_of_study(spec, name)
            _check_measure(name, method, budget)
            if method.capabilities.budget == "ignored" and number:
                continue
            for seed in spec.seeds:
                yield builder.run(name, method, budget, seed)


def _check_measure(name: str, method: Method, budget: Budget) -> None:
    """Make sure that what a method searches among can be priced."""
    if budget.measure.on_accelerator and method.capabilities.full_precision:
        raise BenchError(
            f"budget '{budget.text}': {name} prunes at full precision, which the accelerator cannot compute; leave it "
            "out with --methods, or give a budget of BOPs or of memory, e.g. '4bit' or '395KB'"
        )


def label(method: str, variant: str) -> str:
    """A method, with the change of an ablation in brackets."""
    return f"{method}[{variant}]" if variant else method


def _check_devices(spec: StudySpec) -> None:
    """Make sure that runs can be divided among devices, when that is asked for."""
    if spec.devices == 1:
        return
    replicas.check_available()
    unable = [name for name in spec.methods if not method_of_study(spec, name).capabilities.data_parallel]
    if unable:
        raise BenchError(
            f"--devices {spec.devices}: {', '.join(unable)} cannot use several devices in one run; use --devices 1 "
            "(with --jobs, several runs still go side by side), or leave these methods out with --methods"
        )


def trial_of(tuning: TuningUnit, number: int, knobs: Mapping[str, float]) -> TrialUnit:
    """A trial of a tuning."""
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
    """Under which kind the store keeps a unit."""
    kinds: dict[type[Unit], UnitKind] = {TuningUnit: "tuning", TrialUnit: "trials", RunUnit: "runs"}
    return kinds.get(type(unit), "pretrained")


def stored_specification(unit: Unit) -> dict[str, Any]:
    """What a unit's folder holds of its specification: all that it takes to work on it anywhere."""
    address: dict[str, Any] = {"kind": kind_of(unit), "seed": unit.seed, "variant": unit.variant}
    named = unit.tuning if isinstance(unit, TrialUnit) else unit
    if isinstance(named, TuningUnit | RunUnit):
        address |= {"method": named.method, "budget": None if named.budget is None else named.budget.text}
    if isinstance(unit, TrialUnit):
        address |= {"number": unit.number, "knobs": dict(unit.knobs)}
    return {
        "id": unit.identity,
        "unit": address,
        "depends_on": unit.document,
        "specification": unit.spec.model_dump(mode="json"),
    }


def stored_unit(stored: Mapping[str, Any]) -> tuple[NetworkShape, Unit]:
    """The network and the unit that `stored_specification` described.

    Raises:
        BenchError: The description does not fit the unit's id: it was changed, or what it names has changed.
    """
    spec = StudySpec.model_validate_json(json.dumps(stored["specification"]))
    network = shape_of(spec.task)
    address = stored["unit"]
    unit = _at(address, spec, network)
    if unit.identity != stored["id"]:
        raise BenchError(f"the specification stored for {title(unit)} ({stored['id']}) stands for {unit.identity} now")
    return network, unit


def _at(address: Mapping[str, Any], spec: StudySpec, network: NetworkShape) -> Unit:
    builder = _Builder(spec, address.get("variant", ""), {}, {})
    if address["kind"] == "pretrained":
        return builder.pretraining(address["seed"])
    method = method_of_study(spec, address["method"])
    text = address["budget"]
    budget = None if text is None else parse_budget(text, network, spec.tuning.tolerance, spec.accelerator)
    if address["kind"] == "runs":
        return builder.run(address["method"], method, budget, address["seed"])
    if budget is None:
        raise BenchError(f"tuning of {address['method']} needs a budget")
    tuning = builder.tuning(address["method"], method, budget)
    return tuning if address["kind"] == "tuning" else trial_of(tuning, address["number"], address["knobs"])


def with_counted_classes(spec: StudySpec, data_dir: Path | None) -> StudySpec:
    """The specification with the number of classes, where a data set finds it in its folder.

    With it, everything that follows can do without the folder.

    Raises:
        BenchError: The data set is unknown, or its folder is not there.
    """
    kind: type[Dataset] = load("datasets", spec.task.dataset)
    if not kind.counts_classes or spec.task.classes is not None:
        return spec
    classes = kind.described(image_size=spec.task.image_size, data_dir=data_dir).num_classes
    return spec.model_copy(update={"task": spec.task.model_copy(update={"classes": classes})})


def shape_of(task: TaskSpec) -> NetworkShape:
    """The shapes of a task's model on its images.

    Raises:
        BenchError: A name is unknown, or the data set has other images than asked for.
    """
    return model_shape(task.model, task.dataset, image_size=task.image_size, classes=task.classes)


def model_shape(
    model: str,
    dataset: str,
    *,
    image_size: int | None = None,
    classes: int | None = None,
    data_dir: Path | None = None,
) -> NetworkShape:
    """The shapes of a model on the images of a data set.

    Args:
        model: Its name.
        dataset: Its name.
        image_size: Side of the images; the data set's own when absent.
        classes: Number of classes, for data sets that find it in their folder; looked up there when absent.
        data_dir: Where data sets are looked for.

    Raises:
        BenchError: A name is unknown, or the data set has other images than asked for.
    """
    kind: type[Dataset] = load("datasets", dataset)
    data = kind.described(image_size=image_size, classes=classes, data_dir=data_dir)
    return _traced(model, data.image_shape, data.num_classes, dataset)


@cache
def _traced(model: str, images: tuple[int, int, int], classes: int, dataset: str) -> NetworkShape:
    """Tracing builds the network, which every unit of a plan would do otherwise."""
    return trace(build_model(model, images, classes), images, name=model, dataset=dataset)


def network_of(unit: Unit) -> NetworkShape:
    """The shapes of the model that a unit works on."""
    return shape_of(unit.spec.task)


def method_of_study(spec: StudySpec, name: str) -> Method:
    """One of a study's methods, with its options.

    Raises:
        BenchError: The method or an option is unknown, or a value is not allowed.
    """
    return make_method(name, spec.options.get(name, {}), spec.method_files.get(name))


def make_method(name: str, options: Mapping[str, Any], place: str | None = None) -> Method:
    """A method with validated options.

    Args:
        name: Its name.
        options: Its options.
        place: `/path/file.py:Class` for a method in a file.

    Raises:
        BenchError: The method or an option is unknown, or a value is not allowed.
    """
    kind = method_class(name, place)
    try:
        return kind(kind.Options.model_validate_json(json.dumps(dict(options), default=str)))
    except ValidationError as error:
        raise explain(error, f"options.{name}", kind.Options) from error


def _checkpoint_hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise BenchError(f"cannot read the checkpoint '{path}': {error.strerror}") from error


def planned_epochs(unit: Unit) -> int:
    """Training epochs that a unit takes at most."""
    spec = unit.spec
    if isinstance(unit, TuningUnit):
        return spec.tuning.trials * (spec.search.epochs + spec.tuning.finetune_epochs)
    if isinstance(unit, RunUnit):
        return (spec.search.epochs if unit.tuning else 0) + spec.finetune.epochs
    return spec.pretrain.epochs if "schedule" in unit.document else 0


def title(unit: Unit) -> str:
    """A unit in words."""
    words = _title(unit)
    return f"{words} on {unit.spec.task.model}" if unit.spec.further_models else words


def _title(unit: Unit) -> str:
    if isinstance(unit, TuningUnit):
        return f"tune {unit.label} {unit.budget.text}"
    if isinstance(unit, TrialUnit):
        return f"{_title(unit.tuning)} trial {unit.number}"
    if isinstance(unit, RunUnit):
        budget = "" if unit.budget is None else f" {unit.budget.text}"
        return f"run {unit.label}{budget} seed {unit.seed}"
    return f"{label('pretrain', unit.variant)} seed {unit.seed}"


def phases(plan: Plan) -> Sequence[tuple[UnitKind, Sequence[Unit]]]:
    """The units by kind, in the order in which kinds depend on each other.

    Runs go seed by seed, so that a study can be compared while it is under way.
    """
    runs = sorted(plan.runs, key=lambda unit: unit.seed)
    return (("pretrained", plan.pretrainings), ("tuning", plan.tunings), ("runs", runs))


class _Builder:
    """Makes the units of one variant of a study; pretrainings and tunings each once over all variants."""

    def __init__(
        self, spec: StudySpec, variant: str, pretrainings: dict[str, Unit], tunings: dict[str, TuningUnit]
    ) -> None:
        self.spec, self.variant = spec, variant
        self.pretrainings, self.tunings = pretrainings, tunings
        dump = spec.model_dump(mode="json")
        self._task = dump["task"]
        checkpoint = checkpoint_of(spec.task)
        if checkpoint is not None:
            self._task = {**self._task, "checkpoint": _checkpoint_hash(checkpoint)}
        self._dump = dump
        self._where = {"device": spec.device.partition(":")[0], "threads": spec.threads}
        if spec.devices > 1:
            self._where["devices"] = spec.devices
        if spec.precision != "fp32":
            self._where["precision"] = spec.precision

    def pretraining(self, seed: int) -> Unit:
        document: dict[str, Any] = {"kind": "pretrained", "task": self._task, "seed": seed, **self._where}
        if self.spec.task.init == "pretrained" and self.spec.task.checkpoint is None:
            document["schedule"] = self._dump["pretrain"]
        identity = canonical_hash(document)
        unit = Unit(identity=identity, document=document, seed=seed, spec=self.spec, variant=self.variant)
        return self.pretrainings.setdefault(unit.identity, unit)

    def tuning(self, name: str, method: Method, budget: Budget) -> TuningUnit:
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
        )
        return self.tunings.setdefault(unit.identity, unit)

    def run(self, name: str, method: Method, budget: Budget | None, seed: int) -> RunUnit:
        target = None if method.capabilities.budget == "ignored" else budget
        tuning = None
        if method.capabilities.budget == "strength" and budget is not None:
            tuning = self.tuning(name, method, budget)
        pretraining = self.pretraining(seed)
        document = {
            "kind": "run",
            **self._common(name, method, target),
            "pretraining": pretraining.identity,
            "tuning": None if tuning is None else tuning.identity,
            "repair": self.spec.tuning.repair,
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
        )

    def _common(self, name: str, method: Method, budget: Budget | None) -> dict[str, Any]:
        stated: dict[str, Any] | None = None
        if budget is not None:
            stated = {"text": budget.text, "limit": budget.limit, "tolerance": budget.tolerance}
            stated["measure"] = budget.measure.name
            if budget.measure.on_accelerator:
                stated["accelerator"] = self._dump["accelerator"]
        return {
            "task": self._task,
            "method": name,
            "options": method.stated_options(shape_of(self.spec.task)),
            "budget": stated,
            "recipe": self.spec.recipe,
            "search": self._dump["search"],
            "finetune": self._dump["finetune"],
            "compile": self.spec.compile,
            **self._where,
        }
