"""Choice of the network to deploy: those of a study that fit a device, the best on validation images first."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.compression.policy import policy_from_json
from bench.costs.counter import BITS_PER_KB, price
from bench.errors import BenchError
from bench.planning.networks import task_network
from bench.reporting.report import Column, Table
from bench.results.groups import with_result
from bench.results.tables import StudyResults
from bench.spec.schema import StudySpec
from bench.store.exports import read_export
from bench.store.files import Store, read_stored_specification

_AMOUNT = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([A-Za-z]{2})")
_UNITS = {"flash": {"KB": 1.0, "MB": 1e3}, "ram": {"KB": 1.0, "MB": 1e3}, "latency": {"ms": 1.0, "us": 1e-3}}
"""Units of each limit, and what each is in KB or ms."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network of a study.

    Attributes:
        run: Id of the run.
        method, budget: Method and budget of the run.
        seed: Seed of the run.
        validation_top1, top1: Top-1 in percent on validation and on test images.
        flash: KB of the weights alone.
        ram: KB of the largest input of a layer.
        simulated: Latency on the simulated accelerator in ms; `None` for bits that it lacks.
        measured: Least measured time for one image in ms; `None` before `bench export --measure`.
    """

    run: str
    method: str
    budget: str
    seed: int
    validation_top1: float
    top1: float
    flash: float
    ram: float
    simulated: float | None
    measured: float | None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a device has.

    Attributes:
        flash: KB for the weights.
        ram: KB for the largest input of a layer.
        latency: Milliseconds for one image.
        measured: Whether latency is the measured one instead of that of the simulated accelerator.
    """

    flash: float | None = None
    ram: float | None = None
    latency: float | None = None
    measured: bool = False

    def allow(self, candidate: Candidate) -> bool:
        """Whether a network fits; one whose latency is not known does not fit a limit on it."""
        latency = candidate.measured if self.measured else candidate.simulated
        pairs = ((self.flash, candidate.flash), (self.ram, candidate.ram), (self.latency, latency))
        return all(limit is None or (value is not None and value <= limit) for limit, value in pairs)


def amount(text: str | None, what: str) -> float | None:
    """Read a limit.

    Args:
        text: Number and unit, e.g. "300KB" or "2ms"; `None` for no limit.
        what: Limit that it is: "flash", "ram" or "latency".

    Returns:
        The limit in KB or ms.

    Raises:
        BenchError: It is not a positive number with a unit of this limit.
    """
    if text is None:
        return None
    units = _UNITS[what]
    match = _AMOUNT.fullmatch(text.strip())
    factor = None if match is None else units.get(match[2])
    if match is None or factor is None or float(match[1]) == 0:
        examples = " or ".join(f"{number}{unit}" for number, unit in zip((300, 0.5), units, strict=True))
        raise BenchError(f"--{what} '{text}' is no limit; give a positive number and its unit, e.g. {examples}")
    return float(match[1]) * factor


def candidates(results: StudyResults) -> list[Candidate]:
    """Return the networks of a study, the best on validation images first; of equal ones, the smaller one."""
    rows = with_result(results.runs).dropna(subset=["validation_top1"]).to_dict("records")
    found = [made for row in rows if (made := _candidate(results, row)) is not None]
    return sorted(found, key=lambda candidate: (-candidate.validation_top1, candidate.flash, candidate.run))


def _candidate(results: StudyResults, row: Mapping[Any, Any]) -> Candidate | None:
    run = str(row["id"])
    stored = read_stored_specification(results.store.unit("runs", run))
    document = results.file(run, "policy.json")
    if stored is None or document is None:  # damaged
        return None
    spec = StudySpec.model_validate_json(json.dumps(stored["specification"]))
    layers = price(task_network(spec.task), policy_from_json(document)).layers
    latency = math.nan if spec.accelerator.measured else float(row["latency_ms"])
    return Candidate(
        run=run,
        method=str(row["method"]),
        budget=str(row["budget"]),
        seed=int(row["seed"]),
        validation_top1=float(row["validation_top1"]),
        top1=float(row["top1"]),
        flash=sum(layer.weight_memory_bits for layer in layers) / BITS_PER_KB,
        ram=max(layer.activation_memory_bits for layer in layers) / BITS_PER_KB,
        simulated=None if math.isnan(latency) else latency,
        measured=_measured(results.store, run),
    )


def _measured(store: Store, run: str) -> float | None:
    """Return the least measured time of a run's exported forms for one image."""
    export = read_export(store, run)
    entries = [] if export is None else [entry for entry in export.measured if entry.form in export.forms]
    return min((entry.milliseconds for entry in entries if entry.batch == 1), default=None)


def choice_table(fitting: Sequence[Candidate]) -> Table:
    """Return the networks that fit, in their order; test accuracy is not shown, because nothing may be chosen by it."""

    def cells(candidate: Candidate) -> tuple[str, ...]:
        times = (candidate.simulated, candidate.measured)
        return (
            candidate.run,
            candidate.method,
            candidate.budget,
            str(candidate.seed),
            f"{candidate.validation_top1:.2f}",
            f"{candidate.flash:.1f}",
            f"{candidate.ram:.1f}",
            *("" if value is None else f"{value:.4f}" for value in times),
        )

    left = ("run", "method", "budget")
    titles = ("seed", "validation Top-1 %", "flash KB", "RAM KB", "simulated ms", "measured ms")
    return Table(
        name="choice",
        title="Networks that fit, the best on validation images first",
        columns=(*(Column(title=title, align="left") for title in left), *(Column(title=title) for title in titles)),
        rows=tuple(map(cells, fitting)),
        notes=(
            "flash: weights alone. RAM: the largest input of a layer at its own bits; a device needs room for its "
            "output too, and keeps numbers between layers at more bits.",
        ),
    )
