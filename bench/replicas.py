"""Data parallelism: how the replicas of one run are started, and how they combine what depends on a batch.

A run on N devices consists of N processes that do the same work, each on its own share of every batch. What depends on
a batch is combined by the functions of this module: gradients, figures, gate metrics, statistics of norms. Everything
else (weights, random numbers, decisions) is computed by every replica, with the same result.

In an ordinary process, without replicas, these functions do nothing. Gradients are averaged after the backward pass, in
one all-reduce, and not by a wrapper around the network such as DistributedDataParallel. The reason is that thresholds
of SBS and logits of DNAS get a part of their gradient from a cost term. The cost term is computed outside any module's
forward pass, where a wrapper does not see it.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.errors import BenchError

_log = logging.getLogger(__name__)

Start = Literal["fork", "forkserver"]

_PATIENCE = timedelta(minutes=10)
"""Time limit for a replica that does not answer. The parent notices at once if one dies."""
_PRELOADED = (
    "torch",
    "torch._inductor",
    "lightning_fabric",
    "bench.execution.replica_worker",
    "bench.execution.stages",
)
_OF_OTHER_LAUNCHERS = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE")
_DRIFT = 1e-4
"""Largest relative difference between replicas. Different rounding stays below 1e-6; a gradient that was not averaged
points in another direction."""
_state = SimpleNamespace(alone=0, launching=False)


# --- number and rank -----------------------------------------------------------------------------------------------


def count() -> int:
    """Return the number of replicas; 1 in an ordinary process and inside `alone`."""
    if _state.alone or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def rank() -> int:
    """Return the number of this replica, counted from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Return whether this replica is the one that writes files; the answer is the same inside `alone`."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Let each replica work for itself during a `with` block, on the same images as one process would.

    Use it for passes over `TaskData.calibration_batches`, which are not divided. Call `share` afterwards.
    """
    _state.alone += 1
    try:
        yield
    finally:
        _state.alone -= 1


# --- combining -----------------------------------------------------------------------------------------------------


def mine(batch: Tensor) -> Tensor:
    """Return this replica's share of a batch: every `count()`-th entry of the first dimension."""
    return batch if count() == 1 else batch[rank() :: count()]


@torch.no_grad()
def total(values: Tensor) -> Tensor:
    """Return the sum over replicas, for tensors of any shape; it has no gradient."""
    if count() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def mean(values: Tensor, weight: int = 1) -> Tensor:
    """Return the mean over replicas, for tensors of any shape; it has no gradient.

    Args:
        values: This replica's values; ignored if the weight is 0.
        weight: Number of entries of the batch that the values are about, if shares differ in size.
    """
    if count() == 1:
        return values
    own = values.detach() if weight else torch.zeros_like(values)
    sums = total(torch.cat([own.flatten() * weight, own.new_full((1,), float(weight))]))
    return (sums[:-1] / sums[-1]).view_as(values)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient that exists by its mean over replicas, in one all-reduce; call it after `backward`.

    If shares have the same size and the loss is a mean over the batch, the mean is the gradient of the whole batch. A
    term that does not depend on the batch, such as a cost, has the same gradient on all replicas and keeps it.
    """
    if count() == 1:
        return
    _in_one(_summed, [parameter.grad for parameter in parameters if parameter.grad is not None])


@torch.no_grad()
def share(tensors: Iterable[Tensor]) -> None:
    """Set tensors to those of the first replica, in place: GPUs of different models do not round alike."""
    if count() > 1:
        _in_one(_from_first, list(tensors))


def share_state(model: nn.Module) -> None:
    """Set all parameters and buffers of a network to those of the first replica."""
    share([*model.parameters(), *model.buffers()])


@torch.no_grad()
def check_alike(what: str, choice: str, tensors: Iterable[Tensor]) -> None:
    """Make sure that all replicas have the same result.

    Args:
        what: Owner of the result, for the message.
        choice: Text that must be the same on all replicas.
        tensors: Tensors that must be the same, up to rounding.

    Raises:
        RuntimeError: Results differ: a gradient or a statistic of a batch was not combined.
    """
    if count() == 1:
        return
    if not _same(choice) or any(_drifted(tensor) for tensor in tensors):
        raise RuntimeError(
            f"the replicas of {what} came to different results; a data-parallel method calls "
            "`replicas.average_gradients` after every backward pass (docs/adding-a-method.md)"
        )


def check_same(what: str, value: object) -> None:
    """Make sure that all replicas have the same value.

    Args:
        what: Name of the value, for the message.
        value: This replica's value.

    Raises:
        RuntimeError: Values differ.
    """
    if count() > 1 and not _same(value):
        raise RuntimeError(f"the replicas of this run found different {what}; run the study's command again")


def _same(value: object) -> bool:
    values: list[object] = [None] * count()
    dist.all_gather_object(values, value)
    return all(other == values[0] for other in values)


def _drifted(tensor: Tensor) -> bool:
    """Return whether a tensor differs from the first replica's on any replica; all replicas get the same answer."""
    own = tensor.detach().to(torch.float64)
    first = own.clone()
    dist.broadcast(first, src=0)
    far = (own - first).abs() > _DRIFT * first.abs().max() if own.numel() else own
    return bool(total(far.any().to(torch.float64)))


