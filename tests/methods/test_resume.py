"""Searches that are interrupted after any epoch and go on from their checkpoints, bit for bit."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.execution.context import Curves
from bench.method import Method, SearchJob, SearchResult
from bench.spec.schema import SearchSchedule
from bench.training import checkpoints as module
from bench.training.checkpoints import Checkpoints
from methods.bayesian_bits import BayesianBits
from methods.djpq import Djpq
from methods.dnas import Dnas
from methods.dq import Dq
from methods.evopress import Evopress, EvopressOptions
from methods.fliqs import Fliqs
from methods.geta import Geta
from methods.haq import Haq, HaqOptions
from methods.hesso import Hesso
from methods.joint_mps import JointMps
from methods.multi_path import MultiPath
from methods.sbs import Sbs, SbsOptions, SbsP
from methods.sbs_extended import SbsExtended, SbsExtendedOptions
from methods.two_stage import PruneThenQuantize, QuantizeThenPrune

EPOCHS = {"prune_then_quantize": 4, "quantize_then_prune": 4}
"""Two for each stage; other searches have three."""
KNOBS = {"strength": 0.3, "first_strength": 2.0, "split": 0.5, "headroom": 0.0}
METHODS: Mapping[str, Callable[[], Method]] = {
    "sbs alternating": Sbs,
    "sbs joint": lambda: Sbs(SbsOptions(gate_training="joint", final_gates="last")),
    "sbs probing": lambda: SbsExtended(SbsExtendedOptions(gate_probes=0.3)),
    "sbs_p": SbsP,
    "multi_path": MultiPath,
    "dnas": Dnas,
    "dq": Dq,
    "djpq": Djpq,
    "fliqs": Fliqs,
    "joint_mps": JointMps,
    "hesso": Hesso,
    "geta": Geta,
    "haq": lambda: Haq(HaqOptions(episodes=3, warmup_episodes=1)),
    "evopress": lambda: Evopress(EvopressOptions(generations=3, offspring=4, survivors=(1,), images=(8,), initial=4)),
    "bayesian_bits": BayesianBits,
    "prune_then_quantize": PruneThenQuantize,
    "quantize_then_prune": QuantizeThenPrune,
}


class Interruption(BaseException):
    """What the tests put in place of a process that is gone."""


class Watcher:
    """Interrupts at the end of an epoch, before its checkpoint is written."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.epochs = 0

    def epoch(self, phase: str, figures: Mapping[str, float]) -> None:
        self.epochs += 1
        if self.epochs == self.at:
            raise Interruption


Outcome = tuple[SearchResult, list[dict[str, Any]], int]


def search(method: Method, job: SearchJob, folder: Path, *, interrupted_at: int | None = None) -> Outcome:
    """A search with checkpoints after every epoch, as a new process makes it; with its curves and its epochs."""
    watcher = Watcher(interrupted_at)
    curves = Curves(watcher)
    kept = Checkpoints(folder, {"curves": curves})
    torch.manual_seed(5)
    result = method.search(replace(job, report=curves.reporter("search"), stage=kept.stage))
    return result, curves.entries, watcher.epochs


def assert_same(found: Outcome, expected: Outcome) -> None:
    (one, curves, _), (other, expected_curves, _) = found, expected
    assert curves == expected_curves
    assert (one.policy, one.clips, one.decisions) == (other.policy, other.clips, other.decisions)
    assert json.dumps(one.record) == json.dumps(other.record)
    assert one.state.keys() == other.state.keys()
    assert one.quantizers.keys() == other.quantizers.keys()
    for mine, expected_values in ((one.state, other.state), (one.quantizers, other.quantizers)):
        for name, value in expected_values.items():
            assert torch.equal(mine[name], value), name


@pytest.mark.parametrize(
    ("name", "match"),
    [(name, "hinge") for name in METHODS]
    + [(name, "dual") for name in METHODS if name not in {"haq", "evopress", "fliqs", "hesso"}],
)
def test_a_search_goes_on_from_any_epoch_as_if_nothing_had_been(
    make_job: Callable[..., SearchJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, match: str
) -> None:
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.0)
    method, epochs = METHODS[name](), EPOCHS.get(name, 3)
    job = make_job(match=match, knobs=KNOBS, schedule=SearchSchedule(epochs=epochs, batch_size=96))
    expected = search(method, job, tmp_path / "whole")
    assert [entry["epoch"] for entry in expected[1]] in ([1, 2, 3], [1, 2, 1, 2])
    for epoch in range(1, epochs + 1):
        folder = tmp_path / f"interrupted {epoch}"
        with pytest.raises(Interruption):
            search(method, job, folder, interrupted_at=epoch)
        found = search(method, job, folder)
        assert_same(found, expected)
        assert found[2] == epochs - (epoch - 1)  # epochs with a checkpoint were not repeated
    again = search(method, job, tmp_path / "whole")  # interrupted after its last epoch
    assert_same(again, expected)
    assert again[2] == 0


@pytest.mark.parametrize("name", ["sbs alternating", "multi_path", "haq", "quantize_then_prune"])
def test_a_search_goes_on_from_rare_checkpoints_and_after_many_interruptions(
    make_job: Callable[..., SearchJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each attempt gets one epoch further; only every second epoch has a checkpoint."""
    ticks = count()

    def steady() -> float:
        return float(next(ticks) // 2)

    monkeypatch.setattr(module, "INTERVAL_SECONDS", 1.0)
    method, epochs = METHODS[name](), EPOCHS.get(name, 3)
    job = make_job(knobs=KNOBS, schedule=SearchSchedule(epochs=epochs, batch_size=96))
    expected = search(method, job, tmp_path / "whole")
    monkeypatch.setattr(module.time, "monotonic", steady)
    done = []
    for at in (2, 3, 2):
        try:
            done.append(search(method, job, tmp_path / "often", interrupted_at=at))
        except Interruption:
            continue
    found = search(method, job, tmp_path / "often")
    assert found[2] < epochs
    for outcome in (*done, found):
        assert_same(outcome, expected)


def test_another_start_gives_another_search(
    make_job: Callable[..., SearchJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the tests above could not fail."""
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.0)
    job = make_job(knobs=KNOBS, schedule=SearchSchedule(epochs=2, batch_size=96))
    one = search(Sbs(), job, tmp_path / "one")
    other = search(Sbs(), replace(job, seed=1), tmp_path / "other")
    with pytest.raises(AssertionError):
        assert_same(one, other)
