import hashlib
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.errors import BenchError
from bench.store import files as module
from bench.store.files import (
    Store,
    file_hash,
    load_state,
    manifest,
    read_checked,
    read_json,
    remove,
    save_state,
    write_bytes,
    write_checked,
    write_json,
    write_text,
)


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


# --- files ---


def test_json_comes_back_as_it_was(tmp_path: Path) -> None:
    document = {"text": "λ × 2", "numbers": [1, 2.5, None, True], "inner": {"a": 10**18}}
    write_json(tmp_path / "new" / "folder" / "a.json", document)
    assert read_json(tmp_path / "new" / "folder" / "a.json") == document


@pytest.mark.parametrize("content", [b"", b'{"id": "x", "sta', b"\xff\xfe\x00", b"{'id': 1}"])
def test_damaged_json_reads_as_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    assert read_json(tmp_path / "record.json") is None


def test_json_that_is_not_there_reads_as_nothing(tmp_path: Path) -> None:
    assert read_json(tmp_path / "missing.json") is None
    assert read_json(tmp_path) is None


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    file = tmp_path / "record.json"
    write_json(file, {"status": "running"})
    with monkeypatch.context() as patch:
        patch.setattr(*((module.os, "fsync") if step == "fsync" else (module.Path, "replace")), fail)
        with pytest.raises(type(error)):
            write_json(file, {"status": "done"})
    assert read_json(file) == {"status": "running"}
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_no_json_does_not_harm_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "1")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert (tmp_path / "a.json").read_text() == "1"


def test_a_reader_never_meets_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    seen = []
    monkeypatch.setattr(module.os, "fsync", lambda _: seen.append(file.read_text()))
    write_bytes(file, b"new" * 1000)
    assert seen == ["old"]
    assert file.read_bytes() == b"new" * 1000


def test_a_write_that_need_not_last_is_as_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "fsync", None)
    write_bytes(tmp_path / "a", b"1", durable=False)
    assert (tmp_path / "a").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# --- documents with a checksum ---


def test_a_checked_document_comes_back_with_its_checksum(tmp_path: Path) -> None:
    document = {"text": "λ", "numbers": [1, 2.5, None], "inner": {"b": 1, "a": 2}, "tuple": (1, 2)}
    write_checked(tmp_path / "a.json", document)
    found = read_checked(tmp_path / "a.json")
    assert found is not None
    assert len(found.pop("checksum")) == 64
    assert found == {**document, "tuple": [1, 2]}


def test_a_checked_document_may_be_read_changed_and_written_again(tmp_path: Path) -> None:
    write_checked(tmp_path / "a.json", {"status": "running"})
    before = read_checked(tmp_path / "a.json")
    assert before is not None
    write_checked(tmp_path / "a.json", before | {"status": "done"})
    after = read_checked(tmp_path / "a.json")
    assert after is not None and after["status"] == "done"
    assert after["checksum"] != before["checksum"]


def test_every_change_of_a_checked_document_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_checked(file, {"status": "done", "top1": 71.25, "knobs": {}})
    text = file.read_text()
    for old, new in (("done", "gone"), ("71.25", "71.26"), ("{}", '{"strength": 1}'), ('"checksum"', '"check"')):
        file.write_text(text.replace(old, new))
        assert read_checked(file) is None, new
    for length in range(0, len(text) - 1, 7):
        file.write_text(text[:length])
        assert read_checked(file) is None, length
    document = json.loads(text)
    file.write_text(json.dumps(dict(reversed(document.items()))))  # the same content in another order
    assert read_checked(file) == document
    assert read_checked(tmp_path / "missing.json") is None


def test_a_record_is_read_as_it_was_written_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.record("runs", "x") is None
    store.write_record("runs", "x", {"status": "done"})
    record = store.record("runs", "x")
    assert record is not None and record["status"] == "done"
    write_text(tmp_path / "runs" / "x" / "record.json", '{"status": "done"}')
    assert store.record("runs", "x") is None


def test_a_trial_lives_in_its_tuning() -> None:
    store = Store(Path("store"))
    assert store.unit("trials", "0123abcd-12") == store.unit("tuning", "0123abcd") / "trials" / "12"
    assert store.unit("runs", "0123abcd") == Path("store/runs/0123abcd")


# --- files of a finished unit ---


def test_every_damage_to_a_units_files_is_named(tmp_path: Path) -> None:
    store, content = Store(tmp_path), {"small.json": b"{}" * 50, "large.pt": bytes(module._HASHED_BYTES + 1)}
    for name, written in content.items():
        write_bytes(tmp_path / "runs" / "x" / name, written)
    record = {"files": manifest(tmp_path / "runs" / "x", content)}
    assert record["files"]["small.json"] == {"bytes": 100, "sha256": hashlib.sha256(b"{}" * 50).hexdigest()}
    assert store.damage("runs", "x", record) is store.damage("runs", "x", record, thorough=True) is None

    def told(name: str, written: bytes | None) -> tuple[str | None, str | None]:
        file = tmp_path / "runs" / "x" / name
        file.unlink() if written is None else file.write_bytes(written)
        found = store.damage("runs", "x", record), store.damage("runs", "x", record, thorough=True)
        file.write_bytes(content[name])
        return found

    assert told("small.json", None) == ("small.json is missing",) * 2
    assert told("small.json", b"{}" * 49) == ("small.json is damaged",) * 2
    assert told("small.json", b"{}" * 49 + b"[]") == ("small.json is damaged",) * 2
    assert told("large.pt", content["large.pt"][:-1]) == ("large.pt is damaged",) * 2
    assert told("large.pt", b"1" + content["large.pt"][1:]) == (None, "large.pt is damaged")
    assert store.damage("runs", "x", {}) is None  # a record that lists nothing


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    before = file_hash(tmp_path / "a")
    assert before == hashlib.sha256(b"abc").hexdigest()
    (tmp_path / "a").write_bytes(b"abd")
    assert file_hash(tmp_path / "a") != before
    with pytest.raises(FileNotFoundError):
        file_hash(tmp_path / "b")


