"""Settings of a command that runs a study: workers, limits, machines. They change no result."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from bench.errors import BenchError, unknown_name
from bench.store.files import Status, Store
from bench.store.outcomes import parse_retry
from bench.store.urls import check_database, with_driver

Backend = Literal["threading", "loky", "dask"]

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES = {"MB": 1e6, "GB": 1e9}
_LEAST_BYTES = 700_000_000
"""Smallest limit of memory; PyTorch's libraries alone take some 0.6 GB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of a unit's process.

    Attributes:
        seconds: Wall time.
        memory_bytes: Resident memory, of which PyTorch itself takes some 0.6 GB.
    """

    seconds: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of a command that runs a study.

    Attributes:
        store: Store that results are written to.
        data_dir: Folder of data sets.
        jobs: Number of units that are run at once.
        backend: Backend of joblib that runs supervisors.
        scheduler: Address of a Dask cluster.
        isolated: Whether each unit has a process of its own.
        limits: Limits of each process.
        retry: Failures to try again.
        runs_per_gpu: Number of processes that may share a GPU.
        optuna_storage: URL of a database for Optuna's studies; in memory when absent.
        command: Words of the command that runs the study again.
    """

    store: Store
    data_dir: Path | None
    jobs: int = 1
    backend: Backend = "threading"
    scheduler: str | None = None
    isolated: bool = True
    limits: Limits = field(default_factory=Limits)
    retry: frozenset[Status] = frozenset()
    runs_per_gpu: int = 1
    optuna_storage: str | None = None
    command: Sequence[str] = ()


def make_settings(
    store: Store,
    data_dir: Path | None = None,
    *,
    jobs: int = 1,
    backend: str = "threading",
    scheduler: str | None = None,
    timeout: str | None = None,
    memory_limit: str | None = None,
    retry: str | None = None,
    runs_per_gpu: int = 1,
    optuna_storage: str | None = None,
    in_process: bool = False,
    command: Sequence[str] = (),
) -> RunSettings:
    """Make settings from texts as users write them.

    Args:
        store: Store that results are written to.
        data_dir: Folder of data sets.
        jobs: Number of units that are run at once.
        backend: Name of the backend that runs supervisors: "threading", "loky" or "dask".
        scheduler: Address of a Dask cluster.
        timeout: Time limit of each run and trial, e.g. "30min".
        memory_limit: Memory limit of each run and trial, e.g. "8GB".
        retry: Outcomes to try again, separated by commas.
        runs_per_gpu: Number of processes that may share a GPU.
        optuna_storage: URL of a database for Optuna's studies.
        in_process: Whether units share this process.
        command: Words of the command that runs the study again.

    Raises:
        BenchError: A text is not understood, or options contradict each other.
    """
    return RunSettings(
        store=store,
        data_dir=data_dir,
        jobs=jobs,
        backend=parse_backend(backend, scheduler, in_process=in_process, jobs=jobs),
        scheduler=scheduler,
        isolated=not in_process,
        limits=Limits(
            seconds=None if timeout is None else parse_seconds(timeout),
            memory_bytes=None if memory_limit is None else parse_size(memory_limit),
        ),
        retry=frozenset() if retry is None else parse_retry(retry),
        runs_per_gpu=runs_per_gpu,
        optuna_storage=None if optuna_storage is None else check_database(with_driver(optuna_storage)),
        command=command,
    )


def parse_backend(name: str, scheduler: str | None, *, in_process: bool, jobs: int) -> Backend:
    """Return a backend after making sure that the other options agree with it.

    Args:
        name: Name of the backend.
        scheduler: Address of a Dask cluster.
        in_process: Whether units share this process.
        jobs: Number of units that are run at once.

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
        raise BenchError("--in-process runs one unit after the other; remove --jobs and --backend")
    backend: Backend = name  # type: ignore[assignment]
    return backend


def check_settings(settings: RunSettings, device: str, devices: int) -> None:
    """Refuse settings that have no effect, or that contradict each other or the specification.

    Args:
        settings: Settings of the command.
        device: Device of the specification.
        devices: Number of devices of the specification.

    Raises:
        BenchError: There are such settings.
    """
    if devices > 1 and not settings.isolated:
        raise BenchError(f"--in-process is one process, but --devices {devices} needs several; remove one of them")
    if not settings.isolated and settings.limits != Limits():
        raise BenchError("--timeout and --memory-limit have no effect with --in-process; remove them")
    if settings.runs_per_gpu > 1 and not device.startswith("cuda"):
        raise BenchError(f"--runs-per-card {settings.runs_per_gpu} has no effect on {device}; add --device cuda")


def parse_seconds(text: str) -> float:
    """Parse a time like 90s, 30min, 2h or 1.5d.

    Returns:
        Seconds.

    Raises:
        BenchError: The text has another form.
    """
    return _quantity(text, _SECONDS, "--timeout", "90s, 30min, 2h or 1d")


def parse_size(text: str) -> int:
    """Parse a size like 800MB or 8GB.

    Returns:
        Bytes.

    Raises:
        BenchError: The text has another form, or the size is too small.
    """
    size = round(_quantity(text, _BYTES, "--memory-limit", "800MB or 8GB"))
    if size < _LEAST_BYTES:
        raise BenchError(f"--memory-limit '{text}' is less than PyTorch itself needs; give at least 700MB")
    return size


def _quantity(text: str, units: Mapping[str, float], option: str, example: str) -> float:
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*({'|'.join(units)})", text.strip(), re.ASCII)
    if match is None or float(match[1]) <= 0:
        raise BenchError(f"{option} '{text}' is not understood; give a number above 0 with a unit, e.g. {example}")
    return float(match[1]) * units[match[2]]
