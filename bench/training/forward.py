"""How the networks of a run are carried out in training: compiled or as they stand, in single precision or in bfloat16.

Compiling a network fuses normalisation, activation, quantizer and gates into a few passes over memory; nothing else
about it changes, and it rounds a little differently. It takes a C++ compiler on a processor, most of a minute for a
network that is new, some seconds for one that the compiler's cache on this machine knows. Where it cannot be done the
network is carried out as it stands, which is said once and noted in the result.
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
"""What the compiler may compute again in the backward pass: also numbers with uses on both sides of a reduction. By
itself it keeps all that follows the statistics of a batch normalisation: half as many bytes again, and some of them
masks of one byte, which its kernels are slow to read beside numbers of four (fine-tuning takes 1.5 in place of 1.0 ×).
With `ban_recompute_materialized_backward` off as well, what is kept falls from 1.3 to 0.7 × a plain step's, and steps
take 2 % longer."""
_WORTH_COMPILING = {"cpu": 2e12, "cuda": 2e14}
"""Multiplications of a stage. With fewer, a network that is new takes longer to compile than that saves: two cores take
some two minutes for so many, a card half a minute."""


class Forward:
    """Prepares networks of one run for training.

    Args:
        compiling: "on", "off", or "auto": where a stage is long enough to be worth it.
        precision: Of the forward pass; parameters, losses and quantizers stay in single precision.
        device: Where the networks live.

    Attributes:
        record: What was done, for the result.
    """

    def __init__(self, compiling: Compile, precision: Precision, device: torch.device) -> None:
        self._compiling = compiling
        self._precision = precision
        self._device = device
        self.record: dict[str, Any] = {"precision": precision, "compiled": [], "compile_seconds": 0.0}

    def of(self, network: nn.Module, stage: str, multiplications: float | None) -> Callable[..., Any]:
        """The network as it is to be called in training, with the same arguments and results.

        Args:
            network: Its parameters stay those of the module.
            stage: For messages and the record.
            multiplications: Of the whole stage; short ones are not compiled in mode "auto". `None` where there is
                nothing to gain, as in a float network.
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
"""Networks as they stand."""


class _Compiled:
    """A network that is compiled when it is first called, and carried out as it stands where that fails."""

    def __init__(self, network: nn.Module, stage: str, record: dict[str, Any]) -> None:
        self._network, self._stage, self._record = network, stage, record
        self._call: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        return self._compile(args) if self._call is None else self._call(*args)

    def _compile(self, args: tuple[Any, ...]) -> Any:
        """The first call. Nothing has been changed when it fails: compiling comes before carrying out."""
        from torch._dynamo.exc import TorchDynamoException
        from torch._functorch import config as autograd
        from torch._inductor import config as compiler

        _log.info("compiling the network of the %s", self._stage)
        compiled = torch.compile(self._network, fullgraph=True, dynamic=False)
        began = time.perf_counter()
        try:
            # What the processor says of itself is believed: to try its instructions takes a dozen seconds a process.
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
    """Why nothing can be compiled here, if that is so."""
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
