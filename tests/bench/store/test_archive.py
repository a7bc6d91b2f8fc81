"""Studies as one file: what comes back, and what is refused."""

import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.__main__ import main
from bench.cli.store import shortcomings
from bench.errors import BenchError
from bench.plugins.registry import load
from bench.reporting.mlflow.tracker import Tracker
from bench.reporting.report import Table
from bench.results.tables import StudyResults
from bench.store.archive import MANIFEST, archive, restore, restoring, verifying
from bench.store.cleaning.cleanup import clean
from bench.store.cleaning.survey import survey
from bench.store.files import Store, read_checked, write_checked, write_json, write_text
from bench.store.leases import Holder
from tests import fake_store

FakeStore = fake_store.FakeStore


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> FakeStore:
    """A study with everything that can go wrong with a run, and beside its store its archive. Do not write to it."""
    fake = fake_store.mixed(tmp_path_factory.mktemp("original") / "store")
    fake.document()
    write_text(fake.root / "runs" / "fixed-4bit-0" / "checkpoints" / "search.000001.aa.pt", "of a finished run")
    write_text(fake.root / "runs" / "dnas-4bit-3" / "checkpoints" / "search.000001.aa.pt", "of a run under way")
    write_text(fake.root / "runs" / "dnas-4bit-3" / "output.log", "printed")
    write_text(fake.root / "studies" / "quick" / "table.md", "a table")
    write_text(fake.root / "mlflow.db", "a database")
    write_text(fake.root / "leases" / "runs-gone.json", "{}")
    archive(fake.store, "quick", fake.root.with_name("quick.tar.gz"))
    return fake


@pytest.fixture
def fake(original: FakeStore, tmp_path: Path) -> FakeStore:
    """A copy of the study."""
    return replace(original, root=Path(shutil.copytree(original.root, tmp_path / "store")))


@pytest.fixture
def file(original: FakeStore, tmp_path: Path) -> Path:
    """A copy of its archive."""
    return Path(shutil.copy(original.root.with_name("quick.tar.gz"), tmp_path))


def members(file: Path) -> dict[str, bytes]:
    """What is in an archive."""
    with tarfile.open(file) as tar:
        read = ((member.name, tar.extractfile(member)) for member in tar)
        return {name: content.read() for name, content in read if content is not None}


Entry = tuple[str | tarfile.TarInfo, bytes]


