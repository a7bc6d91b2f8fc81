"""Measures what a training step of every method takes, in time and memory, as ratios to plain training.

The reference is the float network in single precision, as it stands. It and everything that is compared with it train
in one process and take turns, step by step (`bench.diagnostics.speed.interleave`), so that a machine that slows down
does so for all. A method is measured in its own `search`, whatever it does there.
"""

import contextlib
import ctypes
import gc
import math
import multiprocessing
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

import psutil
import torch
from torch import nn

from bench.compression.compress import calibrate, compress
from bench.compression.policy import uniform
from bench.compression.quantizer import QuantizerFactory, UniformQuantizer
from bench.costs.counter import price
from bench.data.dataset import Arrays, Dataset
from bench.data.task_data import TaskData
from bench.diagnostics.speed.interleave import (
    InterleavedTraining,
    Kind,
    StepObserver,
    WatchedData,
    WatchedForward,
    living_bytes,
)
from bench.errors import BenchError
from bench.execution.stages import on_device
from bench.method import Method, SearchJob, Task
from bench.models.build import build_model
from bench.planning.plan import model_shape
from bench.plugins.registry import load
from bench.spec.schema import Precision, Schedule, SearchSchedule
from bench.spec.seeds import generator, start_process_deterministically
from bench.store.machine import hardware, peak_memory, versions
from bench.training.forward import Forward
from bench.training.loop import fit

WARM_UP = 3
_MEMORY_WARM_UP, _MEMORY_STEPS = 2, 2
_EPOCHS = 2
"""A method of two stages divides them."""
_BITS = 4
_LEAST_BATCHES = 10
"""Of training data, so that a method that trains on a fifth of them still gets whole batches."""
_RATE = 1e-3
_PATIENCE = 30.0
"""Seconds for a process to end that has nothing left to do."""

What = Literal["training", "search", "fine-tuning"]


# --- what is measured, and what came out ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Under which circumstances.

    Attributes:
        model, dataset: Names; of the data set only the shape of an image and the number of classes count.
        batch_size: Images a step.
        rounds: Timed steps of everything.
        threads: Of the processor.
        device: Where training happens.
        precision: Of everything but the reference.
        memory: Whether peak memory is measured, which takes a process for each row where there is no card.
    """

    model: str = "resnet20"
    dataset: str = "cifar100"
    batch_size: int = 128
    rounds: int = 10
    threads: int = 2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "fp32"
    memory: bool = True


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something that trains.

    Attributes:
        name: For the table.
        what: Which stage of a study it is.
        method: Whose search; or whose quantizer in fine-tuning. `None` for the common ones.
        compiled: Whether its network is to be compiled.
        precision: Of its forward passes.
        detail: What tells it from others of the same name.
    """

    name: str
    what: What
    method: Method | None = None
    compiled: bool = False
    precision: Precision = "fp32"
    detail: str = ""

    @property
    def title(self) -> str:
        """For messages."""
        parts = [self.what, self.name, self.detail, "compiled" if self.compiled else ""]
        return " ".join(part for part in parts if part)


