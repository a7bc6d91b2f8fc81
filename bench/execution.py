"""Works on one unit: a pretraining, the tuning of a method, or a run. Everything it finds goes to the store."""

import logging
import math
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from bench.compression import calibrate, compress, reduce
from bench.costs import COUNTER_VERSION, NetworkCost, price
from bench.data import Dataset, TaskData
from bench.errors import BenchError, NonFiniteLossError, UnreachableBudgetError
from bench.machine import hardware, peak_memory, versions
from bench.matching import Trial, tune
from bench.method import Method, SearchJob, SearchResult, Task
from bench.network import NetworkShape, trace
from bench.plan import RunUnit, TuningUnit, Unit, make_method, method_source, model_shape
from bench.plugins import load
from bench.policy import Policy
from bench.quantization import QuantizerFactory, UniformQuantizer
from bench.repair import Repair, repair
from bench.seeds import derive, generator, start_process_deterministically
from bench.spec import FinetuneSchedule, StudySpec
from bench.store import Status, Store, UnitKind, load_state, save_state, write_json, write_text
from bench.training import Evaluation, evaluate, fit, reestimate_norms

_log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Is told how the work goes on."""

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        """An epoch of a phase ended, with its figures."""
        ...


class Workbench:
    """A study's task on a device, loaded when first needed, with the store that results go to.

    Args:
        spec: With a resolved device.
        store: Where units live.
        data_dir: Where data sets are looked for.
        watcher: Is told of every epoch.
    """

    def __init__(self, spec: StudySpec, store: Store, data_dir: Path | None, watcher: Watcher) -> None:
        self.spec = spec
        self.store = store
        self.watcher = watcher
        self._data_dir = data_dir
        self.device = torch.device(spec.device)

    @cached_property
    def task(self) -> Task:
        """The study's task; loading it reads the data set."""
        kind: type[Dataset] = load("datasets", self.spec.task.dataset)
        dataset = kind()
        data = TaskData(
            dataset,
            dataset.load(self._data_dir),
            validation_fraction=self.spec.task.validation_fraction,
            device=self.device,
            train_images=self.spec.task.train_images,
        )
        for part, images in (("training", data.train), ("validation", data.validation)):
            if not len(images):
                raise BenchError(
                    f"no {part} images of {self.spec.task.dataset} are left with task.validation_fraction = "
                    f"{self.spec.task.validation_fraction}; change it with --set task.validation_fraction=…"
                )
        return Task(data=data, network=model_shape(self.spec, kind), make_model=self._make_model)

    def _make_model(self) -> nn.Module:
        data = self.task.data
        model: nn.Module = load("models", self.spec.task.model)(data.image_shape[0], data.num_classes)
        return on_device(model, self.device)


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on a device, in the memory order in which convolutions are fastest."""
    moved: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


# --- pretraining ------------------------------------------------------------------------------------------


def pretrain(bench: Workbench, unit: Unit) -> None:
    """Make the state that all methods of a seed start from, unless the store has it."""
    folder = bench.store.unit("pretrained", unit.identity)
    if _is_done(bench, "pretrained", unit):
        return
    with _recorded(bench, "pretrained", unit) as record:
        start_process_deterministically(derive("pretrain", unit.seed), bench.spec.threads)
        task = bench.task
        model = task.make_model()
        curves = _Curves(bench.watcher)
        if bench.spec.task.checkpoint is not None:
            _load_checkpoint(model, Path(bench.spec.task.checkpoint))
        elif bench.spec.task.init == "pretrained":
            fit(
                model,
                task.data,
                bench.spec.pretrain,
                generator("order", "pretrain", unit.seed),
                curves.of("pretrain"),
            )
        result = evaluate(model, task.data, task.data.validation)
        save_state(folder / "model.pt", model.state_dict())
        write_json(folder / "curves.json", curves.entries)
        record.update(metrics={"validation_top1": result.top1, "validation_loss": result.loss}, status="done")


def _load_checkpoint(model: nn.Module, path: Path) -> None:
    state = load_state(path)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        first = str(error).splitlines()
        raise BenchError(f"the checkpoint '{path}' does not fit the model: {' '.join(first[1:2]).strip()}") from error


def _pretrained(bench: Workbench, unit: Unit) -> tuple[dict[str, Any], float]:
    """The pretrained state on the device, and its validation accuracy.

    Raises:
        RuntimeError: Pretraining ended without one.
    """
    record = bench.store.record("pretrained", unit.identity) or {}
    if record.get("status") != "done":
        reason = record.get("reason") or record.get("status")
        raise RuntimeError(f"pretraining of seed {unit.seed} did not finish: {reason}")
    state = load_state(bench.store.unit("pretrained", unit.identity) / "model.pt")
    top1 = float(record["metrics"]["validation_top1"])
    return {name: value.to(bench.device) for name, value in state.items()}, top1


# --- search, repair, fine-tuning: what trials and runs share ------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A search's result, brought onto the budget."""

    result: SearchResult
    policy: Policy
    repaired: Repair | None
    raw_bops: float
    seconds: float
    peak_memory_mb: float | None