def pack(file: Path, entries: Iterable[Entry], *, manifest: bool = True, **fields: Any) -> Path:
    """Write an archive by hand, with a manifest that fits unless it is told otherwise."""
    listed = {}
    with tarfile.open(file, "w:gz") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            listed[info.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            tar.addfile(info, io.BytesIO(content))
        if manifest:
            document = {"format": 1, "project": "sbs-bench", "version": "0", "study": "quick", "files": listed}
            content = json.dumps(document | fields).encode()
            info = tarfile.TarInfo(MANIFEST)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """An entry that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tree(root: Path) -> dict[str, bytes]:
    """All files below a folder, but for locks."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


# --- what comes back ---


def test_a_study_comes_back_as_it_was(fake: FakeStore, file: Path, tmp_path: Path) -> None:
    there = Store(tmp_path / "there")
    done = restore(there, file)
    assert (done.study, done.added, done.kept) == ("quick", 14, 0)
    left_out = ("mlflow.db", "leases/", "runs/fixed-4bit-0/checkpoints/")
    assert tree(there.root) == {name: text for name, text in tree(fake.root).items() if not name.startswith(left_out)}
    report, study = load("reports", "comparison")(), fake.store.load_study("quick")
    both = (
        report.build(results)
        for results in (StudyResults(there, there.load_study(None)), StudyResults(fake.store, study))
    )
    restored, before = ([part for part in parts if isinstance(part, Table)] for parts in both)
    assert restored and restored == before
    assert StudyResults(there, study).lines.equals(StudyResults(fake.store, study).lines)
    assert not survey(there).items


def test_equal_content_gives_equal_bytes(fake: FakeStore, file: Path, tmp_path: Path) -> None:
    for path in fake.root.rglob("*"):
        os.utime(path, (0, 0))
    archive(fake.store, "quick", tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == file.read_bytes()
    names = list(members(file))
    assert names[-1] == MANIFEST
    assert names.index("runs/fixed-4bit-0/record.json") < names.index("runs/fixed-4bit-0/curves.json")


def test_only_what_is_the_studys_goes_in(fake: FakeStore, tmp_path: Path) -> None:
    FakeStore(fake.root, name="other").run("dnas", 9, 60.0)
    write_text(fake.root / "runs" / "fixed-4bit-0.stale-1" / "record.json", "{}")
    write_text(fake.root / "runs" / "fixed-4bit-0" / ".record.json.0a1b2c3d.tmp", "{")
    (fake.root / "runs" / "fixed-4bit-0" / "link").symlink_to("/etc/passwd")
    write_text(fake.root / "studies" / "quick" / "Grüße.txt", "mine")
    done = archive(fake.store, "quick", tmp_path / "a.tar.gz")
    names = set(members(tmp_path / "a.tar.gz"))
    assert not [name for name in names if "-9" in name or "stale" in name or "tmp" in name or "link" in name]
    assert done.left_out == 1 and done.files == len(names) - 1 and done.units == 14


def test_what_is_lacking_is_told(fake: FakeStore) -> None:
    (line,) = shortcomings(fake.store, fake.store.load_study("quick"))
    assert line == "4 of 14 runs have no valid result: 1 failed, 1 running, 1 missing, 1 damaged"
    document = {"name": "session-quick-0a1b2c3d", "token": "t", "holder": Holder.this().to_json(), "beat": 1}
    write_json(
        fake.root / "leases" / "session-quick-0a1b2c3d.json", document | {"time": "", "title": "", "progress": {}}
    )
    assert "is running the study" in shortcomings(fake.store, fake.store.load_study("quick"))[1]


def test_nothing_is_overwritten_and_nothing_half_written(
    fake: FakeStore, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()
    with pytest.raises(BenchError, match="exists already; give another name, or remove it first: `rm /"):
        archive(fake.store, "quick", file)
    with pytest.raises(BenchError, match=r"no study 'quik'"):
        archive(fake.store, "quik", tmp_path / "b.tar.gz")
    with pytest.raises(BenchError, match=r"cannot write '.*': No such file"):
        archive(fake.store, "quick", tmp_path / "missing" / "b.tar.gz")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BenchError, match="No space left on device; nothing was written"):
        archive(fake.store, "quick", tmp_path / "b.tar.gz")
    assert {path.name for path in tmp_path.iterdir()} == {"store", "quick.tar.gz"}
    assert file.read_bytes() == before


def test_a_file_of_that_name_that_appears_meanwhile_is_kept(
    fake: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "b.tar.gz"
    monkeypatch.setattr(os, "fsync", lambda _: target.write_text("another one's"))
    with pytest.raises(BenchError, match="File exists"):
        archive(fake.store, "quick", target)
    assert target.read_text() == "another one's"


# --- what the store has already ---


def test_restoring_again_keeps_everything(fake: FakeStore, file: Path) -> None:
    before = tree(fake.root)
    done = restore(fake.store, file)
    assert (done.added, done.kept) == (0, 14)
    assert tree(fake.root) == before


@pytest.mark.parametrize(
    ("state", "is_kept"),
    [("other result", True), ("damaged file", False), ("damaged record", False), ("failed", False), ("running", False)],
)
def test_an_intact_result_is_kept_and_anything_else_replaced(
    fake: FakeStore, file: Path, state: str, is_kept: bool
) -> None:
    folder = fake.root / "runs" / "fixed-4bit-0"
    archived = tree(folder)
    record = fake.store.record("runs", "fixed-4bit-0")
    if state == "damaged file":
        (folder / "policy.json").write_text("{}")
    elif state == "damaged record":
        (folder / "record.json").write_text("{")
    else:
        changes = {"seed": 77} if state == "other result" else {"status": state}
        write_checked(folder / "record.json", record | changes)
    changed = tree(folder)
    assert restore(fake.store, file).added == (not is_kept)
    left_out = "checkpoints/search.000001.aa.pt"
    expected = changed if is_kept else {name: text for name, text in archived.items() if name != left_out}
    assert tree(folder) == expected
    assert not survey(fake.store, None).items or is_kept


def test_an_unfinished_unit_of_the_store_is_kept_when_the_archives_is_unfinished_too(
    fake: FakeStore, file: Path
) -> None:
    checkpoint = fake.root / "runs" / "dnas-4bit-3" / "checkpoints" / "search.000002.bb.pt"
    write_text(checkpoint, "further")
    assert restore(fake.store, file).added == 0
    assert checkpoint.exists()


def test_what_somebody_works_on_is_kept(fake: FakeStore, file: Path) -> None:
    document = {"name": "runs-fixed-4bit-0", "token": "t", "holder": Holder.this().to_json(), "beat": 1}
    write_json(fake.root / "leases" / "runs-fixed-4bit-0.json", document | {"time": "", "title": "", "progress": {}})
    record = fake.store.record("runs", "fixed-4bit-0")
    fake.store.write_record("runs", "fixed-4bit-0", record | {"status": "running"})
    assert restore(fake.store, file).added == 0


def test_another_study_of_the_same_name_is_an_error_and_another_name_the_way_out(
    fake: FakeStore, file: Path, tmp_path: Path
) -> None:
    there = FakeStore(tmp_path / "there", spec={"seeds": [7]})
    there.document()
    before = tree(there.root)
    with pytest.raises(BenchError, match=r"has another study 'quick' .* with --name NEW"):
        restore(there.store, file)
    assert tree(there.root) == before
    done = restore(there.store, file, "archived-1")
    assert (done.study, done.added) == ("archived-1", 14)
    document = there.store.load_study("archived-1")
    assert document["name"] == document["spec"]["name"] == "archived-1"
    assert document["runs"] == fake.store.load_study("quick")["runs"]
    assert tree(there.root)["studies/quick/study.json"] == before["studies/quick/study.json"]
    assert restore(there.store, file, "archived-1").added == 0  # the same study by its other name


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 101])
def test_a_name_that_is_none_is_refused(file: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BenchError, match=r"--name '.*' is not a valid name of a study"):
        restore(Store(tmp_path / "there"), file, name)
    assert not (tmp_path / "there").exists()


def test_a_damaged_study_in_the_store_is_not_overwritten(fake: FakeStore, file: Path) -> None:
    (fake.root / "studies" / "quick" / "study.json").write_text("{")
    with pytest.raises(BenchError, match="is damaged; remove that study with `bench clean quick --yes --store /"):
        restore(fake.store, file)


def test_notes_in_the_place_of_the_study_are_kept(file: Path, tmp_path: Path) -> None:
    notes = tmp_path / "there" / "studies" / "quick" / "notes.txt"
    write_text(notes, "mine")
    restore(Store(tmp_path / "there"), file)
    assert notes.read_text() == "mine"
    assert read_checked(notes.with_name("study.json")) is not None


@pytest.mark.parametrize("step", ["unpacking", "placing"])
def test_a_restoration_that_is_cut_off_leaves_only_what_cleaning_removes(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    there = Store(tmp_path / "there")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "_check_records" if step == "unpacking" else "_install_study", killed)
        patch.setattr(restoring.shutil, "rmtree", lambda *_, **__: None)  # as if the process were gone
        with pytest.raises(KeyboardInterrupt):
            restore(there, file)
    assert there.studies() == []
    (scratch,) = there.root.glob(".bench-restore-*")
    os.utime(scratch, (0, 0))
    clean(there)
    assert tree(there.root) == {}
    assert restore(there, file).added == 14


def test_a_full_disk_leaves_nothing(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(restoring, "_write_file", full)
    with pytest.raises(BenchError, match=r"cannot restore '.*': No space left on device"):
        restore(Store(tmp_path / "there"), file)
    assert tree(tmp_path / "there") == {}


# --- what is refused ---


def refusal(file: Path, there: Path) -> str:
    """Why an archive is refused; nothing of it may have been written anywhere."""
    beside = {path for path in there.parent.rglob("*") if there not in path.parents and path != there}
    with pytest.raises(BenchError) as caught:
        restore(Store(there), file)
    assert tree(there) == {} if there.exists() else True
    assert {path for path in there.parent.rglob("*") if there not in path.parents and path != there} == beside
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/cron.d/x", "../outside", "runs/../../outside", "runs/fixed-4bit-0/../../../x", "runs/./a/record.json"),
        *(
            "runs",
            "runs/a",
            "runs//a/record.json",
            "runs/a/b/c",
            "runs/a/.hidden",
            ".lock",
            "mlflow.db",
            "leases/a.json",
        ),
        *("runs/a.stale-1/record.json", "runs/a\nb/record.json", "runs\\a\\record.json", "C:/x", "runs/a\x1b[2J/x"),
        *("tuning/a/trials/x/trial.json", "tuning/a/trials/0/x/y", "studies/quick", "studies/../x/study.json"),
        *(
            "~/x",
            "trials/a/record.json",
            "runs/a/checkpoints/b/c",
            "/" + "x" * 300,
            "runs/" + "x" * 300 + "/record.json",
        ),
        *("runs/nobodys/record.json", "studies/other/study.json", "tuning/nobodys/record.json", "runs/é/record.json"),
    ],
)
def test_a_file_in_the_wrong_place_is_refused(file: Path, tmp_path: Path, name: str) -> None:
    entries = members(file)
    del entries[MANIFEST]
    told = refusal(pack(tmp_path / "hostile.tar.gz", [(name, b"x"), *entries.items()]), tmp_path / "there")
    assert "is not a path that a study's files have" in told or "does not belong to study 'quick'" in told
    assert told.isprintable()


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        *((tarfile.SYMTYPE, target) for target in ("/etc/passwd", "../..", "record.json")),
        *((tarfile.LNKTYPE, target) for target in ("/etc/passwd", "runs/fixed-4bit-0/record.json")),
        *((kind, "") for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"9")),
    ],
)
def test_only_files_are_accepted(file: Path, tmp_path: Path, kind: bytes, target: str) -> None:
    entries: dict[Any, bytes] = dict(members(file))
    del entries[MANIFEST]
    bad = special("runs/fixed-4bit-0/extra", kind, target)
    told = refusal(pack(tmp_path / "hostile.tar.gz", [*entries.items(), (bad, b"")]), tmp_path / "there")
    assert "only files are allowed" in told


