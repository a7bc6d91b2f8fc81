"""Preparation of a run's networks for training: compiled or not, in single precision or in bfloat16.

Compilation fuses normalisation, activation, quantizer and gates into a few passes over memory. Results differ by
rounding only. On a CPU it needs a C++ compiler. It takes up to a minute for a new network, and some seconds for one in
the compiler's cache on this machine. If a network cannot be compiled, it is executed uncompiled, with one warning and a
note in the result.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench import replicas
from bench.spec.schema import Compile, Precision

_log = logging.getLogger(__name__)

_RECOMPUTE: dict[str, Any] = {"ban_recompute_used_far_apart": False}
"""Setting that lets the compiler recompute values in the backward pass also if they are used on both sides of a
reduction. By default it keeps every value that follows the statistics of a batch normalisation: half as many bytes
more. Some of these values are masks of one byte, which its kernels read slowly beside numbers of four bytes
(fine-tuning takes 1.5 × a plain step's time instead of 1.0 ×). If `ban_recompute_materialized_backward` is off as well,
the kept values shrink from 1.3 to 0.7 × those of a plain step, and steps take 2 % longer."""
_WORTH_COMPILING = {"cpu": 2e12, "cuda": 2e14}
"""Smallest number of multiplications in a stage for which compilation saves more time than it takes, by device. Two
cores need about two minutes for so many multiplications, a GPU half a minute."""


class Forward:
    """Preparation of one run's networks for training.

    Args:
        compiling: "on", "off", or "auto", which compiles in stages that are long enough.
        precision: Precision of the forward pass; parameters, losses and quantizers stay in single precision.
        device: Device of the networks.

    Attributes:
        record: Precision, compiled stages and time of compilation, for the result.
    """

    def __init__(self, compiling: Compile, precision: Precision, device: torch.device) -> None:
        self._compiling = compiling
        self._precision = precision
        self._device = device
        self.record: dict[str, Any] = {"precision": precision, "compiled": [], "compile_seconds": 0.0}

    def prepare(self, network: nn.Module, stage: str, multiplications: float | None) -> Callable[..., Any]:
        """Return the function to call for a network's forward pass, with the same arguments and results.

        Args:
            network: Network; its parameters stay those of the module.
            stage: Name of the stage, for messages and the record.
            multiplications: Number of multiplications in the whole stage; in mode "auto" short stages are not compiled.
                `None` never compiles, e.g. for a float network, where nothing is gained.
        """
        call: Callable[..., Any] = network
        if self._to_compile(stage, multiplications):
            call = _Compiled(network, stage, self.record)
        return call if self._precision == "fp32" else self._in_low_precision(call)

    def _to_compile(self, stage: str, multiplications: float | None) -> bool:
        if self._compiling == "off" or multiplications is None:
            return False
        if self._compiling == "auto" and multiplications < _WORTH_COMPILING[self._device.type]:
            return False
        reason = _obstacle(self._device)
        if reason is not None:
            _fall_back(self.record, stage, reason)
        return reason is None

    def _in_low_precision(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with torch.autocast(self._device.type, torch.bfloat16):
                result = call(*args)
            return _in_single_precision(result)

        return run


PLAIN = Forward("off", "fp32", torch.device("cpu"))
"""Preparation that leaves networks unchanged."""


class _Compiled:
    """A network that is compiled when it is first called, and executed uncompiled if that fails."""

    def __init__(self, network: nn.Module, stage: str, record: dict[str, Any]) -> None:
        self._network, self._stage, self._record = network, stage, record
        self._call: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        return self._compile(args) if self._call is None else self._call(*args)

    def _compile(self, args: tuple[Any, ...]) -> Any:
        """Compile the network and call it. If compilation fails, nothing has been executed yet."""
        from torch._dynamo.exc import TorchDynamoException
        from torch._functorch import config as autograd
        from torch._inductor import config as compiler

        _log.info("compiling the network of the %s", self._stage)
        compiled = torch.compile(self._network, fullgraph=True, dynamic=False)
        began = time.perf_counter()
        try:
            # The CPU's own list of instructions is trusted: testing them takes about 12 seconds per process.
            with autograd.patch(**_RECOMPUTE), compiler.patch({"cpp.vec_isa_ok": True}):
                result = compiled(*args)
        except TorchDynamoException as error:
            _fall_back(self._record, self._stage, str(error).strip().splitlines()[0])
            self._call = self._network
            return self._call(*args)
        self._record["compile_seconds"] += time.perf_counter() - began
        self._record["compiled"].append(self._stage)
        self._call = compiled
        return result


def _fall_back(record: dict[str, Any], stage: str, reason: str) -> None:
    record["not_compiled"] = reason
    _log.warning("the network of the %s is not compiled: %s", stage, reason)


def _obstacle(device: torch.device) -> str | None:
    """Return the reason why networks cannot be compiled here; `None` if they can."""
    if replicas.count() > 1:
        return "one run on several devices is not compiled"
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        return f"there is no C++ compiler '{compiler}'; install one, or set CXX"
    return None


def _in_single_precision(result: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(_in_single_precision(part) for part in result)
    if isinstance(result, Tensor) and result.dtype == torch.bfloat16:
        return result.float()
    return result
