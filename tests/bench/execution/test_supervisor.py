"""Processes that work on one unit each: every way in which one can end, with real ones."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from bench.execution import supervisor
from bench.execution.settings import Limits
from bench.execution.supervisor import supervise, work_in_this_process
from bench.execution.worker import HeldError
from bench.plugins import entry_points
from bench.plugins import registry as plugins
from bench.store.files import load_state
from bench.store.leases import start_time
from bench.store.outcomes import Outcome

PLUGINS = Path(__file__).parents[2] / "plugins"
MB = 1_000_000


@pytest.fixture
def misbehaving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with a method that misbehaves; processes find it as they find any other."""
    info = tmp_path / "site" / "misbehaving-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bench.methods]\nmisbehaving = misbehaving:Misbehaving\n")
    monkeypatch.syspath_prepend(info.parent)
    monkeypatch.syspath_prepend(PLUGINS)
    caches = (entry_points.available, plugins.load, plugins._source_hash)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


class Trouble:
    """One run of the method that misbehaves.

    Attributes:
        shop, unit, folder: Where it is worked on, it, and its folder.
    """

    def __init__(self, shop: Any, marks: Path) -> None:
        self.shop, self._marks = shop, marks
        (self.unit,) = shop.plan.runs
        self.folder: Path = shop.folder(self.unit)

    def supervise(self, stop: Callable[[], bool] = lambda: False, **limits: Any) -> Outcome:
        """Work on it in a process of its own."""
        return supervise(self.shop.request(self.unit), Limits(**limits), stop)

    @property
    def processes(self) -> list[int]:
        """The numbers of the processes that worked on it."""
        return [
            int((self._marks / f"attempt-{n}").read_text()) for n in range(len(list(self._marks.glob("attempt-*"))))
        ]

    @property
    def record(self) -> dict[str, Any]:
        """Its record."""
        record: dict[str, Any] = self.shop.record(self.unit)
        return record


@pytest.fixture
def trouble(tiny: SimpleNamespace, copied: Path, tmp_path: Path, misbehaving: None) -> Iterator[Callable[..., Trouble]]:
    """Makes a run that misbehaves in some way, in some of its attempts."""
    made: list[Trouble] = []

    def make(behaviour: str, times: int = 99) -> Trouble:
        folder = tmp_path / f"{behaviour} {times}"
        folder.mkdir()
        options = {"misbehaving": {"behaviour": behaviour, "times": times, "folder": str(folder)}}
        spec = tiny.spec({"methods": ["misbehaving"], "seeds": [0], "options": options})
        made.append(Trouble(tiny.Workshop(spec, copied), folder))
        return made[-1]

    yield make
    for each in made:
        assert list(each.shop.study_run.leases.all()) == []
        assert [pid for pid in each.processes if pid != os.getpid() and start_time(pid) is not None] == []