def test_a_link_and_a_file_beneath_it_cannot_lead_outside(file: Path, tmp_path: Path) -> None:
    link = special("runs/fixed-4bit-0/checkpoints", tarfile.SYMTYPE, str(tmp_path))
    entries: list[Entry] = [(link, b""), ("runs/fixed-4bit-0/checkpoints/escaped", b"x")]
    refusal(pack(tmp_path / "hostile.tar.gz", entries), tmp_path / "there")
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("missing manifest", "it has no MANIFEST.json"),
        ("missing file", "is missing in it"),
        ("extra file", "is not listed in its MANIFEST.json"),
        ("wrong checksum", "is damaged: its checksum differs"),
        ("wrong size", "is damaged: its checksum differs"),
        ("twice", "is in it twice"),
        ("file and folder", "is both a file and a folder"),
        ("no study.json", "'studies/quick/study.json' is missing in it"),
        ("another study.json", "is not the document of study 'quick'"),
        ("damaged study.json", "'studies/quick/study.json' in it is damaged"),
        ("changed study.json", "the study.json of 'quick' in it does not have its checksum"),
        ("another unit's record", "the record in runs/fixed-4bit-0 is that of 'fixed-4bit-1'"),
    ],
)
def test_contents_that_do_not_fit_are_refused(file: Path, tmp_path: Path, change: str, told: str) -> None:
    entries = members(file)
    listed = json.loads(entries.pop(MANIFEST))["files"]
    fields: dict[str, Any] = {}
    run, study = "runs/fixed-4bit-0/", "studies/quick/study.json"
    twice: list[Entry] = []
    if change == "missing file":
        del entries[run + "policy.json"]
        fields = {"files": listed}
    elif change == "extra file":
        entries[run + "extra.json"] = b"{}"
        fields = {"files": listed}
    elif change in ("wrong checksum", "wrong size"):
        entries[run + "policy.json"] += b" " if change == "wrong size" else b""
        entries[run + "policy.json"] = entries[run + "policy.json"].replace(b"8", b"4")
        fields = {"files": listed}
    elif change == "twice":
        twice = [(run + "policy.json", b"another")]
    elif change == "file and folder":
        entries |= {run + "checkpoints": b"x", run + "checkpoints/a.pt": b"x"}
    elif change == "no study.json":
        del entries[study]
    elif change == "another study.json":
        entries[study] = entries[study].replace(b'"name": "quick"', b'"name": "quack"')
    elif change == "damaged study.json":
        entries[study] = entries[study][:50]
    elif change == "changed study.json":
        entries[study] = entries[study].replace(b"2026-01-01", b"2026-01-02")
    elif change == "another unit's record":
        entries[run + "record.json"] = entries["runs/fixed-4bit-1/record.json"]
    hostile = pack(
        tmp_path / "hostile.tar.gz", [*entries.items(), *twice], manifest=change != "missing manifest", **fields
    )
    assert told in refusal(hostile, tmp_path / "there")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"format": 2, "version": "9.9"}, "it was written by a newer harness (9.9); update this one"),
        ({"format": "1"}, "is not one of this harness"),
        ({"project": "other"}, "is not one of this harness"),
        ({"study": "../x"}, "names no study"),
        ({"study": 5}, "names no study"),
        ({"study": "other"}, "'studies/other/study.json' is missing in it"),
        ({"files": []}, "lists no files"),
        ({"files": {}}, "is not listed in its MANIFEST.json"),
    ],
)
def test_a_manifest_that_is_none_is_refused(file: Path, tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    entries = members(file)
    del entries[MANIFEST]
    assert told in refusal(pack(tmp_path / "hostile.tar.gz", entries.items(), **fields), tmp_path / "there")


def test_too_many_files_and_too_large_ones_are_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(verifying, "MAX_FILES", 20)
        assert "it has more than 20 files" in refusal(file, tmp_path / "there")
    with monkeypatch.context() as patch:
        patch.setattr(verifying, "JSON_BYTES", 100)
        assert "at most 100 B are allowed" in refusal(file, tmp_path / "there")
    with monkeypatch.context() as patch:
        patch.setattr(restoring, "free_bytes", lambda _: 5000)
        assert "or more; 5.0 kB are free" in refusal(file, tmp_path / "there")


def test_a_header_that_asks_for_all_memory_is_refused(tmp_path: Path) -> None:
    """The extended header of an entry is read as a whole; its size is what the file says."""
    info = special("././@PaxHeader", tarfile.XHDTYPE)
    info.size = 1 << 40
    (tmp_path / "hostile.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)))
    assert "a header is larger than any" in refusal(tmp_path / "hostile.tar.gz", tmp_path / "there")


def test_a_chain_of_headers_without_end_is_refused(tmp_path: Path) -> None:
    content = b"11 path=aaa"
    info = special("././@PaxHeader", tarfile.XHDTYPE)
    info.size = len(content)
    header = info.tobuf() + content.ljust(512, b"\0")
    (tmp_path / "hostile.tar.gz").write_bytes(gzip.compress(header * 3000))
    assert "cannot restore" in refusal(tmp_path / "hostile.tar.gz", tmp_path / "there")


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", gzip.compress(b"", mtime=0), gzip.compress(b"x" * 5000, mtime=0), b"\x1f\x8b\x08"],
    ids=["empty", "text", "packed nothing", "packed text", "cut off"],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hostile.tar.gz").write_bytes(content)
    assert "cannot restore" in refusal(tmp_path / "hostile.tar.gz", tmp_path / "there")


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tmp_path / "missing.tar.gz", tmp_path / "there")
    assert "Is a directory" in refusal(tmp_path, tmp_path / "there")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_archive_is_refused(file: Path, tmp_path: Path, share: float) -> None:
    whole = file.read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: int(share * len(whole))])
    refusal(tmp_path / "cut.tar.gz", tmp_path / "there")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_an_archive_with_a_flipped_bit_is_refused(file: Path, tmp_path: Path, share: float, bit: int) -> None:
    content = bytearray(file.read_bytes())
    place = int(share * len(content))
    content[place] ^= 1 << bit
    (tmp_path / "flipped.tar.gz").write_bytes(content)
    with suppress(OSError, EOFError, zlib.error):
        if gzip.decompress(content) == gzip.decompress(file.read_bytes()):  # a bit of which nothing depends
            return
    refusal(tmp_path / "flipped.tar.gz", tmp_path / "there")


