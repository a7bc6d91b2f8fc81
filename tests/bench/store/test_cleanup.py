"""What `bench clean` removes, and above all what it leaves alone."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli.main import bench
from bench.errors import BenchError
from bench.store.cleaning import cleanup as cleaning
from bench.store.cleaning.cleanup import clean
from bench.store.cleaning.survey import (
    CHECKPOINTS,
    DEAD_LEASES,
    OWN_UNITS,
    REMAINS,
    STALE_RESULTS,
    STUDY,
    TEMPORARY,
    UNREFERENCED,
    survey,
)
from bench.store.cleaning.usage import OLD_SECONDS, leased_unit
from bench.store.contents import size_by_kind, size_in_words, size_of, units
from bench.store.files import Store, write_checked, write_json, write_text
from bench.store.leases import Holder, Leases
from tests import fake_store

FakeStore = fake_store.FakeStore
DEAD = {"host": socket.gethostname(), "boot": "another", "pid": 1, "born": "0"}


@pytest.fixture
def fake(tmp_path: Path) -> FakeStore:
    """A study of two runs and a tuning with two trials."""
    fake = FakeStore(tmp_path / "store")
    fake.seeds("fixed", [70.0, 71.0])
    fake.tuning("sbs", [0.2, 0.4])
    fake.document()
    return fake


def lease(root: Path, name: str, beat: int = 100, **holder: object) -> Path:
    """A lease of this process, or of the holder that is described."""
    document = {"name": name, "token": "t", "holder": Holder.this().to_json() | holder, "beat": beat}
    path = root / "leases" / f"{name}.json"
    write_json(path, document | {"time": "2026-01-01T00:00:00+00:00", "title": "at work", "progress": {}})
    return path


def unit(fake: FakeStore, identity: str, *, kind: str = "runs", status: str = "done") -> Path:
    """A unit that the study does not refer to."""
    folder = fake.root / kind / identity
    write_checked(folder / "record.json", {"id": identity, "status": status, "files": {}})
    return folder


def old(path: Path) -> Path:
    """Make a file look as if nobody had touched it for long."""
    os.utime(path, (path.stat().st_mtime - 2 * OLD_SECONDS,) * 2)
    return path


def leftovers(fake: FakeStore) -> dict[str, Path]:
    """One thing of each kind that nobody needs."""
    aside = fake.root / "runs" / "fixed-4bit-0.stale-1"
    write_checked(aside / "record.json", {"id": "fixed-4bit-0", "status": "done"})
    temporary = fake.root / "runs" / "fixed-4bit-1" / ".record.json.0a1b2c3d.tmp"
    temporary.write_text("{")
    checkpoint = fake.root / "runs" / "fixed-4bit-1" / "checkpoints"
    write_text(checkpoint / "search.000001.aa.pt", "x" * 100)
    trash = fake.root / ".bench-trash-00000000"
    write_text(trash / "0" / "record.json", "{}")
    return {
        STALE_RESULTS: aside,
        TEMPORARY: old(temporary),
        CHECKPOINTS: checkpoint,
        DEAD_LEASES: lease(fake.root, "card-here-0-0", **DEAD),
        REMAINS: trash,
        UNREFERENCED: unit(fake, "nobodys"),
    }


def found(fake: FakeStore, study: str | None = None) -> dict[str, list[str]]:
    """What may go, by category, as paths below the store."""
    by_category: dict[str, list[str]] = {}
    for item in survey(fake.store, study).items:
        by_category.setdefault(item.category, []).append(str(item.path.relative_to(fake.root.resolve())))
    return by_category


def content(root: Path) -> dict[str, bytes | None]:
    """Everything in a folder, but for locks and leases."""
    paths = (path for path in sorted(root.rglob("*")) if path.parent.name != "leases" and path.name != "leases")
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in paths}


# --- what goes ---


def test_a_tidy_store_has_nothing_to_remove(fake: FakeStore) -> None:
    before = content(fake.root)
    assert found(fake) == {}
    assert clean(fake.store).removed == ()
    assert content(fake.root) == before


def test_each_category_is_found_and_removed_and_nothing_else(fake: FakeStore) -> None:
    before = content(fake.root)
    placed = leftovers(fake)
    assert {category: len(paths) for category, paths in found(fake).items()} == dict.fromkeys(placed, 1)
    done = clean(fake.store)
    assert {item.path: size for item, size in done.removed}.keys() == {path.resolve() for path in placed.values()}
    assert {item.category: size for item, size in done.removed}[CHECKPOINTS] == 100
    assert not done.failures
    assert content(fake.root) == before
    assert found(fake) == {}


def test_what_lies_within_something_that_goes_is_counted_once(fake: FakeStore) -> None:
    folder = unit(fake, "nobodys")
    write_text(folder / "checkpoints" / "search.000001.aa.pt", "x")
    old_file = folder / ".network.pt.00000000.tmp"
    old_file.write_text("")
    old(old_file)
    assert found(fake) == {UNREFERENCED: ["runs/nobodys"]}


def test_checkpoints_go_with_a_result_only(fake: FakeStore) -> None:
    kept = {"failed": True, "timeout": True, "interrupted": True, "running": True, "done": False, "unreachable": False}
    for status in kept:
        identity = fake.run("dnas", len(fake.runs), status=status)
        write_text(fake.root / "runs" / identity / "checkpoints" / "search.000001.aa.pt", status)
    fake.document()
    clean(fake.store)
    left = {path.read_text() for path in fake.root.glob("runs/*/checkpoints/*")}
    assert left == {status for status, stays in kept.items() if stays}


def test_checkpoints_and_stale_folders_of_trials_are_found(fake: FakeStore) -> None:
    trials = fake.root / "tuning" / "tuning-sbs-4bit" / "trials"
    write_text(trials / "0" / "checkpoints" / "search.000001.aa.pt", "x")
    write_checked(trials / "1.stale-1" / "record.json", {"id": "tuning-sbs-4bit-1", "status": "done"})
    assert set(found(fake)) == {CHECKPOINTS, STALE_RESULTS}


def test_a_study_goes_with_the_units_that_only_it_refers_to(fake: FakeStore) -> None:
    other = FakeStore(fake.root, name="other", runs=["fixed-4bit-0"], tunings=[])
    own = other.run("dnas", 7, 60.0)
    other.document()
    leftovers(fake)  # of which a study's removal takes none
    untouched = content(fake.root)
    assert found(fake, "other") == {STUDY: ["studies/other"], OWN_UNITS: [f"runs/{own}"]}
    clean(fake.store, "other")
    gone = {name for name in untouched if name.startswith(("studies/other", f"runs/{own}"))}
    assert content(fake.root) == {name: value for name, value in untouched.items() if name not in gone}
    assert fake.store.load_study("quick")["runs"] == ["fixed-4bit-0", "fixed-4bit-1"]


# --- what stays ---


@pytest.mark.parametrize(
    ("category", "name"),
    [
        (UNREFERENCED, "runs-nobodys"),
        (STALE_RESULTS, "runs-fixed-4bit-0"),
        (TEMPORARY, "runs-fixed-4bit-1"),
        (CHECKPOINTS, "runs-fixed-4bit-1"),
    ],
)
def test_what_somebody_works_on_stays(fake: FakeStore, category: str, name: str) -> None:
    placed = leftovers(fake)
    lease(fake.root, name)
    assert category not in found(fake)
    clean(fake.store)
    assert placed[category].exists()
    assert (fake.root / "leases" / f"{name}.json").exists()


def test_a_tuning_stays_while_somebody_works_on_a_trial_of_it(fake: FakeStore) -> None:
    unit(fake, "nobodys", kind="tuning")
    assert found(fake)[UNREFERENCED] == ["tuning/nobodys"]
    lease(fake.root, "trials-nobodys-3")
    assert found(fake) == {}


def test_all_that_a_running_study_refers_to_stays(fake: FakeStore) -> None:
    placed = leftovers(fake)
    lease(fake.root, "session-quick-0a1b2c3d")
    assert set(found(fake)) == {DEAD_LEASES, REMAINS, UNREFERENCED}
    clean(fake.store)
    assert all(placed[category].exists() for category in (STALE_RESULTS, TEMPORARY, CHECKPOINTS))
    assert (fake.root / "leases" / "session-quick-0a1b2c3d.json").exists()


@pytest.mark.parametrize(("session", "beat"), [("session-quick-0a1b2c3d", 1), ("session-unwritten-0a1b2c3d", 100)])
def test_no_unit_is_judged_before_a_running_study_has_written_what_it_needs(
    fake: FakeStore, session: str, beat: int
) -> None:
    leftovers(fake)
    lease(fake.root, session, beat)
    assert UNREFERENCED not in found(fake)
    assert "has just begun to run study" in survey(fake.store).notes[0]


def test_a_study_that_is_being_run_is_not_removed(fake: FakeStore) -> None:
    lease(fake.root, "session-quick-0a1b2c3d")
    with pytest.raises(BenchError, match="runs study 'quick' now; stop it"):
        clean(fake.store, "quick")


def test_a_session_is_of_its_own_study_only(fake: FakeStore) -> None:
    FakeStore(fake.root, name="quick-2").document()
    lease(fake.root, "session-quick-2-0a1b2c3d")
    assert found(fake, "quick")[STUDY] == ["studies/quick"]


def test_a_living_lease_stays_and_one_of_another_machine_until_it_is_silent_for_long(fake: FakeStore) -> None:
    lease(fake.root, "runs-a")
    elsewhere = lease(fake.root, "runs-b", host="elsewhere")
    assert found(fake) == {}
    old(elsewhere)
    assert found(fake) == {DEAD_LEASES: ["leases/runs-b.json"]}


def test_a_lease_that_cannot_be_read_holds_its_unit_for_a_while(fake: FakeStore) -> None:
    unit(fake, "nobodys")
    damaged = fake.root / "leases" / "runs-nobodys.json"
    write_text(damaged, "{")
    assert found(fake) == {}
    old(damaged)
    assert set(found(fake)) == {DEAD_LEASES, UNREFERENCED}


@pytest.mark.parametrize("damage", ["cut off", "changed", "gone"])
def test_with_a_damaged_study_nothing_is_judged_unreferenced(fake: FakeStore, damage: str) -> None:
    FakeStore(fake.root, name="other", runs=[], tunings=[]).document()
    path = fake.root / "studies" / "other" / "study.json"
    write_text(path.with_name("table.md"), "a table")
    text = path.read_text()
    path.unlink() if damage == "gone" else path.write_text(text[:50] if damage == "cut off" else text.replace("0", "1"))
    placed = leftovers(fake)
    (note,) = survey(fake.store).notes
    assert note.startswith("the study.json of other is damaged or missing")
    done = clean(fake.store)
    assert {item.category for item, _ in done.removed} == set(placed) - {UNREFERENCED}
    assert found(fake, "quick") == {STUDY: ["studies/quick"]}  # its units cannot be told from the other one's
    assert found(fake, "other") == {STUDY: ["studies/other"]}


def test_young_temporary_files_stay(fake: FakeStore) -> None:
    (fake.root / "studies" / "quick" / ".table.md.0a1b2c3d.tmp").write_text("being written")
    assert found(fake) == {}


def test_folders_that_the_harness_did_not_make_stay(fake: FakeStore) -> None:
    write_text(fake.root / "runs" / "my backup" / "notes.txt", "mine")
    write_text(fake.root / "runs" / "notes.txt", "mine")
    write_text(fake.root / ".hidden" / "notes.txt", "mine")
    assert found(fake) == {}


@pytest.mark.parametrize("place", ["runs/linked", "runs/linked.stale-1", ".bench-trash-0a1b2c3d", "studies/linked"])
def test_a_link_is_not_followed(fake: FakeStore, tmp_path: Path, place: str) -> None:
    outside = tmp_path / "outside"
    write_checked(outside / "record.json", {"id": "linked", "status": "done"})
    write_checked(outside / "study.json", {"name": "linked"})
    (fake.root / place).symlink_to(outside)
    assert found(fake) == {}
    clean(fake.store)
    assert (fake.root / place).is_symlink()
    assert {path.name for path in outside.iterdir()} == {"record.json", "study.json"}


def test_a_link_inside_what_goes_is_not_followed(fake: FakeStore, tmp_path: Path) -> None:
    write_text(tmp_path / "outside" / "precious", "x" * 1000)
    folder = unit(fake, "nobodys")
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "file-link").symlink_to(tmp_path / "outside" / "precious")
    (_, size) = clean(fake.store).removed[0]
    assert size < 1000
    assert not folder.exists()
    assert (tmp_path / "outside" / "precious").exists()


def test_a_folder_of_units_that_is_a_link_is_left_alone(fake: FakeStore, tmp_path: Path) -> None:
    unit(fake, "nobodys")
    shutil.move(fake.root / "runs", tmp_path / "runs")
    (fake.root / "runs").symlink_to(tmp_path / "runs")
    assert found(fake) == {}
    assert any("is a link and is left alone" in note for note in survey(fake.store).notes)


# --- two at once, and half-way ---


def test_what_is_taken_up_between_looking_and_removing_stays(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = leftovers(fake)
    original = cleaning.make_scratch

    def taken_up(store: Store, purpose: str) -> Path:
        lease(fake.root, "runs-nobodys")
        lease(fake.root, "session-quick-0a1b2c3d")
        return original(store, purpose)

    monkeypatch.setattr(cleaning, "make_scratch", taken_up)
    done = clean(fake.store)
    assert {item.category for item, _ in done.removed} == {DEAD_LEASES, REMAINS}
    assert placed[UNREFERENCED].exists() and placed[CHECKPOINTS].exists()


def test_killed_before_deleting_leaves_something_for_the_next_cleaning(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(fake.root)
    leftovers(fake)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cleaning.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clean(fake.store)
    (trash,) = found(fake)[REMAINS]
    assert trash.startswith(".bench-trash-")
    assert units(fake.store) == [("tuning", "tuning-sbs-4bit"), ("runs", "fixed-4bit-0"), ("runs", "fixed-4bit-1")]
    clean(fake.store)
    assert content(fake.root) == before


def test_a_study_whose_removal_was_killed_after_its_folder_is_finished_by_plain_cleaning(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.rename
    moved: list[Path] = []

    def killed(self: Path, target: Path) -> Path:
        if moved:
            raise KeyboardInterrupt
        moved.append(self)
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            clean(fake.store, "quick")
    assert moved == [fake.root.resolve() / "studies" / "quick"]
    clean(fake.store)
    assert units(fake.store) == []


def test_two_at_once_remove_everything_once(fake: FakeStore) -> None:
    for number in range(120):
        unit(fake, f"nobodys-{number}")
    counts, errors = [], []

    def work() -> None:
        try:
            counts.append(sum(item.category == UNREFERENCED for item, _ in clean(fake.store).removed))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sum(counts) == 120
    assert len(units(fake.store)) == 3
    clean(fake.store)
    assert not list(fake.root.glob(".bench-*"))


def test_what_cannot_be_removed_is_told(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    unit(fake, "nobodys")

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refused)
    done = clean(fake.store)
    assert done.removed == []
    assert done.failures == [f"{fake.root.resolve() / 'runs' / 'nobodys'} could not be removed: Permission denied"]


# --- the command ---


@pytest.fixture
def command(fake: FakeStore) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str) -> tuple[int, str]:
        answer = CliRunner().invoke(
            bench, ["clean", *arguments, "--store", str(fake.root)], standalone_mode=False, catch_exceptions=False
        )
        return int(answer.return_value), answer.output

    return run


def test_without_yes_it_only_tells(fake: FakeStore, command: Callable[..., tuple[int, str]]) -> None:
    leftovers(fake)
    before = content(fake.root)
    status, out = command()
    assert status == 0
    assert content(fake.root) == before
    lines = out.splitlines()
    assert lines[-1].startswith("nothing was removed; to remove these files: bench clean --yes --store /")
    assert [line.split()[:3] for line in lines if CHECKPOINTS in line] == [["removable", "checkpoints", "of"]]
    assert any(line.endswith("100 B") for line in lines if CHECKPOINTS in line)
    assert any(line.startswith("the store holds ") and "runs " in line for line in lines)


def test_with_yes_it_tells_what_went(fake: FakeStore, command: Callable[..., tuple[int, str]]) -> None:
    leftovers(fake)
    status, out = command("--yes")
    assert status == 0 and "removed  in all" in out and "nothing was removed" not in out
    status, out = command()
    assert status == 0 and out.startswith("nothing to remove\n")


def test_mistakes_are_one_clear_line(fake: FakeStore, command: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"unknown study 'quik': did you mean 'quick'\?"):
        command("quik")
    with pytest.raises(BenchError, match="unknown study"):
        command("../runs", "--yes")
    with pytest.raises(BenchError, match=r"there is no store '.*nowhere'; give its folder with --store DIR"):
        survey(Store(tmp_path / "nowhere"))


def test_a_process_that_is_killed_while_it_cleans_does_no_harm(fake: FakeStore) -> None:
    for number in range(60):
        unit(fake, f"nobodys-{number}")
    code = (
        "import os, sys; from pathlib import Path\n"
        "from bench.store.cleaning.cleanup import clean; from bench.store.files import Store\n"
        "seen = []\n"
        "def rename(self, target, original=Path.rename):\n"
        "    seen.append(self)\n"
        "    return os.kill(os.getpid(), 9) if len(seen) == 30 else original(self, target)\n"
        "Path.rename = rename; clean(Store(Path(sys.argv[1])))\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(fake.root)], check=False).returncode == -9
    assert len(units(fake.store)) == 3 + 31
    clean(fake.store)  # the lock of the dead is free
    assert len(units(fake.store)) == 3
    assert not list(fake.root.glob(".bench-*"))


# --- sizes and names ---


def test_sizes(fake: FakeStore) -> None:
    (fake.root / "mlflow.db").write_bytes(b"x" * 1000)
    used = size_by_kind(fake.store)
    assert used["MLflow"] == 1000
    assert used["runs"] == size_of(fake.root / "runs") > 0
    assert sum(used.values()) == size_of(fake.root)
    assert [size_in_words(size) for size in (0, 999, 1500, 2.5e6, 3.25e9)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "3.2 GB",
    ]


def test_the_unit_of_a_lease() -> None:
    assert leased_unit("runs-0a-1b") == ("runs", "0a-1b")
    assert leased_unit("trials-0a1b-12") == ("tuning", "0a1b")
    assert leased_unit("session-quick-0a1b2c3d") is None
    assert leased_unit("card-host-0-0") is None


def test_leases_are_those_of_the_harness(fake: FakeStore) -> None:
    """What tests write by hand is read as the real ones are."""
    made = Leases(fake.root).acquire("runs-real", "title")
    assert made is not None
    real = json.loads(made.path.read_text())
    written = json.loads(lease(fake.root, "runs-written").read_text())
    assert real.keys() == written.keys()
    assert found(fake) == {}
    made.release()
