import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from bench import store as module
from bench.errors import BenchError
from bench.store import Store, load_state, read_json, save_state, write_bytes, write_json, write_text


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
    with pytest.raises(BenchError, match="no checkpoint at"):
        load_state(tmp_path / "model.pt")
    torch.save(torch.zeros(3), tmp_path / "model.pt")
    with pytest.raises(BenchError, match="holds a Tensor; expected a dictionary of tensors"):
        load_state(tmp_path / "model.pt")


# --- the store ---


def test_an_empty_store_names_the_command_that_fills_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "nothing")
    assert store.studies() == []
    assert store.record("runs", "0" * 16) is None
    with pytest.raises(BenchError, match=r"no study in the store .*nothing'; run one first: `bench run`"):
        store.load_study(None)
    assert not store.root.exists()


def test_the_latest_study_unless_one_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for age, name in enumerate(("b", "c", "a")):
        write_json(store.study(name) / "study.json", {"name": name})
        os.utime(store.study(name) / "study.json", (1000 + age, 1000 + age))
    (tmp_path / "studies" / "half-made").mkdir()
    assert store.studies() == ["b", "c", "a"]
    assert store.load_study(None) == {"name": "a"}
    assert store.load_study("c") == {"name": "c"}
    with pytest.raises(BenchError, match=r"no study 'd' in the store .*; there are: a, b, c"):
        store.load_study("d")
    with pytest.raises(BenchError, match=r"no study '\.\./studies/a'"):
        store.load_study("../studies/a")


def test_a_damaged_study_is_no_study(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write_text(store.study("a") / "study.json", '{"name": ')
    with pytest.raises(BenchError, match="no study 'a'"):
        store.load_study("a")


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