REFERENCE = Candidate(name="float", what="training")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, quartiles and mean of some numbers."""

    median: float
    low: float
    high: float
    mean: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one number."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0], mean=values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, mean=statistics.fmean(values))


@dataclass(kw_only=True)
class Row:
    """What was measured of one candidate.

    Attributes:
        name, what, detail, compiled, precision: Those of the candidate.
        steps: Timed ones.
        milliseconds: Of a step.
        ratio: To the reference's step of the same round; the mean is that of all steps to that of all of its steps.
        images_per_second: At the median step.
        saved_bytes, saved_ratio: What autograd keeps in a step for its backward pass, and that to the reference's.
        peak_bytes, peak_ratio: The most memory in a step, and that to the reference's; `None` where not measured.
        compile_seconds: Of its networks; `None` where nothing was compiled.
        seconds: Of every step.
    """

    name: str
    what: What
    detail: str
    compiled: bool
    precision: Precision
    steps: int
    milliseconds: Spread
    ratio: Spread
    images_per_second: float
    seconds: list[float]
    saved_bytes: int
    saved_ratio: float | None = None
    peak_bytes: int | None = None
    peak_ratio: float | None = None
    compile_seconds: float | None = None


@dataclass(kw_only=True)
class Speed:
    """All rows of one setting.

    Attributes:
        setting: The setting.
        rows: The first one is the reference.
        notes: What was left out, or is shorter, and why.
        layers: Of the model, with weights.
    """

    setting: SpeedConfig
    rows: list[Row]
    notes: list[str]
    layers: int

    def to_json(self) -> dict[str, Any]:
        """Everything, with what it was measured on."""
        rows = [asdict(row) for row in self.rows]
        return {**head(self.setting), "layers": self.layers, "rows": rows, "notes": self.notes}


def head(setting: SpeedConfig) -> dict[str, Any]:
    """Under which circumstances and on what something was measured, as JSON."""
    return {
        **asdict(setting),
        "device": str(setting.device),
        "warm_up": WARM_UP,
        "hardware": hardware(setting.device),
        "versions": versions(),
    }


# --- trainings -----------------------------------------------------------------------------------------------------


def candidates(methods: Mapping[str, Method], modes: Sequence[bool], precision: Precision) -> list[Candidate]:
    """The float network, the search of each method, and fine-tuning with the common and each own quantizer.

    Args:
        methods: By name.
        modes: Whether compiled; each is measured.
        precision: Of all.
    """
    own = [(name, method) for name, method in methods.items() if method.capabilities.own_quantizer]
    wanted: list[tuple[str, What, Method | None]] = [("float", "training", None)]
    wanted += [(name, "search", method) for name, method in methods.items()]
    wanted += [(f"{_BITS} bit", "fine-tuning", None)]
    wanted += [(f"{_BITS} bit as {name}", "fine-tuning", method) for name, method in own]
    return [
        Candidate(name=name, what=what, method=method, compiled=compiled, precision=precision)
        for name, what, method in wanted
        for compiled in modes
    ]


def made_up_task(setting: SpeedConfig, batches: int) -> Task:
    """Random images in the shape of the data set's, and the model on them.

    Args:
        setting: Names, batch size and device.
        batches: Of training images at least.
    """
    kind: type[Dataset] = load("datasets", setting.dataset)
    dataset = kind.described()
    draws = generator("speed")
    count = max(batches, _LEAST_BATCHES) * setting.batch_size

    def images(number: int) -> torch.Tensor:
        return torch.randint(0, 256, (number, *dataset.image_shape), dtype=torch.uint8, generator=draws)

    def labels(number: int) -> torch.Tensor:
        return torch.randint(0, dataset.num_classes, (number,), generator=draws)

    arrays = Arrays(
        train_images=images(count), train_labels=labels(count),
        test_images=images(setting.batch_size), test_labels=labels(setting.batch_size),
    )  # fmt: skip
    data = TaskData(dataset, arrays, validation_fraction=0.5, device=setting.device)
    data.train = arrays.parts(dataset)[0].on(setting.device, workers=0)
    data.validation = data.test

    def make_model() -> nn.Module:
        model = build_model(setting.model, dataset.image_shape, dataset.num_classes)
        return on_device(model, setting.device)

    return Task(data=data, network=model_shape(setting.model, setting.dataset), make_model=make_model)


def training_of(
    candidate: Candidate, task: Task, steps: StepObserver, epoch: int, batch_size: int
) -> tuple[Callable[[], object], Forward]:
    """A candidate's training from beginning to end, and how its networks are carried out.

    Args:
        candidate: What trains.
        task: Data and model.
        steps: Are told of every step.
        epoch: Batches of an epoch, of which there are two.
        batch_size: Images a step.
    """
    forward = WatchedForward("on" if candidate.compiled else "off", candidate.precision, task.device)
    forward.steps = steps
    data = WatchedData.of(task.data, steps, epoch)
    watched = Task(data=data, network=task.network, make_model=task.make_model)
    if candidate.what == "search" and candidate.method is not None:
        return _search(candidate.method, watched, forward, batch_size), forward
    return _fit(candidate, watched, forward, batch_size), forward


def _search(method: Method, task: Task, forward: Forward, batch_size: int) -> Callable[[], object]:
    cheapest = method.cheapest(task.network)
    least = 0 if cheapest is None else price(task.network, cheapest).bops
    job = SearchJob(
        task=task,
        pretrained=task.make_model().state_dict(),
        knobs={name: knob.middle for name, knob in method.knobs("hinge").items()},
        budget=max(least, price(task.network, uniform(task.network, _BITS)).bops),
        match="hinge",
        schedule=SearchSchedule(epochs=_EPOCHS, batch_size=batch_size, lr=_RATE),
        seed=0,
        report=_ignore,
        forward=forward,
    )
    return lambda: method.search(job)


def _fit(candidate: Candidate, task: Task, forward: Forward, batch_size: int) -> Callable[[], object]:
    schedule = Schedule(epochs=_EPOCHS, batch_size=batch_size, lr=_RATE)

    def train() -> None:
        model = task.make_model()
        if candidate.what == "fine-tuning":
            quantizer: QuantizerFactory = UniformQuantizer if candidate.method is None else candidate.method.quantizer
            model = compress(model, task.network, uniform(task.network, _BITS), quantizer=quantizer)
            calibrate(model, task.data.calibration_batches(1, batch_size)[0])
        call = forward.prepare(model, candidate.what, 1.0)
        fit(model, task.data, schedule, generator("speed", "order"), _ignore, call=call)

    return train


def _ignore(_: Mapping[str, float]) -> None:
    """Measured steps report nothing."""


# --- measuring -----------------------------------------------------------------------------------------------------


def measure(setting: SpeedConfig, wanted: Sequence[Candidate], tell: Callable[[str], None] = lambda _: None) -> Speed:
    """Measure everything that is wanted, beside the reference.

    Args:
        setting: The circumstances.
        wanted: Candidates other than the reference.
        tell: Is told what is being done.

    Raises:
        BenchError: A training failed.
    """
    start_process_deterministically(0, setting.threads)
    taking_part = [REFERENCE, *(candidate for candidate in wanted if candidate != REFERENCE)]
    epoch = WARM_UP + math.ceil(setting.rounds / _EPOCHS)
    task = made_up_task(setting, epoch)
    with _ready(setting, task, taking_part, epoch, tell) as ready:
        for number in range(setting.rounds):
            tell(f"round {number + 1} of {setting.rounds}")
            first = number % len(ready)  # nobody always follows the same one
            for candidate, turns, _ in ready[first:] + ready[:first]:
                with _naming(candidate):
                    turns.step()
    rows, notes = _rows(setting, ready)
    if setting.memory and setting.device.type != "cuda":
        _add_peaks(setting, rows, tell)
    _add_ratios([row for row, _ in rows])
    return Speed(setting=setting, rows=[row for row, _ in rows], notes=notes, layers=len(task.network.layers))


_Ready = list[tuple[Candidate, InterleavedTraining, Forward]]


@contextlib.contextmanager
def _ready(
    setting: SpeedConfig, task: Task, wanted: Sequence[Candidate], epoch: int, tell: Callable[[str], None]
) -> Iterator[_Ready]:
    """All trainings, each waiting before its first timed step; ended with the block, however that ends."""
    ready: _Ready = []
    try:
        for candidate in wanted:
            tell(f"preparing {candidate.title}")
            turns = InterleavedTraining(WARM_UP, setting.device)
            training, forward = training_of(candidate, task, turns, epoch, setting.batch_size)
            ready.append((candidate, turns, forward))
            with _naming(candidate):
                turns.start(training)
        yield ready
    finally:
        for _, turns, _ in ready:
            turns.stop()


@contextlib.contextmanager
def _naming(candidate: Candidate) -> Iterator[None]:
    """Turns what goes wrong in a training into one line that names it.

    Raises:
        BenchError: Something did.
    """
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        raise _failure(candidate, f"{type(error).__name__}: {error}") from error


def _failure(candidate: Candidate, reason: str) -> BenchError:
    return BenchError(
        f"{candidate.title} failed while it was measured: {' '.join(reason.split())}; leave it out with --methods, or "
        "find the cause with `bench run --in-process`"
    )


def _rows(setting: SpeedConfig, outcome: _Ready) -> tuple[list[tuple[Row, Candidate]], list[str]]:
    """A row for each training that was seen to train, and notes on the others."""
    rows, notes = [], []
    reference = outcome[0][1].seconds
    for candidate, turns, forward in outcome:
        note = _shortcoming(candidate, turns, forward)
        if note is not None:
            notes.append(f"{candidate.title} is left out: {note}")
            continue
        paired = [own / other for own, other in zip(turns.seconds, reference, strict=False)]
        whole = sum(turns.seconds) / sum(reference[: len(turns.seconds)])
        median = statistics.median(turns.seconds)
        row = Row(
            name=candidate.name,
            what=candidate.what,
            detail=candidate.detail,
            compiled=candidate.compiled,
            precision=candidate.precision,
            steps=len(turns.seconds),
            milliseconds=Spread.of([1e3 * seconds for seconds in turns.seconds]),
            ratio=Spread(**(asdict(Spread.of(paired)) | {"mean": whole})),
            images_per_second=setting.batch_size / median,
            seconds=turns.seconds,
            saved_bytes=turns.saved_bytes,
            peak_bytes=turns.peak_bytes or None,
            compile_seconds=forward.record["compile_seconds"] if candidate.compiled else None,
        )
        rows.append((row, candidate))
        if row.steps < setting.rounds:
            notes.append(f"{candidate.title} ended by itself after {row.steps} timed steps")
    return rows, notes


def _shortcoming(candidate: Candidate, turns: InterleavedTraining, forward: Forward) -> str | None:
    """Why there is no row, if there is none."""
    if not turns.seconds:
        return "draws no training batches, or too few to be timed"
    if candidate.compiled and "not_compiled" in forward.record:
        return f"not compiled: {forward.record['not_compiled']}"
    if candidate.compiled and not forward.record["compiled"]:
        return "its networks do not go through `SearchJob.in_training`, which compiles them"
    return None


def _add_ratios(rows: Sequence[Row]) -> None:
    reference = rows[0]
    for row in rows:
        row.saved_ratio = row.saved_bytes / reference.saved_bytes if reference.saved_bytes else None
        if row.peak_bytes is not None and reference.peak_bytes:
            row.peak_ratio = row.peak_bytes / reference.peak_bytes


# --- peak memory on a processor ------------------------------------------------------------------------------------


class _PeakSteps(StepObserver):
    """Steps in a process of their own, after the warm-up each with the rise of resident memory in it.

    Attributes:
        bytes: The largest rise, with the tensors that lie there between steps.
    """

    def __init__(self, data: TaskData) -> None:
        super().__init__(_MEMORY_WARM_UP)
        self.bytes = 0
        self._data = data
        self._before = 0
        self._block = contextlib.ExitStack()

    def begins(self, kind: Kind) -> None:
        """Give back what the process does not use, and start the system's mark anew."""
        if kind == "timed":
            gc.collect()
            _trim()
            self._kept = living_bytes([self._data.train.tensors()[0], self._data.validation.tensors()[0]])
            self._before = psutil.Process().memory_info().rss
            self._peak = self._block.enter_context(peak_memory(torch.device("cpu")))

    def ended(self, kind: Kind) -> None:
        """Read the mark."""
        if kind == "timed":
            self._block.close()
            if self._peak.megabytes is not None:
                rise = int(self._peak.megabytes * 1e6) - self._before
                self.bytes = max(self.bytes, self._kept + rise)


