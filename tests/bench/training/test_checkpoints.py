"""Checkpoints inside a stage: which are kept, which are skipped, and that training continues bit for bit."""

import os
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.data.task_data import BatchStream, TaskData
from bench.plugins.registry import load
from bench.spec.schema import Schedule
from bench.spec.seeds import generator
from bench.training import checkpoints as module
from bench.training.checkpoints import UNINTERRUPTED, Checkpoints, GeneratorState, GlobalGenerators
from bench.training.loop import fit

SCHEDULES = [
    Schedule(epochs=4, batch_size=32, lr=0.05, decay="cosine"),
    Schedule(epochs=4, batch_size=32, lr=0.05, decay="one_cycle"),
    Schedule(epochs=4, batch_size=32, lr=0.05, decay="step", milestones=(1, 3)),
]


class Interruption(BaseException):
    """A simulated end of the process."""


@pytest.fixture(scope="module")
def data() -> TaskData:
    """Data with three batches per epoch."""
    dataset = load("datasets", "synthetic")()
    arrays = dataset.load(None)
    return TaskData(dataset, arrays, validation_fraction=0.2, device=torch.device("cpu"), train_images=96)


@pytest.fixture(autouse=True)
def after_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.0)


class Draws(nn.Module):
    """A layer that adds noise from all global generators."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x + torch.rand(1) + random.random() + np.random.rand()  # noqa: NPY002, S311


def make_model() -> nn.Module:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4),
        nn.BatchNorm2d(4),
        Draws(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(64, 10),
    )


def train(data: TaskData, schedule: Schedule, folder: Path | None, *, interrupted_at: int | None = None) -> Any:
    """Train as a new process would; return the network's state and the figures of its epochs."""
    model, entries = make_model(), []

    def report(figures: Mapping[str, float]) -> None:
        entries.append(dict(figures))
        if figures["epoch"] == interrupted_at:
            raise Interruption

    stage = UNINTERRUPTED if folder is None else Checkpoints(folder, {}).stage("finetune")
    fit(model, data, schedule, generator("tests"), report, stage)
    return SimpleNamespace(state=model.state_dict(), entries=entries)


def assert_same(found: Any, expected: Any) -> None:
    assert found.entries == expected.entries[len(expected.entries) - len(found.entries) :]
    assert found.state.keys() == expected.state.keys()
    for name, value in expected.state.items():
        assert torch.equal(found.state[name], value), name


# --- training ---


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.decay)
def test_training_continues_from_any_epoch_as_if_uninterrupted(
    data: TaskData, tmp_path: Path, schedule: Schedule
) -> None:
    expected = train(data, schedule, None)
    for epoch in range(1, schedule.epochs + 1):
        folder = tmp_path / str(epoch)
        with pytest.raises(Interruption):
            train(data, schedule, folder, interrupted_at=epoch)
        found = train(data, schedule, folder)
        assert_same(found, expected)
        assert [entry["epoch"] for entry in found.entries] == list(range(epoch, schedule.epochs + 1))
    whole = train(data, schedule, tmp_path / "whole")
    assert_same(whole, expected)
    assert_same(train(data, schedule, tmp_path / "whole"), SimpleNamespace(state=expected.state, entries=[]))


def all_but(name: str) -> Callable[..., dict[str, Any]]:
    """Remove one item from the state of a checkpoint."""
    original = Checkpoints._with_always

    def some(self: Checkpoints, parts: Mapping[str, Any]) -> dict[str, Any]:
        return {key: part for key, part in original(self, parts).items() if key != name}

    return some


def test_a_checkpoint_lacks_nothing_that_training_depends_on(data: TaskData, tmp_path: Path) -> None:
    """If any item of the state is missing, the result differs; otherwise the test above could not fail."""
    expected = train(data, SCHEDULES[0], None)
    names = ("model", "optimizer", "rates", "order", "unit.generators")
    for name in names:
        folder = tmp_path / name
        with pytest.raises(Interruption):
            train(data, SCHEDULES[0], folder, interrupted_at=3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "_with_always", all_but(name))
            found = train(data, SCHEDULES[0], folder)
        assert any(not torch.equal(found.state[key], value) for key, value in expected.state.items()), name


