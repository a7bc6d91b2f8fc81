"""Names and ids from files, archives and the command line never lead out of the store."""

import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.__main__ import main
from bench.errors import BenchError
from bench.inputs.names import FileName, StudyName, UnitId, inside
from bench.store.archive import archive
from bench.store.cleaning.cleanup import clean
from bench.store.cleaning.survey import survey
from bench.store.contents import units_of
from bench.store.files import Store, manifest, read_checked, write_checked, write_json
from bench.store.gpu_leases import GpuRequest, gpu_lease
from bench.store.leases import Holder, Leases, remove_dead_sessions
from tests import fake_store
from tests.fake_store import FakeStore

Command = Callable[..., tuple[int, str]]

HOSTILE = [
    "../../victim",
    "../../../victim",
    "..",
    ".",
    "",
    "/",
    "a/b",
    "../runs/fixed-4bit-1",
    "fixed-4bit-0/",
    "./fixed-4bit-0",
    "fixed-4bit-0/../../../victim",
    ".hidden",
    "-rf",
    "~",
    "$HOME",
    "a\0b",
    "a\nb",
    "x" * 5000,
    "\ud800",
    "\u202edlrow",
    "fixed-4bit-0.stale-1",
    "*",
]
"""Texts that are no ids; some of them lead out of the folder in which ids lie."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a store, and beside it a folder that looks like a unit and must survive everything."""
    fake = FakeStore(tmp_path / "store")
    fake.seeds("fixed", [70.0, 71.0])
    fake.tuning("sbs", [0.2, 0.4])
    fake.document()
    for name in ("victim", "store/victim"):
        write_checked(tmp_path / name / "record.json", {"id": "victim", "status": "done", "files": {}})
        write_json(tmp_path / name / "spec.json", {})
    return tmp_path


@pytest.fixture
def command(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `bench` on the store; return the exit status and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["bench", arguments[0], "--store", str(home / "store"), *arguments[1:]])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


def change_study(home: Path, **fields: Any) -> None:
    """Write the study's document with other fields, and a checksum that fits them."""
    path = home / "store" / "studies" / "quick" / "study.json"
    document = read_checked(path)
    assert document is not None
    write_checked(path, {**document, **fields})


def outside(home: Path) -> dict[str, bytes]:
    """Everything that is not the store's."""
    paths = [path for path in sorted(home.rglob("*")) if path.is_file()]
    return {
        str(path): path.read_bytes() for path in paths if "victim" in path.parts or home / "store" not in path.parents
    }


# --- clean ---


