"""Measure the time and memory of every method's training step, as ratios to plain training.

The reference is the float network in single precision, not compiled. The reference and everything that is compared with
it train in one process and alternate step by step (`bench.diagnostics.speed.interleave`), so that a machine that slows
down does so for all. A method is measured in its own `search`, whatever that does.
"""

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from bench.diagnostics.speed.config import REFERENCE, WARM_UP, Candidate, SpeedConfig
from bench.diagnostics.speed.interleave import InterleavedTraining
from bench.diagnostics.speed.peak_memory import failure, peak_in_another_process
from bench.diagnostics.speed.rows import Row, Speed, Spread, add_ratios
from bench.diagnostics.speed.trainings import EPOCHS, random_task, watched_training
from bench.errors import BenchError
from bench.method import Task
from bench.spec.seeds import start_process_deterministically
from bench.training.forward import Forward

Progress = Callable[[str], None]
"""Function that shows what is being done."""


@dataclass(frozen=True, kw_only=True)
class _Participant:
    """A candidate, its training, and the preparation of its networks."""

    candidate: Candidate
    training: InterleavedTraining
    forward: Forward


def measure(config: SpeedConfig, wanted: Sequence[Candidate], progress: Progress = lambda _: None) -> Speed:
    """Measure candidates beside the reference.

    Args:
        config: Settings.
        wanted: Candidates; the reference is added.
        progress: Function that shows what is being done.

    Raises:
        BenchError: A training failed.
    """
    start_process_deterministically(0, config.threads)
    everything = [REFERENCE, *(candidate for candidate in wanted if candidate != REFERENCE)]
    epoch = WARM_UP + math.ceil(config.rounds / EPOCHS)
    task = random_task(config, epoch)
    with _started(config, task, everything, epoch, progress) as participants:
        for number in range(config.rounds):
            progress(f"round {number + 1} of {config.rounds}")
            first = number % len(participants)  # rotated, so that no training always follows the same one
            for participant in participants[first:] + participants[:first]:
                with _named_failure(participant.candidate):
                    participant.training.step()
    return _results(config, participants, len(task.network.layers), progress)


@contextlib.contextmanager
def _started(
    config: SpeedConfig, task: Task, wanted: Sequence[Candidate], epoch: int, progress: Progress
) -> Iterator[list[_Participant]]:
    """Start all trainings up to their first timed step, and end them with the block."""
    participants: list[_Participant] = []
    try:
        for candidate in wanted:
            progress(f"preparing {candidate.title}")
            training = InterleavedTraining(WARM_UP, config.device)
            train, forward = watched_training(candidate, task, training, epoch, config.batch_size)
            participants.append(_Participant(candidate=candidate, training=training, forward=forward))
            with _named_failure(candidate):
                training.start(train)
        yield participants
    finally:
        for participant in participants:
            participant.training.stop()


@contextlib.contextmanager
def _named_failure(candidate: Candidate) -> Iterator[None]:
    """Turn an exception of a training into one line that names the training.

    Raises:
        BenchError: The training raised an exception.
    """
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        raise failure(candidate, f"{type(error).__name__}: {error}") from error


def _results(config: SpeedConfig, participants: Sequence[_Participant], layers: int, progress: Progress) -> Speed:
    """Make a row for each participant that trained, and notes on the others."""
    rows, notes = [], []
    reference = participants[0].training.seconds
    for participant in participants:
        title, reason = participant.candidate.title, _reason_for_no_row(participant)
        if reason is not None:
            notes.append(f"{title} is left out: {reason}")
            continue
        row = _row(config, participant, reference)
        rows.append(row)
        if row.steps < config.rounds:
            notes.append(f"{title} ended by itself after {row.steps} timed steps")
        if config.memory and config.device.type != "cuda":
            progress(f"memory of {title}")
            row.peak_bytes = peak_in_another_process(config, participant.candidate) or None
    add_ratios(rows)
    return Speed(config=config, rows=rows, notes=notes, layers=layers)


def _reason_for_no_row(participant: _Participant) -> str | None:
    """Return the reason why a participant gets no row; `None` if it gets one."""
    compiled, record = participant.candidate.compiled, participant.forward.record
    if not participant.training.seconds:
        return "draws no training batches, or too few to be timed"
    if compiled and "not_compiled" in record:
        return f"not compiled: {record['not_compiled']}"
    if compiled and not record["compiled"]:
        return "its networks do not go through `SearchJob.in_training`, which compiles them"
    return None


def _row(config: SpeedConfig, participant: _Participant, reference: Sequence[float]) -> Row:
    candidate, training = participant.candidate, participant.training
    seconds = training.seconds
    paired = [own / other for own, other in zip(seconds, reference, strict=False)]
    whole = sum(seconds) / sum(reference[: len(seconds)])
    return Row(
        name=candidate.name,
        what=candidate.what,
        detail=candidate.detail,
        compiled=candidate.compiled,
        precision=candidate.precision,
        steps=len(seconds),
        milliseconds=Spread.from_values([1e3 * step for step in seconds]),
        ratio=Spread(**(asdict(Spread.from_values(paired)) | {"mean": whole})),
        images_per_second=config.batch_size / statistics.median(seconds),
        seconds=seconds,
        saved_bytes=training.saved_bytes,
        peak_bytes=training.peak_bytes or None,
        compile_seconds=participant.forward.record["compile_seconds"] if candidate.compiled else None,
    )