def assert_same(one: Trouble, other: Trouble) -> None:
    """Both runs have the same numbers and, bit by bit, the same network."""
    assert one.record["metrics"] == other.record["metrics"]
    states = [load_state(each.folder / "network.pt") for each in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_a_process_gives_the_numbers_that_this_one_gives(trouble: Callable[..., Trouble]) -> None:
    other, here = trouble("print"), trouble("nothing")
    assert other.supervise() == Outcome(status="done")
    assert work_in_this_process(here.shop.request(here.unit)).status == "done"
    assert_same(other, here)
    (pid,) = other.processes
    assert pid != os.getpid()
    assert other.record["attempt"] == 1
    said = (other.folder / "output.log").read_text().splitlines()
    assert "this is said in a process of its own" in said and "and this is an error" in said
    assert not (here.folder / "output.log").exists()


def test_an_exception_is_a_failure_with_its_traceback_and_is_not_repeated(trouble: Callable[..., Trouble]) -> None:
    run = trouble("raise")
    outcome = run.supervise()
    assert (run.record["status"], run.record["reason"]) == (outcome.status, outcome.reason)
    assert outcome.status == "failed"
    assert re.fullmatch(r"ValueError: it was told to \(.*misbehaving\.py:\d+\)", outcome.reason)
    trace = (run.folder / "error.txt").read_text()
    assert trace.startswith("Traceback") and "misbehaving.py" in trace
    assert len(run.processes) == 1


def test_a_loss_that_is_no_number_diverges(trouble: Callable[..., Trouble]) -> None:
    run = trouble("diverge")
    outcome = run.supervise()
    assert outcome.status == run.record["status"] == "diverged"
    assert outcome.reason.startswith("the training loss became")
    assert len(run.processes) == 1


def test_over_its_time_a_process_is_ended(trouble: Callable[..., Trouble]) -> None:
    trouble("nothing").supervise()  # from here on processes start at once
    run = trouble("sleep")
    began = time.monotonic()
    assert run.supervise(seconds=6) == Outcome(status="timeout", reason="not done after 6 s")
    assert time.monotonic() - began < 60
    assert (run.record["status"], run.record["reason"]) == ("timeout", "not done after 6 s")
    assert len(run.processes) == 1


def test_over_its_memory_a_process_is_ended(trouble: Callable[..., Trouble]) -> None:
    run = trouble("memory")
    outcome = run.supervise(memory_bytes=1200 * MB)
    assert outcome.status == run.record["status"] == "oom"
    assert outcome.reason.startswith("out of memory: 1.") and outcome.reason.endswith("GB used, 1.20 GB allowed")
    assert len(run.processes) == 1
    assert trouble("nothing").supervise(memory_bytes=4000 * MB, seconds=600).status == "done"


@pytest.mark.parametrize("behaviour", ["kill", "terminate", "exit"])
def test_a_process_that_is_lost_once_costs_no_more_than_its_time(
    trouble: Callable[..., Trouble], behaviour: str
) -> None:
    run, calm = trouble(behaviour, 1), trouble("nothing")
    assert run.supervise() == calm.supervise() == Outcome(status="done")
    assert len(run.processes) == 2
    assert run.record["attempt"] == 2
    assert_same(run, calm)


@pytest.mark.parametrize(
    ("behaviour", "status", "reason"),
    [
        ("kill", "killed", "its process was killed by SIGKILL"),
        ("exit", "killed", "its process died (exit status 3)"),
        ("terminate", "interrupted", "interrupted; run the same command again to continue"),
    ],
)
def test_a_process_that_is_lost_again_and_again_ends_the_unit(
    trouble: Callable[..., Trouble], behaviour: str, status: str, reason: str
) -> None:
    run = trouble(behaviour)
    outcome = run.supervise()
    assert (outcome.status, outcome.reason) == (run.record["status"], run.record["reason"]) == (status, reason)
    assert len(run.processes) == 2
    assert run.record["finished"] is not None and run.record["metrics"] == {}


def test_the_same_command_works_again_on_what_was_killed(trouble: Callable[..., Trouble]) -> None:
    run = trouble("kill", 2)
    assert run.supervise().status == "killed"
    assert run.supervise() == Outcome(status="done")
    assert run.record["attempt"] == 3


def test_what_a_lost_process_had_started_ends_with_it(trouble: Callable[..., Trouble], tmp_path: Path) -> None:
    run = trouble("child", 1)
    assert run.supervise().status == "done"
    assert start_time(int((tmp_path / "child 1" / "child").read_text())) is None


@pytest.mark.parametrize("behaviour", ["sleep", "ignore"])
def test_when_the_study_stops_its_processes_do(
    trouble: Callable[..., Trouble], behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_GRACE_SECONDS", 30.0 if behaviour == "sleep" else 0.5)
    run = trouble(behaviour)
    outcome = run.supervise(stop=lambda: bool(run.processes))
    assert outcome.status == run.record["status"] == "interrupted"
    assert run.record["reason"] == "interrupted; run the same command again to continue"
    assert len(run.processes) == 1  # not tried again


def test_what_somebody_else_works_on_is_left_to_them(trouble: Callable[..., Trouble]) -> None:
    run = trouble("nothing")
    request = run.shop.request(run.unit)
    with run.shop.study_run.leases.acquire(request.lease_name, "somebody else"), pytest.raises(HeldError):
        run.supervise()
    assert run.processes == [] and run.shop.store.record("runs", run.unit.identity) is None


def test_a_mistake_of_the_user_is_told_from_the_process(trouble: Callable[..., Trouble]) -> None:
    run = trouble("nothing")
    request = run.shop.request(run.unit)
    (run.folder / "spec.json").write_text("{")
    outcome = supervise(request, Limits(), lambda: False)
    assert (outcome.status, outcome.error) == ("failed", "user")
    assert "is missing or damaged; run the study's command again" in outcome.reason
    assert run.processes == []


def test_ctrl_c_ends_the_process_before_it_goes_on_to_the_caller(
    trouble: Callable[..., Trouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trouble("sleep")

    def interrupt() -> bool:
        if run.processes:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run.supervise(stop=interrupt)
    assert run.record["status"] == "interrupted"


def test_processes_inherit_nothing_from_each_other_or_from_this_one(trouble: Callable[..., Trouble]) -> None:
    torch.manual_seed(99)
    first = trouble("nothing")
    first.supervise()
    torch.manual_seed(7)
    second = trouble("nothing", 98)
    second.supervise()
    assert_same(first, second)
    assert torch.initial_seed() == 7


def test_a_process_that_is_ended_before_it_wrote_anything_is_recorded(trouble: Callable[..., Trouble]) -> None:
    late = trouble("nothing")
    outcome = late.supervise(seconds=1e-6)
    assert outcome.status == "timeout"
    assert (late.record["status"], late.record["attempt"]) == ("timeout", 1)
    assert late.record["finished"] is not None


def test_a_process_that_is_lost_after_its_last_word_has_done_its_work(
    trouble: Callable[..., Trouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = trouble("nothing")
    monkeypatch.setattr(supervisor, "_reported", lambda _: None)
    assert done.supervise() == Outcome(status="done")
    assert (done.record["status"], done.record["attempt"]) == ("done", 1)


def test_a_process_does_not_import_the_main_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A script that runs a study without `if __name__ == "__main__":` would run it again in every process."""
    script = ModuleType("__main__")
    script.__file__ = str(tmp_path / "script.py")
    monkeypatch.setitem(sys.modules, "__main__", script)
    assert "init_main_from_path" in get_preparation_data("unit")
    with supervisor._without_main_module():
        assert not {"init_main_from_path", "init_main_from_name"} & get_preparation_data("unit").keys()
    assert sys.modules["__main__"] is script
