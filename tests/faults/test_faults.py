"""The short form of the campaign of faults; `make faults` runs the long one."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.errors import BenchError
from bench.execution import scheduler, supervisor
from bench.reporting.mlflow.tracker import Tracker
from bench.spec.environment import seconds_from_environment
from bench.store import leases as leases_module
from bench.store.files import Store, write_bytes, write_checked
from bench.store.leases import Leases
from bench.store.outcomes import Outcome, outcome_of_error
from tests.faults import damage, inputs, points, storage
from tests.faults import study as study_module
from tests.faults.faults import CLEAR, EQUAL, REPORTED, SKIPPED, Arena, FaultOutcome
from tests.faults.kills import KillCampaign
from tests.faults.study import Reference, Warm

KINDS = ("record.json of a run", "study.json", "runs.csv", "mlflow.db", "lock of the views")


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """An undisturbed study, half as large as the campaign's, and a process that runs commands quickly."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch, Warm(folder) as warm:
        patch.setattr(study_module, "SETTINGS", (*study_module.SETTINGS, "--methods", "sbs,fixed", "--seeds", "1"))
        patch.setattr(study_module, "UNITS", 7)
        root = folder / "small-reference"  # the same study as that of `points`
        ended = warm.run(root)
        assert ended.status == 0, ended.output
        (folder / "small-reference.done").touch()
        yield Arena(folder=folder, reference=Reference.from_store(root), warm=warm, seconds=10.0)


def well(outcomes: list[FaultOutcome]) -> bool:
    """Whether all ended as they should; those that did not are shown by the failing assertion."""
    return [str(outcome) for outcome in outcomes if outcome.outcome not in (EQUAL, REPORTED, SKIPPED)] == []


@pytest.mark.slow
def test_a_study_whose_processes_are_killed_ends_like_an_undisturbed_one(arena: Arena) -> None:
    said: list[str] = []
    study = KillCampaign(arena, seed=1, say=said.append).study(number=0, kills=3, variant="two jobs")
    assert (study.outcome, study.detail) == (EQUAL, ""), said
    assert study.kills


@pytest.mark.slow
@pytest.mark.parametrize(("action", "count"), [("kill", 6), ("full", 3)])
def test_a_study_meets_a_fault_at_one_write_after_the_other(arena: Arena, action: str, count: int) -> None:
    outcomes = list(points.points_of_a_study(arena, 3, action, count))
    assert well(outcomes) and len(outcomes) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", points.COMMANDS)
def test_a_command_that_is_killed_is_repeated(arena: Arena, name: str) -> None:
    outcomes = list(points.points_of_a_command(arena, name, 2, ("kill",)))
    assert well(outcomes) and outcomes


@pytest.mark.slow
def test_bad_inputs_end_with_one_line(arena: Arena) -> None:
    outcomes = list(inputs.bad_inputs(arena, 0, 15))
    assert [str(outcome) for outcome in outcomes if outcome.outcome != CLEAR] == [] and len(outcomes) == 15


def test_faults_come_at_exact_points(tmp_path: Path) -> None:
    """In a process of its own, since audit hooks stay for ever."""
    code = (
        "import sys; from pathlib import Path; from tests.faults import points; folder = Path(sys.argv[1])\n"
        "points.install(str(folder), 3, sys.argv[2], sys.argv[1] + '.note')\n"
        "(folder / 'a').write_text('1'); (folder / 'a').rename(folder / 'b'); (folder.parent / 'x').write_text('2')\n"
        "(folder / 'c').write_text('3')\n"
    )
    for action, status, said in (("kill", -signal.SIGKILL, ""), ("full", 1, "No space left on device")):
        folder = tmp_path / action
        folder.mkdir()
        words = [sys.executable, "-c", code, str(folder), action]
        ended = subprocess.run(words, capture_output=True, text=True, check=False, cwd=study_module.ROOT)
        assert ended.returncode == status and said in ended.stderr
        assert sorted(path.name for path in folder.iterdir()) == ["b"]
        assert Path(f"{folder}.note").read_text() == "c"


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("pretrained/a/record.json", "pretraining"),
        ("runs/a/checkpoints/.search.000001.pt.0.tmp", "search"),
        ("runs/a/checkpoints/finetune.000001.pt", "training"),
        ("runs/a/network.pt", "result"),
        ("tuning/a/record.json", "tuning"),
        ("tuning/a/trials/0/trial.json", "trial"),
        ("studies/tiny/table.md", "tables"),
        ("leases/.lock", "lease"),
        ("mlflow.db", "tracking"),
    ],
)
def test_a_file_names_its_stage(path: str, stage: str) -> None:
    assert points.stage_of(path) == stage


@pytest.mark.slow
def test_damaged_files_are_made_anew(arena: Arena) -> None:
    kinds = [kind for kind in damage.KINDS if kind.name in KINDS]
    assert well(list(damage.damage_faults(arena, 0, kinds, ["random bytes"])))


@pytest.mark.slow
def test_deleted_folders_are_made_anew(arena: Arena) -> None:
    assert well(list(damage.deleted_folders(arena, ["the leases"])))


@pytest.mark.slow
def test_stores_in_bad_places_are_told_in_one_line(arena: Arena) -> None:
    file = arena.fresh()
    file.write_text("no folder")
    for store in (file, Path("/proc/nothing-here")):
        ended = arena.warm.run(store)
        assert ended.status == 2
        assert ended.is_clear, ended.output


