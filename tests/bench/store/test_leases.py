"""Who works on what: leases that pass from the dead to the living, and to one of them only."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.store import leases as module
from bench.store.leases import (
    Heartbeat,
    Holder,
    Lease,
    Leases,
    LostLeaseError,
    remove_dead_sessions,
    sessions,
    start_time,
)


@pytest.fixture
def leases(tmp_path: Path) -> Leases:
    return Leases(tmp_path)


def rewrite(lease: Lease, **holder: Any) -> None:
    """Let a lease's file tell of another holder."""
    document = json.loads(lease.path.read_text())
    document["holder"] |= holder
    lease.path.write_text(json.dumps(document))


def taken(leases: Leases, name: str = "runs-x", title: str = "run x") -> Lease:
    lease = leases.acquire(name, title)
    assert lease is not None
    return lease


def test_a_lease_file_keeps_its_fields(leases: Leases) -> None:
    document = json.loads(taken(leases).path.read_text())
    assert document.keys() == {"name", "token", "holder", "beat", "time", "title", "progress"}
    assert document["holder"].keys() == {"host", "boot", "pid", "born"}


# --- taking and giving back ---


def test_a_lease_says_who_does_what_since_when_and_how_far(leases: Leases) -> None:
    lease = taken(leases)
    lease.progress = {"phase": "search", "done": 3}
    lease.beat()
    view = leases.read("runs-x")
    assert view is not None and list(leases.all()) == [view]
    assert (view.name, view.title, view.beat, view.progress) == ("runs-x", "run x", 1, {"phase": "search", "done": 3})
    assert (view.holder, view.holder.pid) == (Holder.this(), os.getpid())
    assert str(view.holder) == f"process {os.getpid()} on {view.holder.host}"


def test_what_a_living_process_holds_is_refused_until_it_is_given_back(leases: Leases, tmp_path: Path) -> None:
    first = taken(leases)
    for other in (leases, Leases(tmp_path)):
        assert other.acquire("runs-x", "run x") is None
    taken(leases, "runs-y").release()  # another name is another lease
    first.release()
    assert leases.read("runs-x") is None and not first.path.exists()
    first.release()  # for the second time
    with taken(leases) as second:
        assert leases.acquire("runs-x", "run x") is None
    assert list(leases.all()) == []
    with pytest.raises(LostLeaseError):
        second.check()


def test_nobody_gives_back_what_another_has_by_now(leases: Leases) -> None:
    first = taken(leases)
    first.path.unlink()
    second = taken(leases)
    first.release()
    second.check()
    second.beat()
    assert second.path.exists()


# --- the dead ---