@pytest.mark.parametrize("kind", ["runs", "tunings", "pretrained"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_study_that_lists_a_folder_outside_cannot_have_it_removed(
    home: Path, command: Command, kind: str, absolute: bool
) -> None:
    before = outside(home)
    change_study(home, **{kind: [str(home / "victim") if absolute else "../../victim", "fixed-4bit-0"]})
    status, printed = command("clean", "quick", "--yes")
    assert status == 0, printed
    assert outside(home) == before


def test_an_archive_that_lists_a_folder_outside_is_refused(home: Path, command: Command) -> None:
    before = outside(home)
    change_study(home, runs=["../../victim", "fixed-4bit-0"])
    file = _packed(home)
    shutil.rmtree(home / "store" / "studies")
    status, printed = command("restore", str(file))
    assert status == 2 and printed.count("\n") == 1
    assert "is not the document of study 'quick'" in printed
    assert not (home / "store" / "studies").exists()
    command("clean", "quick", "--yes")
    assert outside(home).items() >= before.items()


def _packed(home: Path) -> Path:
    """An archive of the study as an attacker writes it, with a manifest that fits."""
    import hashlib

    target, listed = home / "quick.tar.gz", {}
    root = home / "store"
    with tarfile.open(target, "w:gz") as tar:
        for path in sorted((root / "studies").rglob("*.json")) + sorted((root / "runs").rglob("*.json")):
            name, content = path.relative_to(root).as_posix(), path.read_bytes()
            if name.startswith(("studies/quick/", "runs/fixed-4bit-0/")):
                listed[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                _add(tar, name, content)
        document = {"format": 1, "project": "sbs-bench", "version": "0", "study": "quick", "files": listed}
        _add(tar, "MANIFEST.json", json.dumps(document).encode())
    return target


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("name", ["runs/mine", "runs/mine.stale-1", "tuning/mine", "pretrained/mine"])
@pytest.mark.parametrize("of", ["nothing", "another unit", "no unit"])
def test_a_folder_that_is_no_unit_of_its_name_is_never_removed(home: Path, name: str, of: str) -> None:
    folder = home / "store" / name
    write_json(folder / "spec.json", {} if of == "nothing" else {"id": "mine"})
    record = {"another unit": {"id": "other", "status": "done"}, "no unit": {"id": "mine", "status": ["done"]}}
    write_checked(folder / "record.json", record.get(of, {}))
    done = clean(Store(home / "store"))
    assert not done.removed and folder.is_dir()
    assert any(str(folder) in note and "left alone" in note for note in done.notes)


def test_a_unit_is_known_by_its_specification_when_its_record_is_damaged(home: Path) -> None:
    folder = home / "store" / "runs" / "nobodys"
    stored = {"id": "nobodys", "unit": {}, "depends_on": {}, "specification": {}}
    write_checked(folder / "spec.json", stored)
    (folder / "record.json").write_text("{")
    assert [item.path for item, _ in clean(Store(home / "store")).removed] == [folder]


# --- every command that reads a store ---

COMMANDS = [
    ("status", "quick"),
    ("report", "quick"),
    ("compare", "quick/fixed", "fixed-4bit-0"),
    ("plan", "quick", "--detect", "1"),
    ("clean",),
    ("clean", "quick", "--yes"),
    ("archive", "quick", "again.tar.gz"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("field", "text"),
    [("runs", "../../victim"), ("tunings", "a\nb"), ("pretrained", "\ud800"), ("name", "../../victim")],
)
def test_commands_refuse_a_study_with_hostile_names(
    home: Path, command: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], field: str, text: str
) -> None:
    monkeypatch.chdir(home)
    before = outside(home)
    change_study(home, **{field: text if field == "name" else [text]})
    status, printed = command(*arguments)
    assert status in (0, 2) and "Traceback" not in printed
    if arguments[0] != "clean":
        assert status == 2 and printed.count("\n") == 1 and "study.json' is damaged" in printed
    assert outside(home) == before


@pytest.mark.parametrize("arguments", [("status",), ("report",), ("clean",), ("archive",), ("compare",), ("restore",)])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.sampled_from(HOSTILE) | st.text(max_size=30))
def test_names_on_the_command_line_lead_nowhere(
    home: Path, command: Command, arguments: tuple[str, ...], text: str
) -> None:
    text = text.replace("\0", "").replace("\ud800", "\udc80")  # what a command line can hold
    before = outside(home)
    more = {"clean": ["--yes"], "archive": [str(home / "a.tar.gz")], "compare": ["quick"], "restore": ["--name", text]}
    first = str(home / "missing.tar.gz") if arguments[0] == "restore" else text
    status, printed = command(*arguments, *more.get(arguments[0], []), "--", first) if text != "quick" else (2, "")
    assert status in (0, 2) and "Traceback" not in printed
    assert outside(home) == before


# --- the types ---


@given(text=st.sampled_from(HOSTILE) | st.text() | st.text(alphabet="./-_a\n\0", max_size=8))
@example("a.stale-1")
def test_what_is_accepted_is_one_part_of_a_path_and_nothing_else(text: str) -> None:
    for kind in (UnitId, StudyName, FileName):
        if kind.is_valid(text):
            assert kind(text) == text
            assert os.path.normpath(f"/store/runs/{text}") == f"/store/runs/{text}" and text not in ("", ".", "..")
            assert os.path.dirname(f"/store/runs/{text}") == "/store/runs"  # noqa: PTH120
        else:
            with pytest.raises(BenchError) as told:
                kind(text)
            assert "\n" not in str(told.value) and len(str(told.value)) < 300
            str(told.value).encode()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_no_ids(text: str) -> None:
    assert not UnitId.is_valid(text) and (text == "fixed-4bit-0.stale-1" or not StudyName.is_valid(text))
    with pytest.raises(BenchError):
        units_of({"runs": [text]})
    for kind in ("runs", "tuning", "pretrained"):
        with pytest.raises(BenchError):
            Store(Path("store")).unit(kind, text)
    with pytest.raises(BenchError):
        Store(Path("store")).unit("trials", f"{text}-0")


def test_ids_of_the_harness_are_accepted() -> None:
    for text in ("0123456789abcdef", "fixed-4bit-0", "not-yet-run", "a" * 200, "_x.y"):
        assert UnitId(text) == text
    assert Store(Path("s")).unit("trials", "0a1b-3") == Path("s/tuning/0a1b/trials/3")


@pytest.mark.parametrize("place", ["runs/fixed-4bit-0", "tuning/tuning-sbs-4bit", "tuning/tuning-sbs-4bit/trials"])
def test_a_link_in_the_place_of_a_unit_is_refused_and_not_followed(home: Path, command: Command, place: str) -> None:
    path = home / "store" / place
    shutil.rmtree(path)
    path.symlink_to(home / "victim")
    before = outside(home)
    kind, identity = ("runs", "fixed-4bit-0") if place.startswith("runs") else ("trials", "tuning-sbs-4bit-0")
    with pytest.raises(BenchError, match="is a link that leads out of"):
        Store(home / "store").unit(kind, identity)
    command("clean", "quick", "--yes")
    assert outside(home) == before


def test_a_folder_of_units_on_another_disk_and_a_link_within_it_can_be_read(home: Path) -> None:
    shutil.move(home / "store" / "runs", home / "disk")
    (home / "store" / "runs").symlink_to(home / "disk")
    (home / "disk" / "other").symlink_to("fixed-4bit-1")
    assert Store(home / "store").record("runs", "fixed-4bit-0") is not None
    assert inside(home / "store" / "runs", UnitId("other")).is_dir()


# --- records and leases ---


@pytest.mark.parametrize("name", ["../../../victim/record.json", "/etc/hostname", "..", ""])
def test_a_record_that_lists_a_file_outside_counts_as_damaged(home: Path, name: str) -> None:
    store = Store(home / "store")
    record = store.record("runs", "fixed-4bit-0")
    assert record is not None
    listed = {name: manifest(home / "victim", ["record.json"])["record.json"]}
    assert store.damage("runs", "fixed-4bit-0", record | {"files": listed}) is not None
    store.write_record("runs", "fixed-4bit-0", record | {"files": listed})
    assert store.record("runs", "fixed-4bit-0") is None


def test_a_listed_file_that_is_a_link_out_of_the_unit_counts_as_damaged(home: Path) -> None:
    store = Store(home / "store")
    path = home / "store" / "runs" / "fixed-4bit-0" / "policy.json"
    path.rename(home / "policy.json")
    path.symlink_to(home / "policy.json")
    damage = store.damage("runs", "fixed-4bit-0", store.record("runs", "fixed-4bit-0") or {})
    assert damage is not None and "is a link that leads out" in damage


def test_a_lease_that_gives_another_name_has_nothing_removed(home: Path) -> None:
    precious = home / "precious.json"
    precious.write_text("{}")
    dead = {**Holder.this().to_json(), "born": "0"}
    for name in ("session-../../precious", str(home / "precious")):
        document = {"name": name, "token": "t", "holder": dead, "beat": 1, "time": "", "title": "", "progress": {}}
        write_json(home / "store" / "leases" / "session-quick-0a1b2c3d.json", document)
        leases = Leases(home / "store")
        assert leases.read("session-quick-0a1b2c3d") is None
        remove_dead_sessions(leases)
    assert precious.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"beat": "1"},
        {"beat": None},
        {"holder": []},
        {"holder": {"host": "h", "boot": "b", "pid": "../self", "born": "0"}},
        {"title": 1},
        {"progress": [1]},
        {"progress": {"epoch": "x"}},
        {"more": 1},
    ],
)
def test_a_lease_with_wrong_types_cannot_be_read(home: Path, change: dict[str, Any]) -> None:
    document = {"name": "runs-x", "token": "t", "holder": Holder.this().to_json(), "beat": 1, "time": "", "title": ""}
    path = home / "store" / "leases" / "runs-x.json"
    write_json(path, document)
    assert Leases(home / "store").read("runs-x") is not None
    write_json(path, document | change)
    assert Leases(home / "store").read("runs-x") is None
    survey(Store(home / "store"))


def test_a_gpu_whose_name_has_slashes_is_leased(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.store.gpu_leases.visible_gpus", lambda: ["MIG-GPU-0a/1/0"])
    leases = Leases(home / "store")
    with gpu_lease(leases, GpuRequest(device="cuda"), "work", lambda: False) as gpu:
        assert gpu == "MIG-GPU-0a/1/0"
        assert [view.name for view in leases.all() if view.name.startswith("card-")]


def test_the_archive_of_a_study_holds_its_own_files_only(home: Path, tmp_path: Path) -> None:
    fake = replace(fake_store.mixed(tmp_path / "other"), name="quick")
    fake.document()
    (fake.root / "runs" / "fixed-4bit-0" / "stolen.json").symlink_to("/etc/passwd")
    os.mkfifo(fake.root / "runs" / "fixed-4bit-0" / "pipe.json")
    archive(fake.store, "quick", tmp_path / "a.tar.gz")
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        assert not [name for name in tar.getnames() if "stolen" in name or "pipe" in name]
