"""Work on one unit under its lease: what is written, when nothing may be, and what others see of it."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from bench.compression.policy import uniform
from bench.errors import BenchError
from bench.execution.context import UnitRequest
from bench.execution.stages import search
from bench.execution.worker import HeldError, _ProgressWatcher, work_on_unit
from bench.method import Capabilities, Method, SearchJob, SearchResult
from bench.store.files import read_checked, write_checked
from bench.store.leases import LeaseView, LostLeaseError
from bench.store.outcomes import RETRIABLE
from bench.training import checkpoints


class Obedient(Method):
    """Calls a function in the middle of its search."""

    summary = "for tests"
    capabilities = Capabilities(budget="direct")
    meanwhile: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def search(self, job: SearchJob) -> SearchResult:
        type(self).meanwhile()
        return SearchResult(policy=uniform(job.task.network, 4), state=job.pretrained)


@pytest.fixture
def shop(tiny: SimpleNamespace, copied: Path, plugin: Callable[..., None]) -> Any:
    plugin("methods", "obedient", Obedient)
    return tiny.Workshop(tiny.spec({"methods": ["obedient"], "seeds": [0]}), copied)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Says what happens in the middle of a search."""

    def happens(what: Callable[[], None]) -> None:
        monkeypatch.setattr(Obedient, "meanwhile", staticmethod(what))

    return happens


def request_of(shop: Any) -> UnitRequest:
    request: UnitRequest = shop.request(shop.plan.runs[0])
    return request


def fail(error: BaseException) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


def never() -> None:
    pytest.fail("the lease was lost")


def test_a_unit_that_is_done_leaves_a_record_and_nothing_that_was_only_for_the_way(
    shop: Any, meanwhile: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (checkpoints, search):
        monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.0)
    request = request_of(shop)
    seen: list[LeaseView] = []

    def look() -> None:
        seen.extend(shop.study_run.leases.all())
        record = shop.store.record("runs", request.identity)
        assert record is not None and record["status"] == "running"

    meanwhile(look)
    (request.folder / "error.txt").write_text("of an attempt before")
    outcome = work_on_unit(request, never)
    assert (outcome.status, shop.record(shop.plan.runs[0])["status"]) == ("done", "done")
    (view,) = seen
    assert (view.name, view.title) == (f"runs-{request.identity}", "run obedient 4bit seed 0")
    assert list(shop.study_run.leases.all()) == []
    assert {path.name for path in request.folder.iterdir()} == {
        *("spec.json", "record.json"),
        *shop.record(shop.plan.runs[0])["files"],
    }


def test_what_somebody_else_works_on_is_left_to_them(shop: Any, meanwhile: Callable[..., None]) -> None:
    request = request_of(shop)
    meanwhile(lambda: pytest.fail("it was worked on"))
    with shop.study_run.leases.acquire(request.lease_name, "somebody else"), pytest.raises(HeldError):
        work_on_unit(request, never)
    assert shop.store.record("runs", request.identity) is None


def test_what_another_process_has_done_meanwhile_is_not_repeated(shop: Any, meanwhile: Callable[..., None]) -> None:
    request = request_of(shop)
    work_on_unit(request, never)
    before = (request.folder / "record.json").read_bytes()
    meanwhile(lambda: pytest.fail("it was worked on"))
    assert work_on_unit(request, never).status == "done"
    assert (request.folder / "record.json").read_bytes() == before


