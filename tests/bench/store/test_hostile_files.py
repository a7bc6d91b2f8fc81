"""Damaged and hostile files: they count as damaged, or end a command with one line; they never do more than that."""

import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import BenchError
from bench.inputs.reading import DEEPEST, JSON_BYTES, LARGEST_NUMBER, file_hash, parse_json, read_bytes, read_text
from bench.store.files import Store, load_state, read_checked, read_json, save_state, write_checked
from bench.training.checkpoints import Checkpoints
from tests import fake_store
from tests.faults.reading import READERS, Reader, attack, limited

NETWORKS = ("packed network", "packed transformer", "onnx network")
QUICK = {
    **{"json": 300, "policy": 300, "specification": 300, "hardware": 300, "measured times": 300},
    **{"state": 200, "checkpoint": 200},
    **dict.fromkeys(NETWORKS, 200),
}
"""Mutations for readers of one file; those that read a whole store get 25, and those that make all reports 3."""


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_mutated_file_never_does_more_than_to_be_refused(reader: Reader, tmp_path: Path) -> None:
    attack(reader, tmp_path, QUICK.get(reader.name, 3 if reader.name.startswith("reports") else 25))


# --- what is no regular file ---


def _folder(path: Path) -> None:
    path.mkdir()


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


SPECIAL = {"pipe": os.mkfifo, "folder": _folder, "endless": _endless, "loop": _loop, "sparse": _sparse}


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL.keys())
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_what_is_no_regular_file_is_refused_at_once(
    reader: Reader, make: Callable[[Path], None], tmp_path: Path
) -> None:
    if reader.name == "checkpoint" or (reader.name.startswith("reports") and make is not os.mkfifo):
        pytest.skip("the test of checkpoints below; the files of reports have one reader")
    path = reader.prepare(tmp_path)
    path.unlink()
    make(path)
    with limited():
        if reader.name in ("policy", "specification", "hardware", "state", "archive", *NETWORKS):
            with pytest.raises(BenchError) as told:
                reader.read(path)
            assert str(path) in str(told.value) and "\n" not in str(told.value)
        else:
            _read_or_refuse(reader, path)


def _read_or_refuse(reader: Reader, path: Path) -> None:
    try:
        reader.read(path)
    except BenchError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL.keys())
def test_a_special_file_in_place_of_a_listed_file_is_damage(make: Callable[[Path], None], tmp_path: Path) -> None:
    fake = fake_store.two_done(tmp_path)
    (identity, *_) = fake.runs
    record = fake.store.record("runs", identity)
    assert record is not None and fake.store.damage("runs", identity, record) is None
    path = fake.store.unit("runs", identity) / "policy.json"
    path.unlink()
    make(path)
    with limited():
        assert fake.store.damage("runs", identity, record, thorough=True) is not None


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL.keys())
def test_a_special_file_in_place_of_a_checkpoint_is_skipped(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "search.000001.0123456789abcdef.pt")
    with limited():
        if make is _sparse:
            pytest.skip("hashing it takes long; it cannot have its checksum")
        assert Checkpoints(tmp_path, {}).restore("search", {}) is None


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 11)
    assert read_bytes(tmp_path / "a", 11) == b"x" * 11
    with pytest.raises(OSError, match="has more than"):
        read_bytes(tmp_path / "a", 10)
    with pytest.raises(UnicodeDecodeError):
        (tmp_path / "a").write_bytes(b"\xff")
        read_text(tmp_path / "a")


# --- JSON ---


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1, "a": 2}',
        b'{"b": {"a": 1, "a": 1}}',
        b"9" * 5000,
        b"9" * 1_000_000,
        str(LARGEST_NUMBER).encode(),
        str(-LARGEST_NUMBER).encode(),
        b"[" * 1_000_000,
        b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1),
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b"\xff\xfe[\x001\x00]\x00",
        b"\xef\xbb\xbf[1]",
        b"[1",
        b"",
    ],
    ids=range(13),
)
def test_json_that_code_cannot_handle_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(content)
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") is None
    assert read_checked(tmp_path / "a.json") is None


def test_other_json_is_read_as_the_library_reads_it() -> None:
    document: Any = {"a": [1, -2.5, None, True, "λ", LARGEST_NUMBER - 1, {}], "b": {"c": []}, "d": [[[]]]}
    assert parse_json(json.dumps(document).encode()) == document
    nan, infinite = parse_json(b"[NaN, 1e999]")
    assert math.isnan(nan) and infinite == float("inf")
    deep = b"[" * DEEPEST + b"]" * DEEPEST
    assert parse_json(deep) == json.loads(deep)
    assert JSON_BYTES > 100_000 * 2 * 100  # a study with 100,000 runs


def test_halves_of_characters_are_replaced_and_the_checksum_is_that_of_the_file(tmp_path: Path) -> None:
    write_checked(tmp_path / "a.json", {"reason": "a\ud800b", "\udfff": ["\ud83d\ude00 λ"]})
    document = read_checked(tmp_path / "a.json")
    assert document is not None and document["reason"] == "a\ufffdb" and document["\ufffd"] == ["😀 λ"]
    assert read_json(tmp_path / "a.json") == document


# --- documents with a right checksum and wrong types ---


@pytest.mark.parametrize(
    "change",
    [
        {"status": ["done"]},
        {"status": None},
        {"metrics": {"top1": "70"}},
        {"metrics": {"top1": [70.0]}},
        {"metrics": 7},
        {"seed": 1.5},
        {"seed": 2**60},
        {"attempt": float("inf")},
        {"files": {"a": {"bytes": -1, "sha256": ""}}},
        {"files": ["a"]},
        {"budget_cost": "4"},
        {"tuning": "../../x"},
        {"filters": {"stem": "16"}},
    ],
)
def test_a_record_with_wrong_types_counts_as_damaged(change: dict[str, Any], tmp_path: Path) -> None:
    fake = fake_store.two_done(tmp_path)
    record = fake.store.record("runs", fake.runs[0])
    assert record is not None
    fake.store.write_record("runs", fake.runs[0], {**record, **change})
    assert fake.store.record("runs", fake.runs[0]) is None


def test_fields_that_older_or_newer_versions_write_are_no_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for record in ({"status": "done"}, {"id": "x", "status": "done", "news": [1]}, {"status": "new", "metrics": None}):
        store.write_record("runs", "x", record)
        assert store.record("runs", "x") is not None


# --- checkpoints ---


def test_a_checkpoint_that_would_unpack_to_more_than_it_has_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "a.pt", {"w": torch.zeros(1 << 20)})
    with zipfile.ZipFile(tmp_path / "a.pt") as source, zipfile.ZipFile(tmp_path / "b.pt", "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "b.pt").stat().st_size < 1 << 20
    with pytest.raises(BenchError, match="it is damaged or holds more than tensors"):
        load_state(tmp_path / "b.pt")
    assert load_state(tmp_path / "a.pt")["w"].numel() == 1 << 20


def test_a_checkpoint_with_its_checksum_and_something_else_in_it_is_skipped(tmp_path: Path) -> None:
    for content in ([1], 5, {"no": "state"}):
        torch.save(content, tmp_path / "x")
        (tmp_path / "x").rename(tmp_path / f"search.000001.{file_hash(tmp_path / 'x')[:16]}.pt")
    (tmp_path / "search.abcdef.0123456789abcdef.pt").write_bytes(b"")
    assert Checkpoints(tmp_path, {}).restore("search", {}) is None