def _in_one(reduce: Callable[[Tensor], None], tensors: list[Tensor]) -> None:
    """Apply a collective operation to tensors in place, after joining them to one tensor of each type."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        reduce(flat)
        for tensor, part in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def _summed(flat: Tensor) -> None:
    dist.all_reduce(flat)
    flat.div_(count())


def _from_first(flat: Tensor) -> None:
    dist.broadcast(flat, src=0)


# --- starting ------------------------------------------------------------------------------------------------------


class ReplicaLostError(Exception):
    """A replica died without reporting a result.

    Attributes:
        index: Number of the replica.
        exit_code: Exit status, or the negative number of the signal that ended it.
    """

    def __init__(self, index: int, exit_code: int) -> None:
        super().__init__(f"replica {index} died (exit status {exit_code})")
        self.index = index
        self.exit_code = exit_code


def check_available() -> None:
    """Make sure that replicas can be started.

    Raises:
        BenchError: Lightning Fabric is not installed.
    """
    if find_spec("lightning_fabric") is None:
        raise BenchError("--devices above 1 needs Lightning Fabric; install it with `pip install 'sbs-bench[ddp]'`")


def start_method(device: str) -> Start:
    """Return the way in which replicas are started: CUDA does not survive a fork; elsewhere a fork is cheapest."""
    return "forkserver" if device.startswith("cuda") else "fork"


def launch(device: str, devices: int, function: Callable[..., None], *arguments: Any, start: Start) -> None:
    """Run `function(device, *arguments)` in several processes that form a process group, and wait for them.

    The processes stay in the session of this process and end when it ends. Call it in the main thread.

    Args:
        device: "cpu" or "cuda".
        devices: Number of processes.
        function: Function at the top level of a module; it gets the replica's own device.
        arguments: Further arguments, which are pickled.
        start: Start method; see `start_method`. Before "fork", this process must have computed with one thread only,
            because replicas would lack its pool of threads.

    Raises:
        BenchError: Lightning Fabric is not installed.
        ReplicaLostError: A replica died; all others have ended by then.
        RuntimeError: The process group could not be formed, or the function raised an exception.
    """
    check_available()
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    if start == "forkserver":
        multiprocessing.get_context(start).set_forkserver_preload(list(_PRELOADED))
    before = set(multiprocessing.active_children())
    _state.launching = True
    try:
        with _own_environment():
            _fabric(device, devices, start).launch(_begin, function, arguments)
    except ProcessExitedException as error:
        raise ReplicaLostError(int(error.error_index), int(error.exit_code)) from error
    except ProcessRaisedException as error:
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error
    finally:
        _state.launching = False
        _end(set(multiprocessing.active_children()) - before)


def _fabric(device: str, devices: int, start: Start) -> Any:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    # Stated explicitly, because Fabric would otherwise join the scheduler of a cluster (SLURM) if it sees one.
    environment = LightningEnvironment()
    strategy = DDPStrategy(start_method=start, timeout=_PATIENCE, cluster_environment=environment)
    return Fabric(accelerator=device, devices=devices, strategy=strategy)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Hide variables of other launchers during a `with` block, and remove Fabric's own after it."""
    before = {name: os.environ.pop(name) for name in _OF_OTHER_LAUNCHERS if name in os.environ}
    try:
        yield
    finally:
        for name in _OF_OTHER_LAUNCHERS:
            os.environ.pop(name, None)
        os.environ.update(before)


def _begin(fabric: Any, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Live the whole life of a replica."""
    threading.Thread(target=_die_with_parent, name="parent", daemon=True).start()
    function(fabric.device, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def _obey_sigterm() -> None:
    """Let a replica that was just forked end at once on SIGTERM: inside a collective no handler would be run."""
    if _state.launching:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_obey_sigterm)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _end(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
