"""Leases of GPUs: which process computes on which GPUs, over all commands that share a store."""

import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.errors import BenchError
from bench.store.leases import Heartbeat, Lease, Leases, ignore_loss

_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuRequest:
    """The GPUs that a run needs.

    Attributes:
        device: Device of the specification.
        gpus: Number of different GPUs, all on one machine.
        runs_per_gpu: Number of runs that may share a GPU.
    """

    device: str
    gpus: int = 1
    runs_per_gpu: int = 1


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as entries for CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    named = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    return named[:count] if named else [str(index) for index in range(count)]


def gpus_of_device(device: str, gpus: list[str]) -> list[str]:
    """Return the GPUs that a device allows: one for "cuda:1", all of them for "cuda"."""
    _, _, number = device.partition(":")
    return gpus[int(number) : int(number) + 1] if number else gpus


@contextmanager
def gpu_lease(leases: Leases, request: GpuRequest, title: str, stop: Callable[[], bool]) -> Iterator[str | None]:
    """Hold a slot on each GPU that a run needs during a `with` block; wait until enough slots are free.

    Args:
        leases: Leases of the store.
        request: GPUs that are needed.
        title: Description of the work, for the lease files.
        stop: Function that returns whether to give up waiting.

    Yields:
        The GPUs, as a value for CUDA_VISIBLE_DEVICES; `None` when none are needed, or when the study stops.

    Raises:
        BenchError: This machine has too few GPUs.
    """
    if not request.device.startswith("cuda"):
        yield None
        return
    gpus = gpus_of_device(request.device, visible_gpus())
    if len(gpus) < request.gpus:
        raise BenchError(
            f"'{request.device}' with --devices {request.gpus} does not exist: {socket.gethostname()} has "
            f"{len(visible_gpus())} CUDA devices; use fewer, or --device cpu"
        )
    while not stop():
        held = _all_or_none(leases, gpus, request, title)
        if held:
            with ExitStack() as heartbeats:
                for lease in held.values():  # a lost lease means that two processes share a GPU for a while
                    heartbeats.enter_context(Heartbeat(lease, ignore_loss))
                yield ",".join(held)
            return
        time.sleep(_PAUSE_SECONDS * random.uniform(1, 2))  # noqa: S311  (two that collide should not do so again)
    yield None


def _all_or_none(leases: Leases, gpus: list[str], request: GpuRequest, title: str) -> dict[str, Lease]:
    """Take a slot on as many GPUs as needed, or none at all, so that no process waits while it holds a GPU.

    Processes that need several GPUs take turns; otherwise two of them might hold half of the GPUs each, for ever.

    Returns:
        The leases by GPU; empty when not enough slots are free.
    """
    if request.gpus == 1:
        return _take_free_slots(leases, gpus, request, title)
    turn = leases.acquire(f"cards-{socket.gethostname()}", title)
    if turn is None:
        return {}
    with turn:
        held = _take_free_slots(leases, gpus, request, title)
    if len(held) == request.gpus:
        return held
    for lease in held.values():
        lease.release()
    return {}


def _take_free_slots(leases: Leases, gpus: list[str], request: GpuRequest, title: str) -> dict[str, Lease]:
    """Take free slots on different GPUs, at most as many as needed; unused GPUs come first."""
    held: dict[str, Lease] = {}
    for slot in range(request.runs_per_gpu):
        for gpu in gpus:
            if gpu in held:
                continue
            entry = gpu.replace("/", "_")  # parts of a GPU may have slashes in their names
            lease = leases.acquire(f"card-{socket.gethostname()}-{entry}-{slot}", title)
            if lease is not None:
                held[gpu] = lease
            if len(held) == request.gpus:
                return held
    return held
