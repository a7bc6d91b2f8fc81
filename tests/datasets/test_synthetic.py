import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from bench.data.dataset import Arrays
from bench.data.task_data import TaskData
from datasets.synthetic import Synthetic


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return Synthetic().load(None)


def test_shapes_types_and_values(arrays: Arrays) -> None:
    assert arrays.train_images.shape == (512, 3, 16, 16)
    assert arrays.test_images.shape == (256, 3, 16, 16)
    assert arrays.train_images.dtype == arrays.test_images.dtype == torch.uint8
    assert arrays.train_labels.dtype == arrays.test_labels.dtype == torch.int64
    assert arrays.train_images.max() > 200
    assert arrays.train_images.min() < 50


def test_classes_are_even(arrays: Arrays) -> None:
    for labels in (arrays.train_labels, arrays.test_labels):
        counts = labels.bincount(minlength=10)
        assert len(counts) == 10
        assert counts.max() - counts.min() <= 1


def test_it_is_always_the_same(arrays: Arrays) -> None:
    torch.manual_seed(9)
    assert Synthetic().load(None).checksum() == arrays.checksum()


def test_no_image_comes_twice(arrays: Arrays) -> None:
    images = torch.cat([arrays.train_images, arrays.test_images])
    assert len({image.numpy().tobytes() for image in images}) == 512 + 256


def test_statistics_are_those_of_the_training_part(arrays: Arrays) -> None:
    pixels = arrays.train_images.double() / 255
    assert Synthetic.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert Synthetic.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-4)


def test_the_class_can_be_learned(arrays: Arrays) -> None:
    classifier = RidgeClassifier().fit(arrays.train_images.flatten(1), arrays.train_labels)
    assert classifier.score(arrays.test_images.flatten(1), arrays.test_labels) > 0.95


def test_it_is_a_task(arrays: Arrays) -> None:
    data = TaskData(Synthetic(), arrays, validation_fraction=0.1, device=torch.device("cpu"))
    assert set(data.validation.labels.tolist()) == set(range(10))
