import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from bench.data.task_data import TaskData
from datasets.digits import Digits


def test_shapes_types_and_values() -> None:
    arrays = Digits().load(None)
    assert arrays.train_images.shape == (1438, 1, 8, 8)
    assert arrays.test_images.shape == (359, 1, 8, 8)
    assert arrays.train_images.dtype == arrays.test_images.dtype == torch.uint8
    assert arrays.train_labels.dtype == arrays.test_labels.dtype == torch.int64
    values = set(arrays.train_images.flatten().tolist())
    assert (min(values), max(values), len(values)) == (0, 255, 17)


def test_every_image_of_scikit_learn_is_there_once_with_its_label() -> None:
    arrays, original = Digits().load(None), load_digits()
    images = torch.cat([arrays.train_images, arrays.test_images]).squeeze(1).numpy()
    labels = torch.cat([arrays.train_labels, arrays.test_labels]).tolist()
    found = sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))
    expected = sorted(
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(original.images, original.target, strict=True)
    )
    assert found == expected


def test_the_test_part_is_a_fifth_of_each_class() -> None:
    arrays = Digits().load(None)
    train, test = arrays.train_labels.bincount(minlength=10), arrays.test_labels.bincount(minlength=10)
    assert len(test) == 10
    assert (test - 0.2 * (train + test)).abs().max() <= 0.5


def test_the_test_part_never_changes() -> None:
    checksum = "1d483e679b3a33fcc6d3b999b0e8f44fa848eaf036db524be84c9aef6540e915"
    torch.manual_seed(3)
    assert Digits().load(None).checksum() == checksum
    assert Digits().load(None).checksum() == checksum


def test_statistics_are_those_of_the_training_part() -> None:
    pixels = Digits().load(None).train_images.double() / 255
    assert Digits.mean[0] == pytest.approx(pixels.mean().item(), abs=1e-4)
    assert Digits.std[0] == pytest.approx(pixels.std(correction=0).item(), abs=1e-4)


def test_digits_are_never_mirrored() -> None:
    assert Digits.augmentation.pad == 1
    assert not Digits.augmentation.flip


def test_it_is_a_task() -> None:
    dataset = Digits()
    data = TaskData(dataset, dataset.load(None), validation_fraction=0.1, device=torch.device("cpu"))
    assert len(data.train) + len(data.validation) == 1438
    assert set(data.validation.labels.tolist()) == set(range(10))