@pytest.mark.slow
def test_a_disk_that_is_full_is_told_in_one_line(arena: Arena) -> None:
    store = arena.fresh()
    with storage.mounted(store, "700k") as reason:
        if reason:
            pytest.skip(f"no small file system can be mounted: {reason}")
        ended = arena.warm.run(store)
        assert ended.status == 2, ended.output
        assert ended.is_clear
        assert str(store) in ended.last_line


# --- single rules that the campaign has shown to matter -------------------------------------------------------------


@pytest.mark.parametrize("days", [-40, 40])
@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_no_clock_decides_whether_a_holder_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, host: str
) -> None:
    leases = Leases(tmp_path)
    lease = leases.acquire("runs-0", "run")
    assert lease is not None
    then = time.time() + days * 86_400
    os.utime(lease.path, (then, then))
    monkeypatch.setattr(time, "time", lambda: then)
    view = leases.read("runs-0")
    assert view is not None
    if host == "elsewhere":
        view = replace(view, holder=replace(view.holder, host="elsewhere"))
    assert not leases.is_dead(view)
    assert leases.age(view) >= 0
    monkeypatch.setattr(leases_module, "PATIENCE_SECONDS", -1.0)
    assert leases.is_dead(view) == (host == "elsewhere")


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"record\.json") as caught:
        write_bytes(tmp_path / "record.json", b"{}")
    assert caught.value.filename == str(tmp_path / "record.json")
    assert list(tmp_path.iterdir()) == []


def test_a_tracking_database_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    def broken(tracking_uri: str, **_: Any) -> None:
        Path(tracking_uri.removeprefix("sqlite:///")).write_bytes(b"half of the tables")
        raise OSError(28, "No space left on device")

    (tmp_path / ".mlflow.db.0123.tmp-journal").write_bytes(b"of a process that was killed")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "MlflowClient", broken)
        assert not Tracker(None, tmp_path).prepare({"name": "tiny"})
    assert not any((file.stat().st_size, file.suffix == ".tmp") != (0, False) for file in tmp_path.iterdir())
    assert Tracker(None, tmp_path).prepare({"name": "tiny"})


@pytest.mark.parametrize("error", [ConnectionRefusedError, BrokenPipeError, EOFError])
def test_a_process_is_started_when_the_server_of_processes_was_just_lost(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    tries = []

    def start() -> None:
        tries.append(error)
        if len(tries) < 3:
            raise error

    monkeypatch.setattr(supervisor, "_START_PAUSES", (0.0, 0.0))
    supervisor._start(SimpleNamespace(start=start))  # type: ignore[arg-type]
    assert len(tries) == 3
    tries.clear()
    monkeypatch.setattr(supervisor, "_START_PAUSES", ())
    with pytest.raises(error):
        supervisor._start(SimpleNamespace(start=start))  # type: ignore[arg-type]


class TerminatedWorkerError(Exception):
    """Named like joblib's."""


@pytest.mark.parametrize(("losses", "told"), [([0, 1, 0, 2], False), ([2, 2], False), ([3], True)])
def test_lost_workers_are_counted_since_the_latest_unit_that_ended(
    monkeypatch: pytest.MonkeyPatch, losses: list[int], told: bool
) -> None:
    """Before unit i ends, `losses[i]` workers are lost."""
    left = dict(enumerate(losses))

    def in_parallel(_: Any, units: list[Any]) -> Iterator[tuple[str, Outcome]]:
        for unit in units:
            if left[int(unit.identity)]:
                left[int(unit.identity)] -= 1
                raise TerminatedWorkerError
            yield unit.identity, Outcome(status="done")

    monkeypatch.setattr(scheduler, "_run_parallel", in_parallel)
    units: Any = [SimpleNamespace(identity=str(number)) for number in range(len(losses))]
    if told:
        with pytest.raises(BenchError, match="workers died 3 times in a row"):
            list(scheduler._run_surviving(None, units))  # type: ignore[arg-type]
    else:
        ended = list(scheduler._run_surviving(None, units))  # type: ignore[arg-type]
        assert [unit.identity for unit, _ in ended] == [unit.identity for unit in units]


def test_a_limit_on_the_size_of_files_ends_a_study_as_a_full_disk_does() -> None:
    assert outcome_of_error(OSError(errno.EFBIG, "File too large", "s/network.pt"), Path("s")).error == "system"


def test_a_record_of_another_unit_is_no_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_record("tuning", "a", {"id": "a", "status": "done"})
    write_checked(store.unit("tuning", "b") / "record.json", {"id": "a", "status": "done"})
    assert store.record("tuning", "a") is not None
    assert store.record("tuning", "b") is None


@pytest.mark.parametrize(("text", "seconds"), [("", 15.0), ("0", 0.0), (" 2.5 ", 2.5)])
def test_seconds_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", text)
    assert seconds_from_environment("BENCH_CHECKPOINT_SECONDS", 15.0) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "1e3", "nan"])
def test_seconds_that_are_none_are_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BENCH_CHECKPOINT_SECONDS", text)
    with pytest.raises(BenchError, match=f"BENCH_CHECKPOINT_SECONDS is '{text}'"):
        seconds_from_environment("BENCH_CHECKPOINT_SECONDS", 15.0)