class _Curves:
    """Collects figures by epoch and passes them on to the watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self.entries: list[dict[str, Any]] = []

    def of(self, phase: str) -> "_Report":
        """The reporting function of one phase."""
        return _Report(self, phase)

    def add(self, phase: str, figures: Mapping[str, float]) -> None:
        self.entries.append({"phase": phase, **figures})
        self._watcher.epoch(phase, figures)


@dataclass(frozen=True)
class _Report:
    curves: _Curves
    phase: str

    def __call__(self, figures: Mapping[str, float]) -> None:
        self.curves.add(self.phase, figures)


def _search(
    bench: Workbench,
    unit: TuningUnit | RunUnit,
    method: Method,
    knobs: Mapping[str, float],
    state: Mapping[str, Any],
    curves: _Curves,
) -> _Found:
    """One search at given knobs, then repair."""
    start_process_deterministically(derive("search", unit.seed), bench.spec.threads)
    job = SearchJob(
        task=bench.task,
        pretrained=state,
        knobs=knobs,
        budget=math.inf if unit.budget is None else unit.budget.bops,
        match=bench.spec.tuning.match,
        schedule=bench.spec.search,
        seed=unit.seed,
        report=curves.of("search"),
    )
    began = time.perf_counter()
    with peak_memory(bench.device) as peak:
        result = method.search(job)
        if bench.device.type == "cuda":
            torch.cuda.synchronize(bench.device)
    seconds = time.perf_counter() - began
    network = bench.task.network
    raw = price(network, result.policy).bops
    repaired = None
    if bench.spec.tuning.repair and unit.budget is not None and result.decisions:
        repaired = repair(network, result.policy, result.decisions, unit.budget)
    return _Found(
        result=result,
        policy=result.policy if repaired is None else repaired.policy,
        repaired=repaired,
        raw_bops=raw,
        seconds=seconds,
        peak_memory_mb=peak.megabytes,
    )


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
    # Standardised weights scale every convolution's output; a short fine-tuning would not forget the old statistics.
    reestimate_norms(network, task.data, bench.spec.finetune.batch_size)
    return network


def _finetune(bench: Workbench, network: nn.Module, schedule: FinetuneSchedule, seed: int, curves: _Curves) -> None:
    start_process_deterministically(derive("finetune", seed), bench.spec.threads)
    fit(network, bench.task.data, schedule, generator("order", "finetune", seed), curves.of("finetune"))


def final_cost(
    network: NetworkShape, model: nn.Module, policy: Policy, input_shape: tuple[int, int, int]
) -> NetworkCost:
    """The cost of the physically reduced network, from its own shapes.

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
    return price(reduced, Policy(model=policy.model, dataset=policy.dataset, layers=layers))


# --- tuning ---------------------------------------------------------------------------------------------------


def tune_method(bench: Workbench, unit: TuningUnit) -> None:
    """Find a method's knobs for a budget, unless the store has them. Completed trials are never repeated."""
    if _is_done(bench, "tuning", unit):
        return
    folder = bench.store.unit("tuning", unit.identity)
    with _recorded(bench, "tuning", unit) as record:
        method = make_method(unit.method, unit.options)
        _check_reachable(bench, method, unit)
        state, _ = _pretrained(bench, unit.pretraining)

        def search(number: int, knobs: Mapping[str, float]) -> Trial:
            return _trial(bench, unit, method, state, number, knobs)

        knobs = method.knobs(bench.spec.tuning.match)
        seed = derive("tuning", unit.seed)
        chosen, trials = tune(knobs, unit.budget, bench.spec.tuning, folder, search, seed)
        record.update(
            status="done",
            knobs=dict(chosen.knobs),
            chosen_trial=chosen.number,
            trials_used=len(trials),
            tuning_seconds=sum(trial.seconds for trial in trials),
        )


