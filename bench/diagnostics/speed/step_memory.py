"""Memory that the tensors of one training step occupy."""

import gc
from collections.abc import Iterable
from contextlib import ExitStack, suppress

import torch
from torch import Tensor, nn


class SavedTensors:
    """Count of the bytes that autograd saves for the backward pass, from `begin` to `end`.

    Every storage counts once; those of parameters do not count.
    """

    def __init__(self) -> None:
        self._block = ExitStack()
        self._storages: dict[int, torch.UntypedStorage] = {}

    def begin(self) -> None:
        """Begin to count."""
        self._block.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, _unchanged))

    def end(self) -> int:
        """Return the bytes since `begin`; 0 without a `begin`."""
        self._block.close()
        parameters = _storage_bytes(tensor for tensor in _living_tensors() if isinstance(tensor, nn.Parameter))
        count = sum(storage.nbytes() for address, storage in self._storages.items() if address not in parameters)
        self._storages.clear()
        return count

    def close(self) -> None:
        """Stop counting, and release all storages."""
        self._block.close()
        self._storages.clear()

    def _keep(self, tensor: Tensor) -> Tensor:
        # As long as a storage is referenced, no other one can get its address.
        storage = tensor.untyped_storage()
        self._storages.setdefault(storage.data_ptr(), storage)
        return tensor


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def living_bytes(excluded: Iterable[Tensor]) -> int:
    """Count the bytes of all tensors that Python references and of their gradients, without the excluded ones."""
    tensors = _living_tensors()
    gradients = [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    left_out = _storage_bytes(excluded)
    counts = _storage_bytes([*tensors, *gradients])
    return sum(count for address, count in counts.items() if address not in left_out)


def _living_tensors() -> list[Tensor]:
    """List all tensors of this process that Python references."""
    # Not `isinstance`, which asks objects for their class and so imports modules that are loaded lazily. Tensors of
    # other classes wrap plain ones.
    return [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]


def _storage_bytes(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Return the size in bytes of each of the tensors' storages, by its address."""
    sizes = {}
    for tensor in tensors:
        with suppress(RuntimeError):  # the compiler's placeholder tensors have no storage
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sizes
