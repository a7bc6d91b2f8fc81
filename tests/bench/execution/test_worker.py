"""Work on one unit under its lease: what is written, when nothing may be, and what others see of it."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from bench.compression.policy import uniform
from bench.errors import BenchError
from bench.execution import stages as execution
from bench.execution.context import Order
from bench.execution.worker import HeldError, _ProgressWatcher, work
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


def order_of(shop: Any) -> Order:
    order: Order = shop.order(shop.plan.runs[0])
    return order


def fail(error: BaseException) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


def never() -> None:
    pytest.fail("the lease was lost")


def test_a_unit_that_is_done_leaves_a_record_and_nothing_that_was_only_for_the_way(
    shop: Any, meanwhile: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (checkpoints, execution):
        monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.0)
    order = order_of(shop)
    seen: list[LeaseView] = []

    def look() -> None:
        seen.extend(shop.study.leases.all())
        record = shop.store.record("runs", order.identity)
        assert record is not None and record["status"] == "running"

    meanwhile(look)
    (order.folder / "error.txt").write_text("of an attempt before")
    ending = work(order, never)
    assert (ending.status, shop.record(shop.plan.runs[0])["status"]) == ("done", "done")
    (view,) = seen
    assert (view.name, view.title) == (f"runs-{order.identity}", "run obedient 4bit seed 0")
    assert list(shop.study.leases.all()) == []
    assert {path.name for path in order.folder.iterdir()} == {
        *("spec.json", "record.json"),
        *shop.record(shop.plan.runs[0])["files"],
    }


def test_what_somebody_else_works_on_is_left_to_them(shop: Any, meanwhile: Callable[..., None]) -> None:
    order = order_of(shop)
    meanwhile(lambda: pytest.fail("it was worked on"))
    with shop.study.leases.acquire(order.lease_name, "somebody else"), pytest.raises(HeldError):
        work(order, never)
    assert shop.store.record("runs", order.identity) is None


def test_what_another_process_has_done_meanwhile_is_not_repeated(shop: Any, meanwhile: Callable[..., None]) -> None:
    order = order_of(shop)
    work(order, never)
    before = (order.folder / "record.json").read_bytes()
    meanwhile(lambda: pytest.fail("it was worked on"))
    assert work(order, never).status == "done"
    assert (order.folder / "record.json").read_bytes() == before


def test_who_has_lost_the_lease_writes_no_ending(shop: Any, meanwhile: Callable[..., None]) -> None:
    order = order_of(shop)
    leases = shop.study.leases
    taken = []

    def take_over() -> None:
        (leases.folder / f"{order.lease_name}.json").unlink()
        taken.append(leases.acquire(order.lease_name, "another"))

    meanwhile(take_over)
    with pytest.raises(LostLeaseError):
        work(order, lambda: None)
    assert shop.record(shop.plan.runs[0])["status"] == "running"
    taken[0].check()  # the other's lease was not given back either


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_who_fails_after_losing_the_lease_writes_no_ending_either(
    shop: Any, meanwhile: Callable[..., None], error: BaseException
) -> None:
    order = order_of(shop)

    def lose_and_fail() -> None:
        (shop.study.leases.folder / f"{order.lease_name}.json").unlink()
        raise error

    meanwhile(lose_and_fail)
    with pytest.raises(LostLeaseError):
        work(order, lambda: None)
    assert shop.record(shop.plan.runs[0])["status"] == "running"


@pytest.mark.parametrize("damage", ["missing", "cut off", "another unit's"])
def test_without_its_specification_nothing_is_begun(shop: Any, damage: str) -> None:
    order = order_of(shop)
    file = order.folder / "spec.json"
    if damage == "another unit's":
        write_checked(file, (read_checked(file) or {}) | {"id": "0" * 16})
    else:
        file.unlink() if damage == "missing" else file.write_text(file.read_text()[:-50])
    told = "stands for" if damage == "another unit's" else "is missing or damaged; run the study's command again"
    with pytest.raises(BenchError, match=told):
        work(order, never)
    assert shop.store.record("runs", order.identity) is None
    assert list(shop.study.leases.all()) == []


def test_data_that_changed_while_the_study_ran_end_it(shop: Any, meanwhile: Callable[..., None]) -> None:
    meanwhile(lambda: pytest.fail("it was worked on"))
    shop.study = SimpleNamespace(data_checksum="of other data", leases=shop.study.leases)
    ending = work(order_of(shop), never)
    assert (ending.status, ending.error) == ("failed", "user")
    assert ending.reason == "the data of synthetic changed while the study ran; run its command again"


def test_on_a_full_disk_the_record_stays_open(shop: Any, meanwhile: Callable[..., None]) -> None:
    meanwhile(fail(OSError(errno.ENOSPC, "No space left on device", "x")))
    order = order_of(shop)
    ending = work(order, never)
    assert (ending.status, ending.error) == ("failed", "system")
    assert shop.record(shop.plan.runs[0])["status"] == "running"
    assert not (order.folder / "error.txt").exists() and list(shop.study.leases.all()) == []


def test_a_failure_leaves_its_traceback_and_the_next_success_removes_it(
    shop: Any, meanwhile: Callable[..., None]
) -> None:
    order = order_of(shop)
    meanwhile(fail(ValueError("no luck")))
    assert work(order, never).reason == "ValueError: no luck"
    assert "raise error" in (order.folder / "error.txt").read_text()
    meanwhile(lambda: None)
    assert work(order, never).status == "failed"  # it stands
    assert work(Order(**{**vars_of(order), "retry": RETRIABLE}), never).status == "done"
    assert not (order.folder / "error.txt").exists()


def vars_of(order: Order) -> dict[str, Any]:
    return {name: getattr(order, name) for name in order.__dataclass_fields__}


def test_the_progress_of_a_unit_is_in_its_lease() -> None:
    lease = SimpleNamespace(progress={})
    watcher = _ProgressWatcher(lease)  # type: ignore[arg-type]
    watcher.epoch("search", {"epoch": 1, "epochs": 8, "loss": 0.5, "temperature": 3.0})
    assert lease.progress == {"phase": "search", "done": 1, "epoch": 1.0, "epochs": 8.0, "loss": 0.5}
    watcher.epoch("finetune", {"epoch": 1, "epochs": 2, "accuracy": 71})
    assert lease.progress == {"phase": "finetune", "done": 2, "epoch": 1.0, "epochs": 2.0, "accuracy": 71.0}