def ended() -> tuple[int, str]:
    """Number and start of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = start_time(process.pid)
    assert started is not None
    process.communicate(b"\n")
    return process.pid, started


def test_a_dead_holder_on_this_machine_is_taken_over_at_once(leases: Leases) -> None:
    pid, started = ended()
    first = taken(leases)
    rewrite(first, pid=pid, born=started)
    view = leases.read("runs-x")
    assert view is not None and view.holder.is_alive() is False and leases.is_dead(view)
    second = taken(leases)
    for late in (first.beat, first.check):
        with pytest.raises(LostLeaseError, match="'runs-x' was taken over"):
            late()
    second.check()


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended; nobody has asked how
    assert start_time(process.pid) is None
    process.wait()


def test_a_number_that_was_given_to_another_process_is_no_sign_of_life(leases: Leases) -> None:
    lease = taken(leases)
    assert Holder.this().is_alive()
    rewrite(lease, born="1")  # our number, another process's start
    view = leases.read("runs-x")
    assert view is not None and leases.is_dead(view)
    taken(leases)


def test_nothing_survives_a_restart_of_the_machine(leases: Leases) -> None:
    rewrite(taken(leases), boot="before")
    view = leases.read("runs-x")
    assert view is not None and leases.is_dead(view)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass on the steady clock."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def is_dead(leases: Leases) -> bool:
    view = leases.read("runs-x")
    assert view is not None
    return leases.is_dead(view)


def test_a_holder_elsewhere_is_judged_by_its_signs_of_life_only(
    leases: Leases, tmp_path: Path, clock: Callable[[float], None]
) -> None:
    pid, started = ended()
    lease = taken(leases)
    rewrite(lease, host="elsewhere", pid=pid, born=started)  # a number that is nobody's here
    view = leases.read("runs-x")
    assert view is not None and view.holder.is_alive() is None
    document = json.loads(lease.path.read_text())
    for _ in range(5):  # as long as the count rises
        assert not is_dead(leases)
        clock(module.PATIENCE_SECONDS - 1)
        assert not is_dead(leases)
        document["beat"] += 1
        lease.path.write_text(json.dumps(document))
    assert not is_dead(leases)
    clock(module.PATIENCE_SECONDS + 1)
    assert is_dead(leases)
    assert is_dead(Leases(tmp_path))  # it is the process that has waited
    lease.path.write_text(json.dumps({**document, "token": "another", "beat": 0}))  # a new lease with fewer beats
    assert not is_dead(leases)
    clock(module.PATIENCE_SECONDS + 1)
    assert leases.acquire("runs-x", "run x") is not None


def test_no_wall_clock_decides(leases: Leases, monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]) -> None:
    lease = taken(leases)
    rewrite(lease, host="elsewhere")
    assert not is_dead(leases)
    for jump in (1e9, -1e9):
        monkeypatch.setattr(module.time, "time", lambda jump=jump: 1.8e9 + jump)
        for stamp in ("1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", "nonsense"):
            document = json.loads(lease.path.read_text())
            lease.path.write_text(json.dumps({**document, "time": stamp}))
            os.utime(lease.path, (1.8e9 - jump, 1.8e9 - jump))
            assert not is_dead(leases)
    clock(module.PATIENCE_SECONDS + 1)
    assert is_dead(leases)
    rewrite(lease, host=Holder.this().host)  # ours: its process lives, whatever clocks say
    assert not is_dead(leases)


# --- commands ---


def test_the_living_commands_of_a_study_and_of_no_other(leases: Leases) -> None:
    for name in ("session-quick-0a", "session-quick-1b", "session-quick-2-0a", "session-other-0a", "runs-quick-0a"):
        taken(leases, name)
    dead = taken(leases, "session-quick-2c")
    rewrite(dead, boot="before")
    assert [view.name for view in sessions(leases, "quick")] == ["session-quick-0a", "session-quick-1b"]
    assert [view.name for view in sessions(leases, "quick-2")] == ["session-quick-2-0a"]
    assert sessions(leases, "qui") == []


def test_leases_of_commands_that_were_killed_are_removed_and_no_others(leases: Leases) -> None:
    kept = [taken(leases, name).name for name in ("runs-x", "session-quick-0a")]
    for name in ("runs-y", "session-quick-1b"):
        rewrite(taken(leases, name), boot="before")
    remove_dead_sessions(leases)
    assert sorted(view.name for view in leases.all()) == sorted([*kept, "runs-y"])  # a run's tells who takes it over


# --- losing it ---


def test_a_holder_that_was_taken_for_dead_learns_it_when_it_renews(leases: Leases) -> None:
    first = taken(leases)
    rewrite(first, boot="before")
    second = taken(leases)
    lost = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BEAT_SECONDS", 0.01)
        with Heartbeat(first, lost.set):
            assert lost.wait(10)
    second.check()  # neither its signs of life nor its end touched the other's
    assert leases.read("runs-x") is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "runs-x"}', b"\xff\xfe", b"null"])
def test_a_damaged_file_is_nobodys_lease(leases: Leases, content: bytes) -> None:
    first = taken(leases)
    first.path.write_bytes(content)
    assert leases.read("runs-x") is None and list(leases.all()) == []
    for late in (first.beat, first.check):
        with pytest.raises(LostLeaseError):
            late()
    taken(leases).check()


def test_a_heartbeat_gives_signs_of_life_and_gives_the_lease_back(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    with Heartbeat(taken(leases), pytest.fail) as lease:
        lease.progress = {"done": 7}
        limit = time.monotonic() + 10
        while (view := leases.read("runs-x")) is None or view.beat < 3:
            assert time.monotonic() < limit
            time.sleep(0.01)
        assert view.progress == {"done": 7}
    assert leases.read("runs-x") is None
    assert not [thread for thread in threading.enumerate() if "heartbeat" in thread.name]


def test_a_full_disk_or_a_busy_lock_does_not_end_the_heartbeat(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    troubles = [OSError(28, "No space left on device"), BenchError("the lock is busy")]
    write, lease = module.write_bytes, taken(leases)

    def failing(*arguments: Any, **named: Any) -> None:
        if troubles:
            raise troubles.pop()
        write(*arguments, **named)

    monkeypatch.setattr(module, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(module, "write_bytes", failing)
    with Heartbeat(lease, pytest.fail):
        limit = time.monotonic() + 10
        while (view := leases.read("runs-x")) is None or view.beat < 4:
            assert time.monotonic() < limit
            time.sleep(0.01)
    assert troubles == []


def test_a_lock_that_cannot_be_had_is_one_clear_line(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.05)
    with (
        leases.lock(),
        pytest.raises(BenchError, match=r"cannot acquire the lock '.*\.lock': .* see `bench doctor --store .*`"),
    ):
        leases.acquire("runs-x", "run x")
    taken(leases)


# --- how long ago ---


def test_the_age_is_told_by_the_clock_that_stamps_files(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = taken(leases)
    view = leases.read("runs-x")
    assert view is not None
    monkeypatch.setattr(module.time, "time", lambda: 0.0)
    assert leases.age(view) < 5
    stamped = lease.path.stat().st_mtime - 90
    os.utime(lease.path, (stamped, stamped))
    assert 85 < leases.age(view) < 100
    os.utime(lease.path, (stamped + 9000, stamped + 9000))  # from the future
    assert leases.age(view) == 0
    lease.release()
    assert leases.age(view) == 0
    assert [path.name for path in leases.folder.iterdir()] == [".lock"]
    assert leases.age(replace(view, name="never")) == 0


# --- races ---


@pytest.mark.parametrize("state", ["free", "dead", "damaged"])
def test_of_many_threads_exactly_one_wins(tmp_path: Path, state: str) -> None:
    leases = Leases(tmp_path)
    if state != "free":
        first = taken(leases)
        rewrite(first, boot="before") if state == "dead" else first.path.write_text("{")
    start, won = threading.Barrier(8), []

    def race() -> None:
        start.wait()
        lease = Leases(tmp_path).acquire("runs-x", "run x")
        if lease is not None:
            won.append(lease)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].check()


def _race(root: Path, start: Any, ended: Any, won: Any) -> None:
    start.wait()
    for number in range(10):
        if Leases(root).acquire(f"runs-{number}", "run x") is not None:
            won.put(number)
    ended.wait()  # a process that ended would be dead, and its leases free


def test_of_two_processes_exactly_one_wins(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    for number in range(10):
        rewrite(taken(leases, f"runs-{number}"), boot="before")
    context = multiprocessing.get_context("fork")
    start, ended, won = context.Barrier(2), context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=_race, args=(tmp_path, start, ended, won)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    winners = []
    while not won.empty():
        winners.append(won.get())
    assert sorted(winners) == list(range(10))


def test_a_lease_that_is_given_up_while_it_is_renewed_does_not_come_back(tmp_path: Path) -> None:
    lease = Leases(tmp_path).acquire("unit", "work")
    assert lease is not None
    write = lease.write

    def interrupted_write() -> None:
        lease.give_up()  # the signal comes between the look at the file and its renewal
        write()

    lease.write = interrupted_write  # type: ignore[method-assign]
    lease.beat()
    assert not lease.path.exists()
    with pytest.raises(LostLeaseError):
        lease.beat()