def test_something_behind_the_end_is_refused(file: Path, tmp_path: Path) -> None:
    (tmp_path / "longer.tar.gz").write_bytes(file.read_bytes() + gzip.compress(b"more"))
    assert "something follows its end" in refusal(tmp_path / "longer.tar.gz", tmp_path / "there")


def test_an_archive_that_changes_while_it_is_restored_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = members(file)
    del entries[MANIFEST]
    entries["runs/fixed-4bit-0/policy.json"] = b"{}"
    original = restoring.make_scratch

    def swapped(store: Store, purpose: str) -> Path:
        pack(file, entries.items())
        return original(store, purpose)

    monkeypatch.setattr(restoring, "make_scratch", swapped)
    with pytest.raises(BenchError, match=r"'runs/fixed-4bit-0/policy.json' in it changed while it was read"):
        restore(Store(tmp_path / "there"), file)
    assert tree(tmp_path / "there") == {}


# --- the commands, with a real study ---


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setattr(Tracker, "prepare", lambda *_: True)
    monkeypatch.setattr(Tracker, "log_study", lambda *_, **__: True)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return run


def test_archive_restore_report_and_run_again(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    epochs = (f"{part}.{key}=1" for part in ("pretrain", "search", "finetune") for key in ("epochs",))
    study = [
        "run",
        "--in-process",
        "--methods",
        "fixed",
        "--model",
        "resnet8",
        "--dataset",
        "synthetic",
        "--seeds",
        "1",
    ]
    study += ["--device", "cpu", "--set", "task.train_images=64", "--set", "threads=1"]
    study += [part for setting in epochs for part in ("--set", setting)]
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "a.tar.gz"
    assert command(*study, "--store", here)[0] == 0
    table = command("report", "--store", here)[1]
    status, out, _ = command("archive", "quick", file, "--store", here)
    assert status == 0 and "warning" not in out and f"bench restore {file}" in out
    status, out, _ = command("restore", file, "--store", there)
    assert status == 0 and out.startswith("study quick: 2 units added, 0 kept as they were\n")
    assert command("report", "quick", "--store", there)[1] == table
    units = {name: text for name, text in tree(there).items() if name.startswith(("runs/", "pretrained/"))}
    stamps = {path: path.stat().st_mtime_ns for path in there.glob("runs/*/*")}
    assert command(*study, "--store", there)[0] == 0
    assert {name: tree(there)[name] for name in units} == units
    assert {path: path.stat().st_mtime_ns for path in there.glob("runs/*/*")} == stamps
    status, out, err = command("archive", "quick", file, "--store", here)
    assert (status, out) == (2, "") and "exists already" in err
    (tmp_path / "a.tar.gz").write_bytes(b"x")
    status, out, err = command("restore", file, "--store", there)
    assert (status, out) == (2, "") and len(err.splitlines()) == 1


def test_a_renamed_study_has_tables_of_its_name(
    command: Callable[..., tuple[int, str, str]], file: Path, tmp_path: Path
) -> None:
    status, out, _ = command("restore", file, "--name", "renamed", "--store", tmp_path / "there")
    assert status == 0 and "its table: bench report renamed --store /" in out
    assert "renamed" in (tmp_path / "there" / "studies" / "renamed" / "table.md").read_text()
    assert "renamed: resnet8" in command("report", "renamed", "--store", tmp_path / "there")[1]
