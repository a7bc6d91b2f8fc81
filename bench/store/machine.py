"""Devices, hardware, library versions and peak memory of the machine that makes a result."""

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
    """Return the device of a specification; "auto" means CUDA if the machine has it.

    Args:
        text: Device as the specification names it.
        devices: Number of such devices that one run uses.
        elsewhere: Whether the work is done on other machines, about which this one knows nothing.

    Raises:
        BenchError: This machine lacks the device or has too few of them, or "auto" was asked for other machines.
    """
    if elsewhere and text == "auto":
        raise BenchError("the devices of a cluster are not known here; add --device cpu or --device cuda")
    if elsewhere:
        return torch.device(text)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if text == "auto" else text)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        present = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise BenchError(
            f"device '{text}' does not exist: this machine has {present}; use --device cpu or --device auto"
        )
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise BenchError(
            f"--devices {devices}: this machine has {torch.cuda.device_count()} CUDA devices; use --devices "
            f"{torch.cuda.device_count()}, or --device cpu"
        )
    return device


_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def versions() -> dict[str, str]:
    """Return the versions of the harness, of Python, and of the libraries that results depend on."""
    installed = {"sbs-bench": bench.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def hardware(device: torch.device) -> dict[str, Any]:
    """Describe processor and device, for records."""
    description: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        description["gpu"] = torch.cuda.get_device_name(device)
    return description


def instructions() -> list[str]:
    """Return which instructions for integer arithmetic the processor has, on which the speed of runtimes depends."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return [platform.processor()]
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return [flag for flag in _FLAGS if flag in line.split()]


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
    """Peak memory of a block: of the device on CUDA, of the process elsewhere.

    Attributes:
        megabytes: Peak in MB, set when the block ends; `None` if the system does not report it.
    """

    megabytes: float | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak memory of a `with` block."""
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
    """Reset the kernel's record of the process's peak memory; return whether the system can do that (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _process_peak() -> float | None:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(kilobytes[0]) * 1024 / 1e6 if kilobytes else None