# --- states ---


def test_states_come_back_bit_by_bit(tmp_path: Path) -> None:
    state = OrderedDict(a=torch.randn(3, 4), b=torch.tensor(7), c=torch.randn(2, 3, 4, 5).to(torch.float16))
    save_state(tmp_path / "model.pt", state)
    loaded = load_state(tmp_path / "model.pt")
    assert list(loaded) == ["a", "b", "c"]
    assert all(torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype for name, value in state.items())


def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "made-by-the-file"
    torch.save({"weight": Hostile(target)}, tmp_path / "zip.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"weight": Hostile(target)}, protocol=2))
    for name in ("zip.pt", "pickle.pt"):
        with pytest.raises(BenchError, match=f"{name}' cannot be read: it is damaged or holds more than tensors"):
            load_state(tmp_path / name)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_state_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(BenchError, match=r"model\.pt' cannot be read") as caught:
        load_state(tmp_path / "model.pt")
    assert "\n" not in str(caught.value)


def test_a_cut_off_state_is_one_clear_line(tmp_path: Path) -> None:
    save_state(tmp_path / "model.pt", {"a": torch.randn(100)})
    content = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(BenchError, match="cannot be read"):
        load_state(tmp_path / "model.pt")


def test_a_missing_state_and_one_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="there is no checkpoint"):
        load_state(tmp_path / "model.pt")
    torch.save(torch.zeros(3), tmp_path / "model.pt")
    with pytest.raises(BenchError, match="holds a Tensor; expected a dictionary of tensors"):
        load_state(tmp_path / "model.pt")


# --- the store ---


def test_an_empty_store_names_the_command_that_fills_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "nothing")
    assert store.studies() == []
    assert store.record("runs", "0" * 16) is None
    with pytest.raises(BenchError, match=r"no study in the store .*nothing'; run one first: `bench run --store .*`"):
        store.load_study(None)
    assert not store.root.exists()


def test_the_latest_study_unless_one_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for age, name in enumerate(("b", "c", "a")):
        write_checked(store.study(name) / "study.json", {"name": name, "spec": {}, "runs": []})
        os.utime(store.study(name) / "study.json", (1000 + age, 1000 + age))
    (tmp_path / "studies" / "half-made").mkdir()
    assert store.studies() == ["b", "c", "a"]
    assert store.load_study(None)["name"] == "a"
    assert store.load_study("c")["name"] == "c"
    with pytest.raises(BenchError, match=r"no study 'd' in the store .*; there are: a, b, c"):
        store.load_study("d")
    with pytest.raises(BenchError, match=r"no study '\.\./studies/a'"):
        store.load_study("../studies/a")


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[:10], lambda text: text.replace("sbs", "dnas"), lambda _: '{"name": "a"}', lambda _: "[]"],
    ids=["cut off", "changed", "without checksum", "something else"],
)
@pytest.mark.parametrize("name", ["a", None])
def test_a_damaged_study_is_one_clear_line_with_the_way_out(
    tmp_path: Path, damage: Callable[[str], str], name: str | None
) -> None:
    store = Store(tmp_path)
    file = store.study("a") / "study.json"
    write_checked(file, {"name": "a", "methods": ["sbs"]})
    file.write_text(damage(file.read_text()))
    with pytest.raises(BenchError, match=r"study\.json' is damaged; run the study's command again") as caught:
        store.load_study(name)
    assert "\n" not in str(caught.value)


def test_preparing_leaves_an_empty_folder(tmp_path: Path) -> None:
    Store(tmp_path / "a" / "b").prepare()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_store_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BenchError, match=r"cannot write to the store .*file': .*; choose another with --store DIR"):
        Store(tmp_path / "file").prepare()
    with pytest.raises(BenchError, match="cannot write to the store"):
        Store(tmp_path / "file" / "below").prepare()
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_the_place_of_a_file_gives_way(tmp_path: Path) -> None:
    (tmp_path / "record.json").mkdir()
    (tmp_path / "record.json" / "inside").write_text("kept")
    write_text(tmp_path / "record.json", "new")
    assert (tmp_path / "record.json").read_text() == "new"
    (aside,) = tmp_path.glob("record.json.folder-*")
    assert (aside / "inside").read_text() == "kept"


def test_removing_takes_files_folders_and_links_but_not_what_a_link_points_to(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for name in ("link", "folder", "file", "nothing"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("length", [3846, 4090, 9000])
def test_a_path_that_is_too_long_is_one_line(tmp_path: Path, length: int) -> None:
    """Also one that could be made, but would have no room for the files of units."""
    below = length - len(str(tmp_path)) - 1
    parts = "/".join("x" * 200 for _ in range(below // 201))
    root = tmp_path / f"{parts}/{'y' * (below - len(parts) - 1)}"
    assert len(str(root)) == length
    with pytest.raises(BenchError, match=f"the path of the store has {length:,} bytes.*choose one of at most 3,845"):
        Store(root).prepare()
    assert list(tmp_path.iterdir()) == []
