"""What a result was made on and with, and how much memory it took."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import bench
from bench.errors import BenchError

_PACKAGES = ("torch", "torchvision", "optuna", "numpy", "mlflow")


def resolve_device(text: str, devices: int = 1, *, elsewhere: bool = False) -> torch.device:
    """The device of a specification; "auto" is CUDA where there is one.

    Args:
        text: The device.
        devices: How many of its kind one run uses.
        elsewhere: Whether the work is done on other machines, of which nothing is known here.

    Raises:
        BenchError: The device does not exist on this machine, or there are not so many; or "auto" would have to be
            decided for other machines.
    """
    if elsewhere and text == "auto":
        raise BenchError("which device a cluster has is not known here; say --device cpu or --device cuda")
    if elsewhere:
        return torch.device(text)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if text == "auto" else text)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        found = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise BenchError(f"device '{text}' is not there: this machine has {found}; use --device cpu or --device auto")
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise BenchError(
            f"--devices {devices}: this machine has {torch.cuda.device_count()} CUDA devices; use --devices "
            f"{torch.cuda.device_count()}, or --device cpu"
        )
    return device


def versions() -> dict[str, str]:
    """Versions of the harness, Python and the libraries that numbers depend on."""
    found = {"sbs-bench": bench.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor, memory and device."""
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


class PeakMemory:
    """Peak memory of a block in MB: of the device on CUDA, of the process elsewhere.

    Attributes:
        megabytes: Set when the block ends; `None` where the system does not tell.
    """

    megabytes: float | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak memory of the block."""
    peak = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.megabytes = torch.cuda.max_memory_allocated(device) / 1e6
        return
    resettable = _reset_process_peak()
    yield peak
    peak.megabytes = _process_peak() if resettable else None


def _reset_process_peak() -> bool:
    """Start the kernel's high-water mark anew (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _process_peak() -> float | None:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(kilobytes[0]) * 1024 / 1e6 if kilobytes else None