def _check_reachable(bench: Workbench, method: Method, unit: TuningUnit) -> None:
    """Spare the searches when even the method's cheapest policy costs more than the budget."""
    network = bench.task.network
    cheapest = method.cheapest(network)
    if cheapest is None:
        return
    bops = price(network, cheapest).bops
    if bops > unit.budget.bops:
        raise UnreachableBudgetError(
            f"the cheapest policy of {unit.method} costs {bops / unit.budget.bops:.2f} × the budget", bops
        )


def _trial(
    bench: Workbench,
    unit: TuningUnit,
    method: Method,
    state: Mapping[str, Any],
    number: int,
    knobs: Mapping[str, float],
) -> Trial:
    """One search while tuning: search, repair, a short fine-tuning, validation."""
    began = time.perf_counter()
    curves = _Curves(bench.watcher)
    found = _search(bench, unit, method, knobs, state, curves)
    network = _compressed(bench, method, found)
    if bench.spec.tuning.finetune_epochs:
        short = bench.spec.finetune.model_copy(
            update={"epochs": bench.spec.tuning.finetune_epochs, "decay": "cosine", "milestones": ()}
        )
        _finetune(bench, network, short, unit.seed, curves)
    result = evaluate(network, bench.task.data, bench.task.data.validation)
    bops = price(bench.task.network, found.policy).bops
    return Trial(
        number=number,
        knobs=dict(knobs),
        raw_bops=found.raw_bops,
        bops=bops,
        repaired_gates=0 if found.repaired is None else found.repaired.moved,
        within_budget=unit.budget.matches(bops),
        validation_top1=result.top1,
        validation_loss=result.loss,
        seconds=time.perf_counter() - began,
        policy=found.policy.to_json(),
        curves=curves.entries,
        record=found.result.record,
    )


# --- runs -------------------------------------------------------------------------------------------------------


def run(bench: Workbench, unit: RunUnit) -> None:
    """Search at the tuned knobs, fine-tune, and read the test split once, unless the store has the run."""
    if _is_done(bench, "runs", unit):
        return
    with _recorded(bench, "runs", unit) as record:
        knobs = _tuned_knobs(bench, unit)
        method = make_method(unit.method, unit.options)
        record.update(knobs=dict(knobs), started=_now())
        began = time.perf_counter()
        curves = _Curves(bench.watcher)
        state, pretrained_top1 = _pretrained(bench, unit.pretraining)
        found = _search(bench, unit, method, knobs, state, curves)
        network = _compressed(bench, method, found)
        finetune_began = time.perf_counter()
        _finetune(bench, network, bench.spec.finetune, unit.seed, curves)
        finetune_seconds = time.perf_counter() - finetune_began
        data = bench.task.data
        validation = evaluate(network, data, data.validation)
        test = evaluate(network, data, data.test)
        cost = final_cost(bench.task.network, bench.task.make_model(), found.policy, data.image_shape)
        record.update(
            metrics=_metrics(found, validation, test, cost, pretrained_top1),
            times={
                "search_seconds": found.seconds,
                "finetune_seconds": finetune_seconds,
                "total_seconds": time.perf_counter() - began,
            },
            peak_memory_mb=found.peak_memory_mb,
            within_budget=None if unit.budget is None else unit.budget.matches(cost.bops),
            status="done",
        )
        _write_results(bench, unit, found, curves.entries, network)


def _metrics(
    found: _Found, validation: Evaluation, test: Evaluation, cost: NetworkCost, pretrained_top1: float
) -> dict[str, float | None]:
    start = found.result.record.get("start_top1")
    return {
        "top1": test.top1,
        "top5": test.top5,
        "loss": test.loss,
        "validation_top1": validation.top1,
        "pretrained_top1": pretrained_top1,
        "start_top1": None if start is None else float(start),
        "bops": cost.bops,
        "raw_bops": found.raw_bops,
        "repaired_gates": 0 if found.repaired is None else found.repaired.moved,
        "memory_kb": cost.memory_kb,
        "memory_bits": cost.memory_bits,
        "macs": cost.macs,
        "parameters": cost.parameters,
    }


def _write_results(
    bench: Workbench, unit: RunUnit, found: _Found, curves: Sequence[Mapping[str, Any]], network: nn.Module
) -> None:
    folder = bench.store.unit("runs", unit.identity)
    write_json(folder / "policy.json", found.policy.to_json())
    write_json(folder / "raw_policy.json", found.result.policy.to_json())
    write_json(folder / "curves.json", curves)
    write_json(folder / "search.json", found.result.record)
    save_state(folder / "network.pt", network.state_dict())


