"""How and where a study is run: workers, limits, machines. Nothing here changes a number."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from bench.errors import BenchError, unknown_name
from bench.store.files import Status, Store

Backend = Literal["threading", "loky", "dask"]

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES = {"MB": 1e6, "GB": 1e9}
_LEAST_BYTES = 700_000_000
"""PyTorch's libraries alone are some 0.6 GB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a process may take.

    Attributes:
        seconds: Wall time.
        memory_bytes: Resident memory, of which PyTorch itself has some 0.6 GB.
    """

    seconds: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How and where a study is run.

    Attributes:
        store: Where results go.
        data_dir: Where data sets are looked for.
        jobs: Units worked on at once.
        backend: What joblib runs supervisors on.
        scheduler: Address of a Dask cluster.
        isolated: Whether each unit has a process of its own.
        limits: Of each process.
        retry: Failures to try again.
        runs_per_card: Processes that share a graphics card.
        optuna_storage: A database for Optuna's studies; in memory when absent.
    """

    store: Store
    data_dir: Path | None
    jobs: int = 1
    backend: Backend = "threading"
    scheduler: str | None = None
    isolated: bool = True
    limits: Limits = field(default_factory=Limits)
    retry: frozenset[Status] = frozenset()
    runs_per_card: int = 1
    optuna_storage: str | None = None


def parse_backend(name: str, scheduler: str | None, *, in_process: bool, jobs: int) -> Backend:
    """The backend of that name, when the other options go with it.

    Raises:
        BenchError: There is no such backend, or options contradict each other.
    """
    if name not in get_args(Backend):
        raise unknown_name("backend", name, get_args(Backend), "bench run --help")
    if name == "dask" and scheduler is None:
        raise BenchError("--backend dask needs the address of a cluster, e.g. --scheduler tcp://HOST:8786")
    if name != "dask" and scheduler is not None:
        raise BenchError(f"--scheduler {scheduler} has no effect with --backend {name}; add --backend dask")
    if in_process and (jobs > 1 or name != "threading"):
        raise BenchError("--in-process works on one unit after the other; leave --jobs and --backend away")
    found: Backend = name  # type: ignore[assignment]
    return found


def check_settings(how: RunSettings, device: str, devices: int) -> None:
    """Refuse options that have no effect, or that contradict each other or the specification.

    Args:
        how: The options.
        device: Of the specification.
        devices: Of the specification.

    Raises:
        BenchError: There are such options.
    """
    if devices > 1 and not how.isolated:
        raise BenchError(f"--in-process is one process, but --devices {devices} needs several; leave one of them away")
    if not how.isolated and how.limits != Limits():
        raise BenchError("--timeout and --memory-limit have no effect with --in-process; leave them away")
    if how.runs_per_card > 1 and not device.startswith("cuda"):
        raise BenchError(f"--runs-per-card {how.runs_per_card} has no effect on {device}; add --device cuda")


def parse_seconds(text: str) -> float:
    """A time like 90s, 30min, 2h or 1.5d, in seconds.

    Raises:
        BenchError: It is not of that form.
    """
    return _quantity(text, _SECONDS, "--timeout", "90s, 30min, 2h or 1d")


def parse_size(text: str) -> int:
    """A size like 800MB or 8GB, in bytes.

    Raises:
        BenchError: It is not of that form.
    """
    size = round(_quantity(text, _BYTES, "--memory-limit", "800MB or 8GB"))
    if size < _LEAST_BYTES:
        raise BenchError(f"--memory-limit '{text}' is less than PyTorch itself takes; give at least 700MB")
    return size


def _quantity(text: str, units: Mapping[str, float], option: str, example: str) -> float:
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*({'|'.join(units)})", text.strip(), re.ASCII)
    if match is None or float(match[1]) <= 0:
        raise BenchError(f"{option} '{text}' is not understood; give a number above 0 with a unit, e.g. {example}")
    return float(match[1]) * units[match[2]]
