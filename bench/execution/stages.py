"""Works on one unit: a pretraining, a trial of a tuning, or a run. Everything it finds goes to the unit's folder."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import replicas
from bench.compression.compress import calibrate, compress, reduce
from bench.compression.policy import Policy, policy_from_json
from bench.compression.quantizer import QuantizerFactory, UniformQuantizer
from bench.compression.shapes import NetworkShape, trace
from bench.costs.accelerator.pricing import computes, price_on
from bench.costs.budget import Budget
from bench.costs.counter import price
from bench.costs.measures import BOPS, Measure
from bench.data.dataset import Dataset
from bench.data.image_decoding import loading_workers
from bench.data.task_data import TaskData
from bench.errors import BenchError, UnreachableBudgetError
from bench.execution.context import Watcher
from bench.matching.repair import Repair, repair
from bench.matching.trial import Trial
from bench.method import Decision, Method, SearchJob, SearchResult, Task
from bench.models.build import build_model
from bench.models.weights import checkpoint_of
from bench.planning.plan import RunUnit, TrialUnit, Unit, kind_of, method_of_study
from bench.plugins.registry import load
from bench.spec.schema import AcceleratorSpec, FinetuneSchedule, StudySpec
from bench.spec.seeds import derive, generator, start_process_deterministically
from bench.store.files import Store, load_state, manifest, save_state, write_json
from bench.store.machine import peak_memory
from bench.store.outcomes import SkippedError
from bench.training.checkpoints import INTERVAL_SECONDS, Checkpoints
from bench.training.forward import Forward
from bench.training.loop import Evaluation, evaluate, fit, reestimate_norms
from bench.training.synced_norm import synchronise_norms


class Workbench:
    """A study's task on a device, loaded when first needed, with the store that results go to.

    Args:
        spec: With a resolved device.
        store: Where units live.
        data_dir: Where data sets are looked for.
        network: The shapes of the study's model.
        device: That of a replica; the specification's when absent.
    """

    def __init__(
        self,
        spec: StudySpec,
        store: Store,
        data_dir: Path | None,
        network: NetworkShape,
        device: torch.device | None = None,
    ) -> None:
        self.spec = spec
        self.store = store
        self.network = network
        self._data_dir = data_dir
        self.device = torch.device(spec.device) if device is None else device

    @cached_property
    def task(self) -> Task:
        """The study's task; loading it reads the data set."""
        kind: type[Dataset] = load("datasets", self.spec.task.dataset)
        asked = self.spec.task
        dataset = kind.described(image_size=asked.image_size, classes=asked.classes, data_dir=self._data_dir)
        data = TaskData(
            dataset,
            dataset.load(self._data_dir),
            validation_fraction=self.spec.task.validation_fraction,
            device=self.device,
            train_images=self.spec.task.train_images,
            workers=loading_workers(self.spec.threads, self.device),
        )
        for part, images in (("training", data.train), ("validation", data.validation)):
            if not len(images):
                raise BenchError(
                    f"no {part} images of {self.spec.task.dataset} are left with task.validation_fraction = "
                    f"{self.spec.task.validation_fraction}; change it with --set task.validation_fraction=…"
                )
        return Task(data=data, network=self.network, make_model=self._make_model)

    def _make_model(self) -> nn.Module:
        data = self.task.data
        model = build_model(self.spec.task.model, data.image_shape, data.num_classes)
        if replicas.count() > 1:
            model = synchronise_norms(model)
        return on_device(model, self.device)


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on a device, in the memory order in which convolutions are fastest."""
    moved: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


class Clock:
    """Seconds spent in each phase of a unit, over all its interruptions."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._began = 0.0

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Count the block as time of a phase."""
        self._phase, self._began = phase, time.perf_counter()
        try:
            yield
        finally:
            self._count()
            self._phase = None

    def seconds(self, phase: str) -> float:
        """Seconds of a phase."""
        return self._seconds.get(phase, 0.0)

    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self._seconds.values())

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: up to this moment."""
        self._count()
        return {"seconds": dict(self._seconds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Add what earlier attempts spent; what this one spent on getting there counts too."""
        self._count()
        for phase, seconds in state["seconds"].items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    def _count(self) -> None:
        now = time.perf_counter()
        if self._phase is not None:
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._began
        self._began = now


class Curves:
    """Collects figures by epoch and passes them on to the watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self.entries: list[dict[str, Any]] = []

    def of(self, phase: str) -> "_Report":
        """The reporting function of one phase."""
        return _Report(self, phase)

    def add(self, phase: str, figures: Mapping[str, float]) -> None:
        """Keep an epoch's figures."""
        self.entries.append({"phase": phase, **figures})
        self._watcher.epoch(phase, figures)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"entries": json.dumps(self.entries)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.entries = json.loads(state["entries"])


@dataclass(frozen=True)
class _Report:
    curves: Curves
    phase: str

    def __call__(self, figures: Mapping[str, float]) -> None:
        self.curves.add(self.phase, figures)


class Desk:
    """A unit under work: its folder, its record, what it has gathered, and its checkpoints.

    Of replicas that work on it together, the first one writes.

    Attributes:
        record: What the store will say of the unit.
        forward: How networks are carried out in training.
    """

    def __init__(self, bench: Workbench, unit: Unit, record: dict[str, Any], watcher: Watcher) -> None:
        self.bench = bench
        self.unit = unit
        self.record = record
        self.folder = bench.store.unit(kind_of(unit), unit.identity)
        self.clock = Clock()
        self.curves = Curves(watcher)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", {"clock": self.clock, "curves": self.curves})
        self.forward = Forward(bench.spec.compile, bench.spec.precision, bench.device)
        record["forward"] = self.forward.record

    def write(self, name: str, document: Any) -> None:
        """Write a JSON file into the unit's folder."""
        if replicas.is_first():
            write_json(self.folder / name, document)
            self._list(name)

    def write_state(self, name: str, model: nn.Module) -> None:
        """Write a network's state into the unit's folder."""
        if replicas.is_first():
            save_state(self.folder / name, model.state_dict())
            self._list(name)

    def _list(self, name: str) -> None:
        self.record["files"] |= manifest(self.folder, [name])


# --- pretraining ------------------------------------------------------------------------------------------


def pretrain(desk: Desk) -> None:
    """Make the state that all methods of a seed start from."""
    bench, unit = desk.bench, desk.unit
    start_process_deterministically(derive("pretrain", unit.seed), bench.spec.threads)
    task = bench.task
    model = task.make_model()
    checkpoint = checkpoint_of(bench.spec.task)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, bench.spec.task.model)
    elif bench.spec.task.init == "pretrained":
        order = generator("order", "pretrain", unit.seed)
        with desk.clock.of("pretrain"):
            fit(
                model,
                task.data,
                bench.spec.pretrain,
                order,
                desk.curves.of("pretrain"),
                desk.checkpoints.stage("pretrain"),
                desk.forward.prepare(model, "pretraining", None),
            )
    result = evaluate(model, task.data, task.data.validation)
    desk.write_state("model.pt", model)
    desk.write("curves.json", desk.curves.entries)
    desk.record["metrics"] = {"validation_top1": result.top1, "validation_loss": result.loss}
    desk.record["times"] = {"total_seconds": desk.clock.total()}


def load_checkpoint(model: nn.Module, path: Path, name: str) -> None:
    """Load a user's checkpoint into a model.

    Args:
        model: The model.
        path: The file.
        name: Of the model.

    Raises:
        BenchError: The file cannot be read, is none, or is another model's.
    """
    state = load_state(path)
    expected = model.state_dict()
    wrong = [f"lacks '{key}'" for key in expected if key not in state]
    wrong += [f"has '{key}', which is unknown" for key in state if key not in expected]
    wrong += [
        f"has '{key}' in shape {_shape(state[key])}, not {_shape(expected[key])}"
        for key in expected
        if key in state and _shape(state[key]) != _shape(expected[key])
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more entries differ" if wrong[1:] else ""
        raise BenchError(f"the checkpoint '{path}' does not fit {name}: it {wrong[0]}{more}")
    model.load_state_dict(state)


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _pretrained(bench: Workbench, unit: Unit) -> tuple[dict[str, Any], float]:
    """The pretrained state on the device, and its validation accuracy.

    Raises:
        SkippedError: Pretraining ended without one, or what it left is damaged.
    """
    record = bench.store.record("pretrained", unit.identity) or {}
    if record.get("status") != "done":
        reason = record.get("reason") or record.get("status") or "it was not done"
        raise SkippedError(f"pretraining of seed {unit.seed} did not finish: {reason}")
    damage = bench.store.damage("pretrained", unit.identity, record, thorough=True)
    if damage is not None:
        if replicas.is_first():
            bench.store.write_record("pretrained", unit.identity, record | {"status": "killed", "reason": damage})
        raise SkippedError(f"pretraining of seed {unit.seed} is damaged ({damage}); the same command makes it anew")
    state = load_state(bench.store.unit("pretrained", unit.identity) / "model.pt")
    top1 = float(record["metrics"]["validation_top1"])
    return {name: value.to(bench.device) for name, value in state.items()}, top1


# --- search, repair, fine-tuning: what trials and runs share ------------------------------------------------


@dataclass(kw_only=True)
class _Searched:
    """The outcome of a search, as a part of a checkpoint.

    Attributes:
        result: What the method returned.
        peak_memory_mb: Of the search.
    """

    result: SearchResult | None = None
    peak_memory_mb: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors as they are, everything else as JSON."""
        if self.result is None:
            raise ValueError("there is no result to keep yet")
        document = {
            "policy": self.result.policy.to_json(),
            "clips": dict(self.result.clips),
            "normalized_weights": self.result.normalized_weights,
            "decisions": [asdict(decision) for decision in self.result.decisions],
            "record": self.result.record,
            "peak_memory_mb": self.peak_memory_mb,
        }
        return {
            "state": dict(self.result.state),
            "quantizers": dict(self.result.quantizers),
            "document": json.dumps(document),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a kept outcome up."""
        document = json.loads(state["document"])
        self.peak_memory_mb = document.pop("peak_memory_mb")
        document["policy"] = policy_from_json(document["policy"])
        document["decisions"] = [_decision(fields) for fields in document["decisions"]]
        self.result = SearchResult(state=state["state"], quantizers=state.get("quantizers", {}), **document)


def _decision(fields: Mapping[str, Any]) -> Decision:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Decision(**values)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A search's result, brought onto the budget."""

    result: SearchResult
    policy: Policy
    repaired: Repair | None
    raw_cost: float

    def kept_quantizers(self) -> dict[str, torch.Tensor]:
        """Parameters of the method's own quantizers, but for layers whose widths repair has changed."""
        kept = {}
        for key, value in self.result.quantizers.items():
            layer = key.partition("_quantizer.")[0].rpartition(".")[0]
            before, after = self.result.policy.layers[layer], self.policy.layers[layer]
            if (before.weight_bits, before.activation_bits) == (after.weight_bits, after.activation_bits):
                kept[key] = value
        return kept


def _search(
    desk: Desk, unit: TrialUnit | RunUnit, method: Method, knobs: Mapping[str, float], state: Mapping[str, Any]
) -> _Found:
    """One search at given knobs, then repair. A search that an interrupted attempt finished is not repeated."""
    bench = desk.bench
    budget = unit.tuning.budget if isinstance(unit, TrialUnit) else unit.budget
    searched = _Searched()
    if desk.checkpoints.restore("searched", {"searched": searched}) is None:
        start_process_deterministically(derive("search", unit.seed), bench.spec.threads)
        job = SearchJob(
            task=bench.task,
            pretrained=state,
            knobs=knobs,
            budget=math.inf if budget is None else budget.limit,
            measure=_measure(budget),
            tolerance=bench.spec.tuning.tolerance,
            match=bench.spec.tuning.match,
            schedule=bench.spec.search,
            seed=unit.seed,
            report=desk.curves.of("search"),
            stage=desk.checkpoints.stage,
            forward=desk.forward,
        )
        with desk.clock.of("search"), peak_memory(bench.device) as peak:
            searched.result = method.search(job)
            if bench.device.type == "cuda":
                torch.cuda.synchronize(bench.device)
        searched.peak_memory_mb = peak.megabytes
        if desk.clock.seconds("search") > INTERVAL_SECONDS:
            desk.checkpoints.write("searched", 1, {"searched": searched})
    result = searched.result
    if result is None:
        raise TypeError(f"the search of {type(method).__name__} returned nothing")
    if replicas.count() > 1:
        _check_replicas(type(method).__name__, result)
    desk.record["peak_memory_mb"] = searched.peak_memory_mb
    network = bench.network
    raw = _measure(budget).price(network, result.policy)
    repaired = None
    if bench.spec.tuning.repair and budget is not None and result.decisions:
        repaired = repair(network, result.policy, result.decisions, budget)
    return _Found(
        result=result,
        policy=result.policy if repaired is None else repaired.policy,
        repaired=repaired,
        raw_cost=raw,
    )


def _measure(budget: Budget | None) -> Measure:
    """What a budget limits; bit operations where there is none."""
    return BOPS if budget is None else budget.measure


def _check_replicas(method: str, result: SearchResult) -> None:
    """Make sure that all replicas found the same; a search that forgets to average would go unnoticed.

    Raises:
        RuntimeError: They did not.
    """
    decisions = [(decision.layer, decision.what, decision.chosen) for decision in result.decisions]
    choice = json.dumps([result.policy.to_json(), decisions])
    replicas.check_alike(method, choice, result.state.values())


def _compressed(bench: Workbench, method: Method, found: _Found) -> nn.Module:
    """The compressed network of a found policy, ready for fine-tuning."""
    task = bench.task
    model = task.make_model()
    model.load_state_dict(dict(found.result.state))
    quantizer: QuantizerFactory = UniformQuantizer
    if bench.spec.recipe == "own":
        quantizer = method.quantizer
    network = compress(
        model,
        task.network,
        found.policy,
        clips=found.result.clips,
        quantizer=quantizer,
        normalized_weights=found.result.normalized_weights,
    )
    network = on_device(network, bench.device)
    if bench.spec.finetune.calibrate or not found.result.clips:
        calibrate(network, task.data.calibration_batches(1, bench.spec.finetune.batch_size)[0])
    if bench.spec.recipe == "own" and not bench.spec.finetune.calibrate:
        unknown = network.load_state_dict(found.kept_quantizers(), strict=False).unexpected_keys
        if unknown:
            raise KeyError(f"{type(method).__name__} names parameters of quantizers that the network lacks: {unknown}")
    # Standardised weights scale every convolution's output; a short fine-tuning would not forget the old statistics.
    reestimate_norms(network, task.data, bench.spec.finetune.batch_size)
    return network


def _finetune(desk: Desk, network: nn.Module, schedule: FinetuneSchedule) -> None:
    seed, bench = desk.unit.seed, desk.bench
    start_process_deterministically(derive("finetune", seed), bench.spec.threads)
    order = generator("order", "finetune", seed)
    with desk.clock.of("finetune"):
        report, stage = desk.curves.of("finetune"), desk.checkpoints.stage("finetune")
        call = desk.forward.prepare(network, "fine-tuning", bench.task.multiplications(schedule))
        fit(network, bench.task.data, schedule, order, report, stage, call)


def reduced_form(
    network: NetworkShape, model: nn.Module, policy: Policy, input_shape: tuple[int, int, int]
) -> tuple[NetworkShape, Policy]:
    """The shapes of the physically reduced network itself, and the widths of its layers: what final costs come from.

    Args:
        network: The shapes of the full model.
        model: The full float model.
        policy: What is done to it.
        input_shape: Channels, height, width of an image.
    """
    reduced = trace(reduce(model, network, policy), input_shape, name=network.model, dataset=network.dataset)
    layers = {
        name: type(layer)(weight_bits=layer.weight_bits, activation_bits=layer.activation_bits)
        for name, layer in policy.layers.items()
    }
    return reduced, Policy(model=policy.model, dataset=policy.dataset, layers=layers)


# --- trials ---------------------------------------------------------------------------------------------------


def try_out(desk: Desk) -> None:
    """A trial of a tuning: search, repair, a short fine-tuning, validation."""
    unit, bench = desk.unit, desk.bench
    if not isinstance(unit, TrialUnit):
        raise TypeError(f"{unit} is no trial")
    tuning = unit.tuning
    method = method_of_study(tuning.spec, tuning.method)
    state, _ = _pretrained(bench, tuning.pretraining)
    found = _search(desk, unit, method, unit.knobs, state)
    with desk.clock.of("prepare"):
        network = _compressed(bench, method, found)
    if bench.spec.tuning.finetune_epochs:
        short = {"epochs": bench.spec.tuning.finetune_epochs, "decay": "cosine", "milestones": ()}
        _finetune(desk, network, bench.spec.finetune.model_copy(update=short))
    with desk.clock.of("validate"):
        result = evaluate(network, bench.task.data, bench.task.data.validation)
    cost = tuning.budget.price(bench.network, found.policy)
    trial = Trial(
        number=unit.number,
        knobs=dict(unit.knobs),
        raw_cost=found.raw_cost,
        cost=cost,
        repaired_gates=0 if found.repaired is None else found.repaired.moved,
        within_budget=tuning.budget.matches(cost),
        validation_top1=result.top1,
        validation_loss=result.loss,
        validation_images=len(bench.task.data.validation),
        seconds=desk.clock.total(),
        policy=found.policy.to_json(),
        curves=desk.curves.entries,
        record=found.result.record,
    )
    desk.write("trial.json", asdict(trial))


def check_reachable(network: NetworkShape, method: Method, name: str, budget: Budget) -> None:
    """Spare the searches when even the method's cheapest policy costs more than the budget.

    Raises:
        UnreachableBudgetError: It does.
    """
    cheapest = method.cheapest(network)
    if cheapest is None:
        return
    cost = budget.price(network, cheapest)
    if cost > budget.limit:
        raise UnreachableBudgetError(
            f"the cheapest policy of {name} costs {cost / budget.limit:.2f} × the budget", cost
        )


# --- runs -------------------------------------------------------------------------------------------------------


def run(desk: Desk) -> None:
    """Search at the tuned knobs, fine-tune, and read the test split once."""
    unit, bench = desk.unit, desk.bench
    if not isinstance(unit, RunUnit):
        raise TypeError(f"{unit} is no run")
    knobs = _tuned_knobs(bench, unit)
    desk.record["knobs"] = dict(knobs)
    method = method_of_study(unit.spec, unit.method)
    state, pretrained_top1 = _pretrained(bench, unit.pretraining)
    found = _search(desk, unit, method, knobs, state)
    with desk.clock.of("prepare"):
        network = _compressed(bench, method, found)
    _finetune(desk, network, bench.spec.finetune)
    data = bench.task.data
    with desk.clock.of("evaluate"):
        validation = evaluate(network, data, data.validation)
        test = evaluate(network, data, data.test)
    final = reduced_form(bench.network, bench.task.make_model(), found.policy, data.image_shape)
    cost = _measure(unit.budget).price(*final)
    desk.record.update(
        metrics={
            **_metrics(found, validation, test, pretrained_top1),
            **_costs(*final, bench.spec.accelerator),
            "cost": cost,
        },
        times={
            "search_seconds": desk.clock.seconds("search"),
            "finetune_seconds": desk.clock.seconds("finetune"),
            "total_seconds": desk.clock.total(),
        },
        within_budget=None if unit.budget is None else unit.budget.matches(cost),
        filters={layer.name: layer.out_channels for layer in bench.network.layers},
    )
    desk.write("policy.json", found.policy.to_json())
    desk.write("raw_policy.json", found.result.policy.to_json())
    desk.write("curves.json", desk.curves.entries)
    desk.write("search.json", found.result.record)
    desk.write_state("network.pt", network)


def _metrics(
    found: _Found, validation: Evaluation, test: Evaluation, pretrained_top1: float
) -> dict[str, float | None]:
    start = found.result.record.get("start_top1")
    return {
        "top1": test.top1,
        "top5": test.top5,
        "loss": test.loss,
        "validation_top1": validation.top1,
        "pretrained_top1": pretrained_top1,
        "start_top1": None if start is None else float(start),
        "raw_cost": found.raw_cost,
        "repaired_gates": 0 if found.repaired is None else found.repaired.moved,
    }


def _costs(network: NetworkShape, policy: Policy, accelerator: AcceleratorSpec) -> dict[str, float | None]:
    """Every cost of the final network; latency and energy are not known for widths that the accelerator lacks."""
    cost = price(network, policy)
    found: dict[str, float | None] = {
        "bops": cost.bops,
        "memory_kb": cost.memory_kb,
        "memory_bits": cost.memory_bits,
        "peak_memory_bits": cost.peak_memory_bits,
        "macs": cost.macs,
        "parameters": cost.parameters,
        "latency_ms": None,
        "energy_mj": None,
    }
    if computes(accelerator, network, policy):
        executed = price_on(accelerator, network, policy)
        found.update(latency_ms=executed.latency_ms, energy_mj=executed.energy_mj)
    return found


def _tuned_knobs(bench: Workbench, unit: RunUnit) -> Mapping[str, float]:
    """The knobs that tuning chose.

    Raises:
        UnreachableBudgetError, SkippedError: Tuning ended otherwise than with knobs.
    """
    if unit.tuning is None:
        return {}
    record = bench.store.record("tuning", unit.tuning.identity) or {}
    if record.get("status") == "unreachable":
        raise UnreachableBudgetError(str(record["reason"]), float(record["nearest_cost"]))
    if record.get("status") != "done":
        reason = record.get("reason") or record.get("status") or "it was not done"
        raise SkippedError(f"tuning of {unit.method} did not finish: {reason}")
    return {str(name): float(value) for name, value in record["knobs"].items()}
