"""Gradients on bounds are the project's own: releases of PyTorch differ in that of its `clamp`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from bench.method import SearchJob
from methods.dq import DqQuantizer
from methods.edmips import Edmips
from methods.hawq import Hawq
from methods.shared.networks.stochastic_gates import BETA, GAMMA, ZETA, hard_concrete
from tests.methods.test_resume import KNOBS, METHODS

_CLIPS = {"clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max", "clamp_max_", "clip", "clip_"}


class _NoDifferentiatedClamp(TorchFunctionMode):
    """Fails where autograd would differentiate PyTorch's `clamp`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _CLIPS:
            self.seen += 1
            assert not result.requires_grad, f"{func.__name__} is differentiated; use bench.api.clamped"
        return result


@pytest.mark.parametrize("name", [*METHODS, "edmips", "hawq"])
def test_no_search_differentiates_the_clamp_of_torch(make_job: Callable[..., SearchJob], name: str) -> None:
    method = {**METHODS, "edmips": Edmips, "hawq": Hawq}[name]()
    with _NoDifferentiatedClamp() as mode:
        method.search(make_job(match="dual" if method.capabilities.budget == "strength" else "hinge", knobs=KNOBS))
    assert mode.seen


def test_the_watch_over_clamps_sees_them() -> None:
    with pytest.raises(AssertionError, match="clamp_min is differentiated"), _NoDifferentiatedClamp():
        torch.ones(1, requires_grad=True).clamp_min(0)


@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_a_calibrated_range_of_dq_learns_from_all_that_it_clips(kind: Any) -> None:
    """It lies exactly on its largest value, the number of levels times the step."""
    quantizer = DqQuantizer(bits=3, kind=kind, clip_init="paper")
    quantizer.calibrate(torch.tensor([0.3, 4.0]))
    limit = quantizer.clip_range.detach()
    assert limit == quantizer.clip_step * (3 if kind == "weight" else 7)
    quantizer(torch.tensor([0.3 * limit, 2 * limit])).backward(torch.tensor([0.0, 0.03125]))
    assert quantizer.clip_range.grad == 0.03125
    assert quantizer.clip_step.grad is not None


@pytest.mark.parametrize(("bound", "share"), [(0.0, -GAMMA / (ZETA - GAMMA)), (1.0, (1 - GAMMA) / (ZETA - GAMMA))])
def test_a_hard_concrete_gate_on_its_bound_still_learns(bound: float, share: float) -> None:
    """Several neighbouring numbers of single precision give a stretched sigmoid of exactly 0 or 1."""
    start = BETA * torch.logit(torch.tensor(share))
    phi = (start * (1 + 2.0**-23 * torch.arange(-64, 65))).requires_grad_()
    gates = hard_concrete(phi, torch.full_like(phi, 0.5))
    on_bound = torch.sigmoid(phi.detach() / BETA) * (ZETA - GAMMA) + GAMMA == bound
    assert on_bound.any()
    assert (torch.autograd.grad(gates.sum(), phi)[0][on_bound] > 0).all()
