"""Searches compute on the device of their task, which is shown without a GPU.

Tensors that are made without a device are on the CPU. On a GPU they would meet the tensors of the task there, and the
operation would fail. Here the task is on the CPU, and such tensors are made on the device `meta` instead, so that the
same operations fail. Not changed are constructors of modules, which are moved as a whole, models and data, the agent of
HAQ, which learns on the CPU, and random numbers, which come from generators of the CPU on every device.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import bench
import methods
from bench.api import Method, SearchJob, SearchResult
from bench.planning.methods import make_method
from bench.plugins import entry_points
from bench.plugins.registry import load
from tests.bench.diagnostics.validation.test_suite import LIGHT

FACTORIES = (torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones, torch.tensor, torch.zeros)
ROOTS = tuple(str(Path(str(package.__file__)).parent) for package in (bench, methods))
ELSEWHERE = tuple(str(Path(ROOTS[0]).parent / name) for name in ("bench/data", "bench/models", "methods/shared/agent"))


class WithoutDevice(TorchFunctionMode):
    """Makes tensors without a device where they cannot meet those of the task.

    Args:
        roots: Folders of the code whose tensors are concerned.
    """

    def __init__(self, roots: tuple[str, ...] = ROOTS) -> None:
        super().__init__()
        self.roots = roots

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        keywords = dict(keywords or {})
        if function in FACTORIES and not keywords.keys() & {"device", "generator"} and self._is_concerned():
            keywords["device"] = "meta"
        return function(*arguments, **keywords)

    def _is_concerned(self) -> bool:
        code = sys._getframe(2).f_code
        inside = code.co_filename.startswith(self.roots) and not code.co_filename.startswith(ELSEWHERE)
        return inside and code.co_name != "__init__"


def low_knobs(method: Method) -> dict[str, float]:
    return {name: knob.low for name, knob in method.knobs("hinge").items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(entry_points.available("methods")))
def test_no_tensor_of_a_search_is_left_on_the_default_device(make_job: Callable[..., SearchJob], name: str) -> None:
    method = make_method(name, LIGHT.get(name, {}))
    with WithoutDevice():
        result = method.search(make_job(knobs=low_knobs(method)))
    assert all(value.device.type == "cpu" for value in result.state.values())


class Forgetful(load("methods", "fixed")):  # type: ignore[misc]
    """A method that adds numbers of the default device to a weight."""

    def search(self, job: SearchJob) -> SearchResult:
        result: SearchResult = super().search(job)
        first: Tensor = next(iter(result.state.values()))
        first + torch.zeros(first.shape)
        return result


def test_a_forgotten_device_is_noticed(make_job: Callable[..., SearchJob]) -> None:
    with WithoutDevice((*ROOTS, str(Path(__file__)))), pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        Forgetful().search(make_job())


def test_modules_are_moved_as_a_whole() -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("ones", torch.ones(2))

    with WithoutDevice((str(Path(__file__)),)):
        assert Module().ones.device.type == "cpu"
