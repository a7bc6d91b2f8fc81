from pathlib import Path

import pytest
import torch

from bench.data.task_data import TaskData
from bench.errors import BenchError
from bench.models.resnet import resnet8
from bench.planning.networks import described
from bench.spec.schema import ImageOptions, Schedule, TaskSpec
from bench.spec.seeds import generator
from bench.spec.sources import build
from bench.training.loop import evaluate, fit
from datasets.imagefolder import ImageFolder
from tests.datasets.images import make_folder

CPU = torch.device("cpu")


def _refusal(root: Path | None) -> str:
    with pytest.raises(BenchError) as caught:
        ImageFolder.described(data_dir=root).load(root)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["val", "test"])
def test_classes_are_counted_and_images_found(tmp_path: Path, name: str) -> None:
    root = make_folder(tmp_path, train=3, test=2, test_name=name)
    dataset = ImageFolder.described(image_size=16, data_dir=root)
    contents = dataset.load(root)
    assert (dataset.num_classes, dataset.image_shape) == (4, (3, 16, 16))
    assert (len(contents.train), len(contents.test)) == (12, 8)
    assert [contents.train.name(row) for row in (0, 3)] == ["a/000.jpg", "b/000.jpg"]
    assert contents.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_options_of_images_reach_the_batches(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=3, test=2)
    options = ImageOptions(channels=1, mirror=False, colour=0.2, mean=(0.5,))
    task = TaskSpec(dataset="imagefolder", image_size=16, images=options)
    dataset = described(task, root)
    assert (dataset.image_shape, dataset.mean, dataset.std) == ((1, 16, 16), (0.5,), (0.226,))
    data = TaskData(dataset, dataset.load(root), validation_fraction=0.34, device=CPU)
    batches = [next(data.training_batches(4, generator("order")))[0] for _ in range(2)]
    assert batches[0].shape == (4, 1, 16, 16) and torch.equal(*batches)
    assert next(iter(data.evaluation_batches(data.test)))[0].shape == (8, 1, 16, 16)


def test_options_of_images_are_for_image_folders_and_fit_each_other() -> None:
    assert "images" not in TaskSpec().model_dump(mode="json")  # so that ids of older studies do not change
    with pytest.raises(BenchError, match=r"task\.images has no effect on Digits; it is for image folders"):
        described(TaskSpec(images=ImageOptions(mirror=False)))
    with pytest.raises(BenchError, match="mean has 3 numbers, but images have 1 channels"):
        build([{"task": {"images": {"channels": 1, "mean": [0.5, 0.5, 0.5]}}}])
    with pytest.raises(BenchError, match=r"unknown specification key 'miror': did you mean 'mirror'\?"):
        build([{"task": {"images": {"miror": False}}}])


def test_images_lie_deeper_and_other_files_are_passed_over(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=1, test=1)
    inner = root / "train" / "a" / "inner"
    inner.mkdir()
    (root / "train" / "a" / "000.jpg").rename(inner / "x.JPG")
    for other in ("a/notes.txt", "a/._x.jpg", "b/Thumbs.db"):
        (root / "train" / other).touch()
    (root / "train" / ".cache").mkdir()
    contents = ImageFolder.described(data_dir=root).load(root)
    assert [contents.train.name(row) for row in range(4)] == ["a/inner/x.JPG", "b/000.jpg", "c/000.jpg", "d/000.jpg"]


def test_test_is_preferred_where_it_has_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=1, test=1)
    (root / "test").mkdir()
    (root / "test" / "unlabelled.jpg").touch()
    assert ImageFolder.described(data_dir=root).load(root).test.folder == root / "val"
    (root / "val").rename(root / "kept")
    (root / "test" / "unlabelled.jpg").unlink()
    (root / "test").rmdir()
    (root / "kept").rename(root / "test")
    assert ImageFolder.described(data_dir=root).load(root).test.folder == root / "test"


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    assert "no folder of its own" in _refusal(None) and "--data-dir DIR" in _refusal(None)
    assert f"there is no {tmp_path}/train/<class>" in _refusal(tmp_path)
    (tmp_path / "train" / "a").mkdir(parents=True)
    assert f"there is no {tmp_path}/val/<class>" in _refusal(tmp_path)
    (tmp_path / "val" / "b").mkdir(parents=True)
    assert "must be of the same classes" in _refusal(tmp_path)
    (tmp_path / "val" / "b").rename(tmp_path / "val" / "a")
    assert f"no images in {tmp_path}/train of the classes a" in _refusal(tmp_path)


def test_another_number_of_classes_than_planned_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=1, test=1)
    with pytest.raises(BenchError, match="has 4 folders of classes; ImageFolder is expected to have 5"):
        ImageFolder.described(classes=5).load(root)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_network_learns_a_folder(tmp_path: Path, workers: int) -> None:
    root = make_folder(tmp_path, train=24, test=4)
    dataset = ImageFolder.described(image_size=16, data_dir=root)
    data = TaskData(dataset, dataset.load(root), validation_fraction=0.25, device=CPU, workers=workers)
    torch.manual_seed(0)
    model = resnet8(3, dataset.num_classes)
    figures: list[dict[str, float]] = []
    fit(
        model, data, Schedule(epochs=1, batch_size=16, lr=0.01), generator("order"), lambda row: figures.append({**row})
    )
    assert [row["epoch"] for row in figures] == [1]
    result = evaluate(model, data, data.test)
    assert 0 <= result.top1 <= 100 and result.top5 == 100
