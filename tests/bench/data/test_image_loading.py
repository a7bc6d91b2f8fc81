import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from bench import replicas
from bench.data import image_decoding, image_loading
from bench.data.image_decoding import Loader, loading_workers
from bench.data.image_loading import FileSubset
from bench.data.subset import UNREADABLE
from bench.data.task_data import BatchStream, TaskData
from bench.errors import BenchError
from bench.spec.seeds import generator
from bench.training.loop import evaluate
from datasets.imagefolder import ImageFolder
from tests.datasets.images import cut_short, make_folder, picture

CPU = torch.device("cpu")
SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of 30 and 6 pictures, all sound. Do not write to it."""
    return make_folder(tmp_path_factory.mktemp("images"), train=30, test=6)


def _data(root: Path, workers: int = 0, validation_fraction: float = 0.2, **how: Any) -> TaskData:
    dataset = ImageFolder.described(image_size=SIDE, data_dir=root)
    contents = dataset.load(root)
    return TaskData(
        dataset, contents, validation_fraction=validation_fraction, device=CPU, workers=workers, **how
    )  # fmt: skip


def _names(subset: Any) -> list[str]:
    assert isinstance(subset, FileSubset)
    return subset.names


def _all(data: TaskData, order: torch.Generator, epochs: int = 1, batch_size: int = 40, skip: int = 0) -> Tensor:
    batches = [images for _ in range(epochs) for images, _ in data.training_batches(batch_size, order, skip=skip)]
    return torch.cat(batches)


def _slowly(path: Path) -> Tensor:
    """The test image by Pillow and torchvision, normalised."""
    usual = transforms.Compose(
        [
            transforms.Resize(round(SIDE * 256 / 224)),
            transforms.CenterCrop(SIDE),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return usual(Image.open(path).convert("RGB"))


# --- parts and batches ---


def test_parts_are_split_class_by_class(folder: Path) -> None:
    data = _data(folder)
    train, validation, test = (_names(part) for part in (data.train, data.validation, data.test))
    assert (len(train), len(validation), len(test)) == (96, 24, 24)
    assert not set(train) & set(validation)
    assert data.validation.labels.bincount().tolist() == [6] * 4
    assert all("abcd"[label] == name[0] for name, label in zip(train, data.train.labels.tolist(), strict=True))
    few = _data(folder, train_images=40)
    assert few.train.labels.bincount().tolist() == [10] * 4
    assert len({data.checksum, few.checksum, _data(folder, validation_fraction=0.3).checksum}) == 3


def test_evaluation_shows_the_usual_test_images_in_order(folder: Path) -> None:
    data = _data(folder)
    for part, name in ((data.test, "val"), (data.validation, "train")):
        batches = list(data.evaluation_batches(part, batch_size=10))
        images = torch.cat([images for images, _ in batches])
        expected = torch.stack([_slowly(folder / name / path) for path in _names(part)])
        assert torch.cat([labels for _, labels in batches]).tolist() == part.labels.tolist()
        assert (images - expected).abs().max() < 1.01 / 255 / 0.224
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_training_takes_every_image_once_each_with_its_label(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    data = _data(folder)
    readable = image_decoding.Reader._readable
    monkeypatch.setattr(
        image_decoding.Reader, "_readable", lambda reader, at: (asked.append(at), readable(reader, at))[1]
    )
    labels = torch.cat([labels for _, labels in data.training_batches(40, generator("order"))])
    assert len(asked) == len(set(asked)) == 80  # two batches of 40, the rest is dropped
    assert labels.tolist() == data.train.labels[asked].tolist()


def test_windows_and_flips_are_drawn_again(folder: Path) -> None:
    data = _data(folder)
    only = data.train.take(torch.zeros(60, dtype=torch.int64))
    images, _ = next(data.training_batches(60, generator("order"), subset=only))
    assert len(torch.unique(images, dim=0)) > 12  # of 3 × some windows, mirrored or not


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_processes_changes_nothing(folder: Path, workers: int) -> None:
    torch.manual_seed(0)
    (alone, one), (several, other) = ((_data(folder, count), generator("order")) for count in (0, workers))
    assert torch.equal(_all(alone, one, epochs=3), _all(several, other, epochs=3))
    assert torch.equal(one.get_state(), other.get_state())
    for first, second in (
        (alone.evaluation_batches(alone.test, 10), several.evaluation_batches(several.test, 10)),
        (alone.calibration_batches(2, 10), several.calibration_batches(2, 10)),
    ):
        for a, b in zip(first, second, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))  # nothing was drawn from the global generator


def test_processes_stay_from_epoch_to_epoch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    make = Loader._data_loader

    def counting(loader: Loader, *arguments: Any, keep: bool) -> Any:
        made.append(keep)
        return make(loader, *arguments, keep=keep)

    monkeypatch.setattr(Loader, "_data_loader", counting)
    data, order = _data(folder, 1), generator("order")
    whole = _all(data, order, epochs=3)
    assert made == [True]
    # An epoch that is left in its midst, and two that are open at once, see the right images as well.
    order = generator("order")
    abandoned = data.training_batches(40, order)
    assert torch.equal(next(abandoned)[0], whole[:40])
    meanwhile = data.training_batches(40, generator("order"))
    assert torch.equal(next(meanwhile)[0], whole[:40])
    del abandoned, meanwhile
    assert torch.equal(_all(data, order), whole[80:160])


def test_an_epoch_that_is_interrupted_at_its_end_continues_the_same(folder: Path) -> None:
    data, order = _data(folder), generator("order")
    first = _all(data, order)
    state = order.get_state()
    second = _all(data, order)
    again = generator("other")
    again.set_state(state)
    assert torch.equal(_all(_data(folder, 2), again), second)
    assert not torch.equal(first, second)


def test_skipped_batches_are_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, one, other = _data(folder), generator("order"), generator("order")
    whole = _all(data, one, batch_size=16)
    decoded: list[int] = []
    decode = image_decoding.decode
    monkeypatch.setattr(image_decoding, "decode", lambda content: (decoded.append(1), decode(content))[1])
    assert torch.equal(_all(data, other, batch_size=16, skip=4), whole[64:])
    assert len(decoded) == 32
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("taken", [0, 3, 6, 8])
def test_a_stream_finds_its_place_again(folder: Path, taken: int) -> None:
    data = _data(folder)
    stream = BatchStream(data, 16, generator("order"), data.train)
    for _ in range(taken):
        next(stream)
    state = stream.state_dict()
    found = BatchStream(_data(folder, 1), 16, generator("elsewhere"), data.train)
    found.load_state_dict(state)
    for _ in range(8):
        assert torch.equal(next(stream)[0], next(found)[0])


def test_replicas_decode_their_share(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _data(folder)
    whole = [(images, labels) for images, labels in data.training_batches(40, generator("order"))]
    test = [images for images, _ in data.evaluation_batches(data.test, 5)]
    decoded: list[int] = []
    decode = image_decoding.decode
    monkeypatch.setattr(image_decoding, "decode", lambda content: (decoded.append(1), decode(content))[1])
    monkeypatch.setattr(replicas, "count", lambda: 4)
    for rank in range(4):
        monkeypatch.setattr(replicas, "rank", lambda rank=rank: rank)
        decoded.clear()
        for mine, (images, labels) in zip(data.training_batches(40, generator("order")), whole, strict=True):
            assert torch.equal(mine[0], images[rank::4])
            assert torch.equal(mine[1], labels[rank::4])
        assert len(decoded) == 20
        for (mine_only, _), images in zip(data.evaluation_batches(data.test, 5), test, strict=True):
            assert torch.equal(mine_only, images[rank::4])


def test_as_many_processes_as_threads() -> None:
    assert [loading_workers(threads, CPU) for threads in (1, 2, 4)] == [0, 2, 4]
    assert loading_workers(1, torch.device("cuda")) == 1


# --- what cannot be read ---


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one damaged image in each part, and a higher limit of unreadable images."""
    root = make_folder(tmp_path, train=20, test=5, classes="ab")
    cut_short(root / "train" / "a" / "003.jpg")
    (root / "val" / "b" / "002.jpg").write_bytes(b"")
    monkeypatch.setattr(image_loading, "UNREADABLE_SHARE", 0.25)
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_of_the_class_takes_the_place(damaged: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    data, sound = _data(damaged, workers, 0.0), _data(damaged, 0, 0.0)
    names = _names(data.train)
    spoilt, instead = names.index("a/003.jpg"), names.index("a/004.jpg")
    pair = data.train.take(torch.tensor([spoilt, instead, instead, spoilt]))
    with caplog.at_level(logging.WARNING):
        ((images, labels),) = pair.unchanged(10)
        _all(data, generator("order"), epochs=2)
    assert torch.equal(images, images[1:2].expand(4, -1, -1, -1))
    assert labels.tolist() == [UNREADABLE, 0, 0, UNREADABLE]
    (fault,) = data.faults
    assert (fault.name, fault.instead) == ("a/003.jpg", "a/004.jpg")
    assert "truncated" in fault.reason.lower()
    assert len(caplog.records) == 1 and "a/003.jpg" in caplog.text
    assert torch.equal(_all(data, generator("order")), _all(sound, generator("order")))


def test_the_last_of_a_class_is_followed_by_its_first(damaged: Path) -> None:
    cut_short(damaged / "train" / "a" / "019.jpg")
    cut_short(damaged / "train" / "a" / "000.jpg")
    data = _data(damaged, validation_fraction=0.0)
    list(data.train.unchanged(40))
    assert {fault.name: fault.instead for fault in data.faults} == {
        "a/000.jpg": "a/001.jpg",
        "a/003.jpg": "a/004.jpg",
        "a/019.jpg": "a/001.jpg",
    }


def test_an_unreadable_test_image_counts_as_wrong(damaged: Path) -> None:
    data = _data(damaged)
    known = {"calls": 0}

    class AlwaysRight(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            start = known["calls"]
            known["calls"] += len(images)
            return 20.0 * torch.nn.functional.one_hot(data.test.labels[start : known["calls"]], 2)

    result = evaluate(AlwaysRight(), data, data.test)
    assert result.top1 == result.top5 == pytest.approx(90.0)
    assert result.loss == pytest.approx(0.0, abs=1e-6)
    assert [fault.name for fault in data.faults] == ["b/002.jpg"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_class_without_a_readable_image_is_an_error(damaged: Path, workers: int) -> None:
    for path in (damaged / "train" / "b").iterdir():
        cut_short(path)
    with pytest.raises(BenchError, match=r"no image of class 'b' in .*train can be read, b/0") as caught:
        _all(_data(damaged, workers), generator("order"), batch_size=8)
    assert "\n" not in str(caught.value)


def test_too_many_unreadable_images_are_an_error(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_loading, "UNREADABLE_SHARE", 0.01)
    data = _data(damaged)
    with pytest.raises(BenchError, match=r"1 of the 10 images in .*val cannot be read, more than 1%: b/002.jpg;"):
        list(data.evaluation_batches(data.test))


def test_a_file_that_vanished_is_unreadable(damaged: Path) -> None:
    data = _data(damaged, validation_fraction=0.0)
    (damaged / "train" / "b" / "007.jpg").unlink()
    list(data.train.unchanged(40))
    assert [fault.reason for fault in data.faults if fault.name == "b/007.jpg"] == ["No such file or directory"]


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=4, test=1, classes="ab")
    for number, mode in enumerate(("L", "CMYK", "P", "RGBA")):
        path = root / "train" / "a" / f"00{number}.jpg"
        path.unlink()
        suffix = ".jpg" if mode in ("L", "CMYK") else ".png"
        picture(number).convert(mode).save(path.with_suffix(suffix))
    data = _data(root, validation_fraction=0.0)
    images = torch.cat([images for images, _ in data.evaluation_batches(data.train)])
    expected = torch.stack([_slowly(root / "train" / name) for name in _names(data.train)])
    assert (images - expected).abs().max() < 2.01 / 255 / 0.224
    assert not data.faults
