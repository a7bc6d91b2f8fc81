"""Data parallelism: what the replicas of one run tell each other, and how they are started.

One run on N devices is N processes that do the same thing, each on its own share of every batch. Whatever depends
on a batch is brought together here: gradients, figures, gate metrics, statistics of normalisations. Everything else
(weights, random draws, decisions) every replica computes for itself, and it comes out the same everywhere.

Without replicas, in an ordinary process, all of this does nothing. Gradients are averaged after the backward pass, in
one all-reduce, and not through a wrapper around the network such as DistributedDataParallel: thresholds of SBS and
logits of DNAS get a part of their gradient from a cost term that is computed outside any module's forward pass,
which a wrapper does not see.
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
"""For a replica that does not answer. One that dies is noticed at once, by its parent."""
_PRELOADED = (
    "torch",
    "torch._inductor",
    "lightning_fabric",
    "bench.execution.replica_worker",
    "bench.execution.stages",
)
_OF_OTHER_LAUNCHERS = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE")
_DRIFT = 1e-4
"""Relative; a share's own gradient is another direction altogether, rounding differently is below 1e-6."""
_state = SimpleNamespace(alone=0, launching=False)


# --- who is there --------------------------------------------------------------------------------------------------


def count() -> int:
    """How many replicas work together; 1 in an ordinary process and inside `alone`."""
    if _state.alone or not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size()


def rank() -> int:
    """The number of this replica among those that work together, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one of its replicas that writes files; also inside `alone`."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """In the block each replica works for itself: all do the same on the same images, as one process would.

    For passes over `TaskData.calibration_batches`, which are not divided. Follow it by `share`.
    """
    _state.alone += 1
    try:
        yield
    finally:
        _state.alone -= 1


# --- what they tell each other -------------------------------------------------------------------------------------


def mine(batch: Tensor) -> Tensor:
    """This replica's share of a batch: every `count()`-th entry of the first dimension."""
    return batch if count() == 1 else batch[rank() :: count()]


@torch.no_grad()
def total(values: Tensor) -> Tensor:
    """The sum over replicas, any shape; without gradient."""
    if count() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def mean(values: Tensor, weight: int = 1) -> Tensor:
    """The mean over replicas, any shape; without gradient.

    Args:
        values: A replica's own; ignored where the weight is 0.
        weight: How many entries of the batch they stand for, where shares differ in size.
    """
    if count() == 1:
        return values
    own = values.detach() if weight else torch.zeros_like(values)
    sums = total(torch.cat([own.flatten() * weight, own.new_full((1,), float(weight))]))
    return (sums[:-1] / sums[-1]).view_as(values)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient that exists by its mean over replicas, in one all-reduce; call it after `backward`.

    With shares of the same size and a loss that is a mean over the batch this is the gradient of the whole batch. A
    term that does not depend on the batch, such as a cost, is the same on all replicas and stays what it is.
    """
    if count() == 1:
        return
    _in_one(_summed, [parameter.grad for parameter in parameters if parameter.grad is not None])


@torch.no_grad()
def share(tensors: Iterable[Tensor]) -> None:
    """Set tensors to those of the first replica, in place: cards of different make do not round alike."""
    if count() > 1:
        _in_one(_from_first, list(tensors))


def share_state(model: nn.Module) -> None:
    """`share` all parameters and buffers of a network."""
    share([*model.parameters(), *model.buffers()])


@torch.no_grad()
def check_alike(what: str, choice: str, tensors: Iterable[Tensor]) -> None:
    """Make sure that replicas came to the same result.

    Args:
        what: Whose result it is, for the message.
        choice: A text that must be the same everywhere.
        tensors: Must be the same but for what rounding differently can explain.

    Raises:
        RuntimeError: They did not: a batch's gradient or statistic was not brought together.
    """
    if count() == 1:
        return
    if not _same(choice) or any(_drifted(tensor) for tensor in tensors):
        raise RuntimeError(
            f"the replicas of {what} came to different results; a data-parallel method calls "
            "`replicas.average_gradients` after every backward pass (docs/adding-a-method.md)"
        )


def check_same(what: str, value: object) -> None:
    """Make sure that replicas found the same thing.

    Raises:
        RuntimeError: They did not.
    """
    if count() > 1 and not _same(value):
        raise RuntimeError(f"the replicas of this run found different {what}; run the study's command again")


def _same(value: object) -> bool:
    values: list[object] = [None] * count()
    dist.all_gather_object(values, value)
    return all(other == values[0] for other in values)


def _drifted(tensor: Tensor) -> bool:
    """Whether a tensor differs from the first replica's, on any of them; the same answer everywhere."""
    own = tensor.detach().to(torch.float64)
    first = own.clone()
    dist.broadcast(first, src=0)
    far = (own - first).abs() > _DRIFT * first.abs().max() if own.numel() else own
    return bool(total(far.any().to(torch.float64)))


def _in_one(reduce: Callable[[Tensor], None], tensors: list[Tensor]) -> None:
    """Apply a collective to tensors in place, joined to one tensor of each type."""
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


# --- starting them -------------------------------------------------------------------------------------------------


class ReplicaLostError(Exception):
    """A replica ended without a word.

    Attributes:
        index: Its number.
        exit_code: As Python states it: negative for a signal.
    """

    def __init__(self, index: int, exit_code: int) -> None:
        super().__init__(f"replica {index} was lost (exit status {exit_code})")
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
    """How replicas are started: CUDA does not survive a fork; elsewhere a fork costs nothing."""
    return "forkserver" if device.startswith("cuda") else "fork"


def launch(device: str, devices: int, function: Callable[..., None], *arguments: Any, start: Start) -> None:
    """Run `function(device, *arguments)` in `devices` processes that make up a process group, and wait for them.

    They stay in the session of this process, and die when it dies. To be called in the main thread.

    Args:
        device: "cpu" or "cuda".
        devices: Their number.
        function: At the top level of a module; its device is the replica's own.
        arguments: Further arguments, sent through a pickle.
        start: See `start_method`; before "fork", this process must have computed with one thread only, because its
            pool of threads would be missing in the replicas.

    Raises:
        BenchError: Lightning Fabric is not installed.
        ReplicaLostError: A replica ended otherwise than by returning; no other one is left.
        RuntimeError: The process group did not come about, or the function raised.
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

    # Stated, since Fabric would otherwise join a cluster's scheduler (SLURM) when it sees one.
    environment = LightningEnvironment()
    strategy = DDPStrategy(start_method=start, timeout=_PATIENCE, cluster_environment=environment)
    return Fabric(accelerator=device, devices=devices, strategy=strategy)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Hide what other launchers put into the environment, and remove what Fabric does."""
    before = {name: os.environ.pop(name) for name in _OF_OTHER_LAUNCHERS if name in os.environ}
    try:
        yield
    finally:
        for name in _OF_OTHER_LAUNCHERS:
            os.environ.pop(name, None)
        os.environ.update(before)


def _begin(fabric: Any, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """The life of a replica."""
    threading.Thread(target=_die_with_parent, name="parent", daemon=True).start()
    function(fabric.device, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def _obey_sigterm() -> None:
    """Let a replica that was just forked end at once when asked to; inside a collective no handler would be run."""
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