def _trim() -> None:
    """Let the C library give memory back that it only keeps for later (glibc)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_in_this_process(setting: SpeedConfig, candidate: Candidate) -> int:
    """Peak memory of a candidate's step in bytes, in a process that does nothing else; 0 where it cannot be told."""
    start_process_deterministically(0, setting.threads)
    epoch = _MEMORY_WARM_UP + _MEMORY_STEPS
    task = made_up_task(setting, epoch)
    steps = _PeakSteps(task.data)
    training_of(candidate, task, steps, epoch, setting.batch_size)[0]()
    return steps.bytes


def _add_peaks(setting: SpeedConfig, rows: Sequence[tuple[Row, Candidate]], tell: Callable[[str], None]) -> None:
    """Each in a fresh process: what one training leaves in a process would hide what the next one takes."""
    for row, candidate in rows:
        tell(f"memory of {candidate.title}")
        row.peak_bytes = _peak_in_another_process(setting, candidate) or None


def _peak_in_another_process(setting: SpeedConfig, candidate: Candidate) -> int:
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(its, setting, candidate), daemon=True)
    process.start()
    its.close()
    try:
        answer: int | str = mine.recv()
    except EOFError:
        answer = "its process ended by itself; it may have run out of memory"
    else:
        process.join(_PATIENCE)
    finally:
        process.kill()
        process.join()
        mine.close()
    if isinstance(answer, str):
        raise _failure(candidate, answer)
    return answer


def _answer(connection: Connection, setting: SpeedConfig, candidate: Candidate) -> None:
    """What the other process does. An interruption is for its parent, which ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answer: int | str
    try:
        answer = peak_in_this_process(setting, candidate)
    except Exception as error:  # it is for the parent to tell
        answer = f"{type(error).__name__}: {error}"
    connection.send(answer)