def test_who_has_lost_the_lease_writes_no_outcome(shop: Any, meanwhile: Callable[..., None]) -> None:
    request = request_of(shop)
    leases = shop.study_run.leases
    taken = []

    def take_over() -> None:
        (leases.folder / f"{request.lease_name}.json").unlink()
        taken.append(leases.acquire(request.lease_name, "another"))

    meanwhile(take_over)
    with pytest.raises(LostLeaseError):
        work_on_unit(request, lambda: None)
    assert shop.record(shop.plan.runs[0])["status"] == "running"
    taken[0].check()  # the other's lease was not given back either


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_who_fails_after_losing_the_lease_writes_no_outcome_either(
    shop: Any, meanwhile: Callable[..., None], error: BaseException
) -> None:
    request = request_of(shop)

    def lose_and_fail() -> None:
        (shop.study_run.leases.folder / f"{request.lease_name}.json").unlink()
        raise error

    meanwhile(lose_and_fail)
    with pytest.raises(LostLeaseError):
        work_on_unit(request, lambda: None)
    assert shop.record(shop.plan.runs[0])["status"] == "running"


@pytest.mark.parametrize("damage", ["missing", "cut off", "another unit's"])
def test_without_its_specification_nothing_is_begun(shop: Any, damage: str) -> None:
    request = request_of(shop)
    file = request.folder / "spec.json"
    if damage == "another unit's":
        write_checked(file, (read_checked(file) or {}) | {"id": "0" * 16})
    else:
        file.unlink() if damage == "missing" else file.write_text(file.read_text()[:-50])
    told = "is that of unit" if damage == "another unit's" else "is missing or damaged; run the study's command again"
    with pytest.raises(BenchError, match=told):
        work_on_unit(request, never)
    assert shop.store.record("runs", request.identity) is None
    assert list(shop.study_run.leases.all()) == []


def test_data_that_changed_while_the_study_ran_end_it(shop: Any, meanwhile: Callable[..., None]) -> None:
    meanwhile(lambda: pytest.fail("it was worked on"))
    shop.study_run = SimpleNamespace(data_checksum="of other data", leases=shop.study_run.leases)
    outcome = work_on_unit(request_of(shop), never)
    assert (outcome.status, outcome.error) == ("failed", "user")
    assert outcome.reason == "the data of synthetic changed while the study ran; run its command again"


def test_on_a_full_disk_the_record_stays_open(shop: Any, meanwhile: Callable[..., None]) -> None:
    meanwhile(fail(OSError(errno.ENOSPC, "No space left on device", str(shop.store.root / "x"))))
    request = request_of(shop)
    outcome = work_on_unit(request, never)
    assert (outcome.status, outcome.error) == ("failed", "system")
    assert shop.record(shop.plan.runs[0])["status"] == "running"
    assert not (request.folder / "error.txt").exists() and list(shop.study_run.leases.all()) == []


def test_a_failure_leaves_its_traceback_and_the_next_success_removes_it(
    shop: Any, meanwhile: Callable[..., None]
) -> None:
    request = request_of(shop)
    meanwhile(fail(ValueError("no luck")))
    assert work_on_unit(request, never).reason.startswith("ValueError: no luck (tests/bench/execution/test_worker.py:")
    assert "raise error" in (request.folder / "error.txt").read_text()
    meanwhile(lambda: None)
    assert work_on_unit(request, never).status == "failed"  # it is final
    assert work_on_unit(UnitRequest(**{**vars_of(request), "retry": RETRIABLE}), never).status == "done"
    assert not (request.folder / "error.txt").exists()


def vars_of(request: UnitRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__dataclass_fields__}


def test_the_progress_of_a_unit_is_in_its_lease() -> None:
    lease = SimpleNamespace(progress={})
    watcher = _ProgressWatcher(lease)  # type: ignore[arg-type]
    watcher.epoch("search", {"epoch": 1, "epochs": 8, "loss": 0.5, "temperature": 3.0})
    assert lease.progress == {"phase": "search", "done": 1, "epoch": 1.0, "epochs": 8.0, "loss": 0.5}
    watcher.epoch("finetune", {"epoch": 1, "epochs": 2, "accuracy": 71})
    assert lease.progress == {"phase": "finetune", "done": 1, "epoch": 1.0, "epochs": 2.0, "accuracy": 71.0}
    watcher.epoch("finetune", {"epoch": 1, "epochs": 2})  # a second stage counts its epochs from 1
    assert lease.progress["done"] == 2