# --- files ---


class Count:
    """A state that is a number."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]


def count_epochs(folder: Path, total: int, *, stop_after: int | None = None, stage: str = "search") -> tuple[int, list]:
    """Run a stage that counts its epochs; return the final count, and the epochs that were run."""
    part, worked = Count(), []
    for epoch in Checkpoints(folder, {}).stage(stage).epochs(total, {"count": part}):
        worked.append(epoch)
        part.value += 1
        if len(worked) == stop_after:
            break
    return part.value, worked


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt"))


def test_the_last_two_of_each_stage_are_kept(tmp_path: Path) -> None:
    for stage in ("search", "searched", "finetune"):
        assert count_epochs(tmp_path, 5, stage=stage) == (5, [0, 1, 2, 3, 4])
    assert [".".join(path.name.split(".")[:2]) for path in files(tmp_path)] == [
        *("finetune.000004", "finetune.000005", "search.000004", "search.000005"),
        *("searched.000004", "searched.000005"),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files(tmp_path)}


def test_stages_do_not_meet(tmp_path: Path) -> None:
    count_epochs(tmp_path, 3, stage="searched")
    assert count_epochs(tmp_path, 2, stage="search") == (2, [0, 1])
    assert count_epochs(tmp_path, 4, stage="searched") == (4, [3])


def test_more_epochs_than_six_digits_could_sort_are_not_needed_but_ten_are(tmp_path: Path) -> None:
    count_epochs(tmp_path, 11)
    assert count_epochs(tmp_path, 12) == (12, [11])


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    damaged = {
        "cut off": content[:-10],
        "empty": b"",
        "one bit": content[:99] + bytes([content[99] ^ 1]) + content[100:],
        "zeros": bytes(len(content)),
    }
    path.write_bytes(damaged[how])


@pytest.mark.parametrize("how", ["cut off", "empty", "one bit", "zeros"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    count_epochs(tmp_path, 9, stop_after=6)  # five checkpoints
    latest, before = files(tmp_path)[1], files(tmp_path)[0]
    damage(latest, how)
    assert count_epochs(tmp_path, 9, stop_after=1) == (5, [4])
    assert f"the checkpoint {latest} is damaged and is skipped" in caplog.text
    assert before.exists()
    damage(before, how)
    assert count_epochs(tmp_path, 9) == (9, list(range(9)))
    assert count_epochs(tmp_path, 9) == (9, [])  # what was written since is found again


def test_training_continues_bit_for_bit_past_a_damaged_checkpoint(data: TaskData, tmp_path: Path) -> None:
    expected = train(data, SCHEDULES[0], None)
    with pytest.raises(Interruption):
        train(data, SCHEDULES[0], tmp_path, interrupted_at=4)
    damage(files(tmp_path)[-1], "one bit")
    found = train(data, SCHEDULES[0], tmp_path)
    assert [entry["epoch"] for entry in found.entries] == [3, 4]
    assert_same(found, expected)


def test_an_interrupted_write_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count_epochs(tmp_path, 3)
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(Interruption()))
        with pytest.raises(Interruption):
            count_epochs(tmp_path, 4)
    assert sorted(tmp_path.iterdir()) == before


def test_checkpoints_are_read_without_executing_code(data: TaskData, tmp_path: Path) -> None:
    train(data, SCHEDULES[1], tmp_path)
    for path in files(tmp_path):
        state = torch.load(path, weights_only=True)
        assert state.keys() == {"model", "optimizer", "rates", "order", "unit.generators"}


class Hostile:
    """An object that runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_never_executed(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    count_epochs(tmp_path, 9, stop_after=4)
    target, state = (
        tmp_path / "made-by-the-file",
        {"count": {"value": 7}, "unit.generators": Hostile(tmp_path / "made-by-the-file")},
    )
    file = tmp_path / "new"
    torch.save(state, file) if form == "zip" else file.write_bytes(pickle.dumps(state, protocol=2))
    content = file.read_bytes()
    file.unlink()
    name = f"search.000007.{module.hashlib.sha256(content).hexdigest()[:16]}.pt"  # its checksum is right
    (tmp_path / name).write_bytes(content)
    assert count_epochs(tmp_path, 9, stop_after=1) == (4, [3])
    assert name in caplog.text
    assert not target.exists()


def test_no_checkpoint_before_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 15.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    written = []
    for epoch in Checkpoints(tmp_path, {}).stage("search").epochs(20, {}):
        now[0] += 4
        written.append([path.name.split(".")[1] for path in files(tmp_path)][-1:])
        assert epoch < 20
    assert written[3:5] == [[], ["000004"]] and written[-1] == ["000016"]


def test_clearing_removes_all_and_may_be_repeated(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "checkpoints", {})
    kept.clear()
    kept.write("search", 1, {})
    kept.clear()
    kept.clear()
    assert list(tmp_path.iterdir()) == []


def test_what_a_unit_has_gathered_is_in_every_stage(tmp_path: Path) -> None:
    gathered = Count()
    kept = Checkpoints(tmp_path, {"gathered": gathered})
    for stage in ("first", "second"):
        for _ in kept.stage(stage).epochs(2, {}):
            gathered.value += 1
    found = Count()
    assert Checkpoints(tmp_path, {"gathered": found}).restore("first", {}) == 2
    assert found.value == 2
    assert Checkpoints(tmp_path, {"gathered": found}).restore("second", {}) == 2
    assert found.value == 4
    assert Checkpoints(tmp_path, {"gathered": found}).restore("third", {}) is None


# --- generators ---


def draws() -> Iterator[Any]:
    yield torch.rand(3).tolist()
    yield random.random()  # noqa: S311
    yield random.gauss(0, 1)
    yield float(np.random.rand())  # noqa: NPY002
    yield float(np.random.randn())  # noqa: NPY002


def test_generators_without_a_name_go_on_where_they_were(tmp_path: Path) -> None:
    random.gauss(0, 1)  # one of a pair: the other is a part of the state
    np.random.randn()  # noqa: NPY002
    Checkpoints(tmp_path, {}).write("search", 1, {})
    expected = list(draws())
    assert list(draws()) != expected
    assert Checkpoints(tmp_path, {}).restore("search", {}) == 1
    assert list(draws()) == expected
    assert GlobalGenerators().state_dict()["cuda"] == []  # where no card is used


def test_an_own_generator_continues_where_it_was(tmp_path: Path) -> None:
    own = generator("tests")
    torch.rand(7, generator=own)
    Checkpoints(tmp_path, {}).write("search", 1, {"own": GeneratorState(own)})
    expected = torch.rand(7, generator=own)
    other = generator("something else")
    Checkpoints(tmp_path, {}).restore("search", {"own": GeneratorState(other)})
    assert torch.equal(torch.rand(7, generator=other), expected)


# --- batches without end ---


def equal(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("taken", range(8))
def test_a_stream_of_batches_keeps_its_place(data: TaskData, taken: int) -> None:
    stream = BatchStream(data, 32, generator("tests"), data.train)  # three batches an epoch
    for _ in range(taken):
        next(stream)
    state = torch.load(_saved(stream.state_dict()), weights_only=True)
    expected = [next(stream) for _ in range(7)]
    other = BatchStream(data, 32, generator("something else"), data.train)
    next(other)
    other.load_state_dict(state)
    assert all(equal(next(other), batch) for batch in expected)


def _saved(state: Mapping[str, Any]) -> Any:
    buffer = module.io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_a_stream_gives_every_image_once_an_epoch_and_each_epoch_again(data: TaskData) -> None:
    stream = BatchStream(data, 32, generator("tests"), data.train)
    order = generator("tests")
    for _ in range(2):
        for batch in data.training_batches(32, order):
            assert equal(next(stream), batch)
    small = data.train.take(torch.arange(5))
    short = BatchStream(data, 32, generator("tests"), small)  # fewer images than a batch
    assert len(next(short)[1]) == len(next(short)[1]) == 5