def _tuned_knobs(bench: Workbench, unit: RunUnit) -> Mapping[str, float]:
    """The knobs that tuning chose.

    Raises:
        UnreachableBudgetError, RuntimeError: Tuning ended otherwise than with knobs.
    """
    if unit.tuning is None:
        return {}
    record = bench.store.record("tuning", unit.tuning.identity) or {}
    if record.get("status") == "unreachable":
        raise UnreachableBudgetError(str(record["reason"]), float(record["nearest_bops"]))
    if record.get("status") != "done":
        raise RuntimeError(f"tuning of {unit.method} did not finish: {record.get('reason') or record.get('status')}")
    return {str(name): float(value) for name, value in record["knobs"].items()}


# --- records ------------------------------------------------------------------------------------------------


class _recorded:  # noqa: N801  (used like a function)
    """Writes a unit's record before and after its work, and classifies how it ended.

    Outcomes of a unit end here; a user's mistake and an interruption go on to the caller.
    """

    def __init__(self, bench: Workbench, kind: UnitKind, unit: Unit) -> None:
        self._bench, self._kind, self._unit = bench, kind, unit
        self._folder = bench.store.unit(kind, unit.identity)

    def __enter__(self) -> dict[str, Any]:
        self.record = _describe(self._bench, self._kind, self._unit)
        write_json(self._folder / "spec.json", self._unit.document)
        write_json(self._folder / "record.json", self.record)
        (self._folder / "error.txt").unlink(missing_ok=True)  # of an attempt that failed
        return self.record

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace_: Any) -> bool:
        self.record["finished"] = _now()
        if error is not None:
            self._classify(error)
        if not isinstance(error, OSError):  # a full disk: nothing can be written, and the old record says "running"
            write_json(self._folder / "record.json", self.record)
        return error is not None and isinstance(error, Exception) and not isinstance(error, BenchError | OSError)

    def _classify(self, error: BaseException) -> None:
        status: Status = "failed"
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, UnreachableBudgetError):
            status, reason = "unreachable", str(error)
            self.record["nearest_bops"] = error.nearest
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            status, reason = "interrupted", "interrupted; the same command goes on from here"
        elif isinstance(error, NonFiniteLossError):
            reason = str(error)
        elif not isinstance(error, OSError):
            write_text(self._folder / "error.txt", "".join(traceback.format_exception(error)))
            _log.warning("%s %s failed: %s", self._kind, self._unit.identity, reason)
        self.record.update(status=status, reason=reason.splitlines()[0])


def _describe(bench: Workbench, kind: UnitKind, unit: Unit) -> dict[str, Any]:
    """What identifies a unit, and what it is made with."""
    spec = bench.spec
    record: dict[str, Any] = {
        "id": unit.identity,
        "kind": {"runs": "run"}.get(kind, kind),
        "status": "running",
        "reason": None,
        "model": spec.task.model,
        "dataset": spec.task.dataset,
        "seed": unit.seed,
        "metrics": {},
        "times": {},
        "peak_memory_mb": None,
        "versions": versions(),
        "hardware": hardware(bench.device),
        "fingerprint": fingerprint(bench, unit),
        "started": _now(),
        "finished": None,
    }
    if isinstance(unit, TuningUnit | RunUnit):
        record.update(
            method=unit.method,
            budget=None if unit.budget is None else unit.budget.text,
            budget_bops=None if unit.budget is None else unit.budget.bops,
            recipe=spec.recipe,
            match=spec.tuning.match,
            options=unit.document["options"],
            knobs=None,
        )
    if isinstance(unit, RunUnit):
        record.update(tuning=None if unit.tuning is None else unit.tuning.identity, within_budget=None)
    return record


def fingerprint(bench: Workbench, unit: Unit) -> dict[str, Any]:
    """What makes a result stale when it changes: data, cost counter, the method's source."""
    found: dict[str, Any] = {"data_checksum": bench.task.data.checksum, "cost_counter": COUNTER_VERSION}
    if isinstance(unit, TuningUnit | RunUnit):
        found["method_source"] = method_source(unit.method)
    return found


def _is_done(bench: Workbench, kind: UnitKind, unit: Unit) -> bool:
    """Whether the store holds a finished unit that is not stale."""
    record = bench.store.record(kind, unit.identity)
    if record is None or record.get("status") not in ("done", "unreachable"):
        return False
    if record.get("fingerprint") == fingerprint(bench, unit):
        return True
    _log.warning(
        "%s %s was made with another method source, data or cost counter and is made anew",
        kind,
        unit.identity,
    )
    _forget(bench.store.unit(kind, unit.identity))
    return False


def _forget(folder: Path) -> None:
    """Set a stale unit's folder aside."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.stale-{number}")).exists():
        number += 1
    folder.rename(aside)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
