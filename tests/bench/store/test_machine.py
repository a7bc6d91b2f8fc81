import mmap
import platform

import pytest
import torch

from bench.errors import BenchError
from bench.store import machine
from bench.store.machine import hardware, peak_memory, resolve_device, versions

MEBIBYTES = 64
LITTLE = MEBIBYTES * 2**20 / 1e6


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.usefixtures("no_cuda")
def test_devices_without_cuda() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for text in ("cuda", "cuda:0"):
        with pytest.raises(BenchError, match=f"device '{text}' does not exist: this machine has no CUDA device; use"):
            resolve_device(text)


@pytest.mark.usefixtures("cuda")
def test_devices_with_cuda() -> None:
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(BenchError, match="device 'cuda:2' does not exist: this machine has 2 CUDA devices"):
        resolve_device("cuda:2")


def test_versions_name_what_numbers_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = versions()
    assert found.keys() == {"sbs-bench", "python", "torch", "torchvision", "optuna", "numpy", "mlflow"}
    assert found["python"] == platform.python_version()
    assert torch.__version__.startswith(found["torch"].partition("+")[0])
    monkeypatch.setattr(machine, "_PACKAGES", ("torch", "no-such-package"))
    assert versions().keys() == {"sbs-bench", "python", "torch"}


def test_hardware_names_the_device_and_the_threads() -> None:
    found = hardware(torch.device("cpu"))
    assert found["device"] == "cpu" and "gpu" not in found
    assert found["threads"] == torch.get_num_threads()
    assert found["processor"]


def test_peak_memory_is_that_of_the_block() -> None:
    def grow() -> None:
        with mmap.mmap(-1, MEBIBYTES * 2**20) as block:  # fresh from the system, never what others have freed
            for page in range(0, len(block), 4096):
                block[page] = 1

    with peak_memory(torch.device("cpu")) as before:
        pass
    with peak_memory(torch.device("cpu")) as during:
        grow()
    with peak_memory(torch.device("cpu")) as after:
        pass
    if before.megabytes is None or during.megabytes is None or after.megabytes is None:
        pytest.skip("this system does not let a process reset its peak")
    assert during.megabytes > before.megabytes + LITTLE / 2
    assert after.megabytes < during.megabytes - LITTLE / 2


def test_peak_memory_says_nothing_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_reset_process_peak", lambda: False)
    with peak_memory(torch.device("cpu")) as peak:
        pass
    assert peak.megabytes is None
