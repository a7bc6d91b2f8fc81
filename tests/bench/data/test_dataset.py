from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.data.dataset import Arrays, Dataset, as_uint8
from bench.data.subset import Augmentation, TensorSubset, augment
from bench.data.task_data import TaskData, split
from bench.errors import BenchError
from bench.spec.seeds import generator
from datasets.synthetic import Synthetic

CPU = torch.device("cpu")


class Numbered(Dataset):
    """Each image holds its own index in its first two pixels, so that a batch shows which images it took."""

    summary = "numbered images"
    image_shape = (2, 5, 6)
    num_classes = 4
    mean = (0.25, 0.5)
    std = (0.2, 0.4)
    augmentation = Augmentation()

    def __init__(self, train: int = 203, test: int = 17) -> None:
        self.counts = (train, test)

    def load(self, data_dir: Path | None) -> Arrays:
        train, test = self.counts
        return Arrays(
            train_images=_numbered_images(train),
            train_labels=torch.arange(train) % self.num_classes,
            test_images=_numbered_images(test),
            test_labels=torch.arange(test) % self.num_classes,
        )


def _numbered_images(count: int) -> Tensor:
    images = torch.randint(0, 256, (count, 2, 5, 6), generator=generator("images"), dtype=torch.uint8)
    images[:, 0, 0, 0] = (torch.arange(count) // 256).to(torch.uint8)
    images[:, 0, 0, 1] = (torch.arange(count) % 256).to(torch.uint8)
    return images


def _task_data(dataset: Dataset | None = None, validation_fraction: float = 0.1) -> TaskData:
    dataset = dataset or Numbered()
    return TaskData(dataset, dataset.load(None), validation_fraction=validation_fraction, device=CPU)


def _pixels(images: Tensor) -> Tensor:
    """Undo the normalising of `Numbered`."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (Numbered.mean, Numbered.std))
    return ((images * std + mean) * 255).round().long()


def _numbers(images: Tensor) -> list[int]:
    pixels = _pixels(images)
    return (pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 0, 1]).tolist()


# --- split ---


def test_split_is_disjoint_complete_and_sorted() -> None:
    train, validation = split(torch.arange(1000) % 7, 0.1)
    assert sorted(train.tolist() + validation.tolist()) == list(range(1000))
    assert train.tolist() == sorted(train.tolist())
    assert validation.tolist() == sorted(validation.tolist())


def test_split_takes_the_rounded_share_of_each_class() -> None:
    labels = torch.tensor([0] * 100 + [1] * 57 + [2] * 8)
    _, validation = split(labels, 0.2)
    assert Counter(labels[validation].tolist()) == {0: 20, 1: 11, 2: 2}


def test_split_is_the_same_every_time_and_ignores_the_global_generator() -> None:
    labels = torch.arange(300) % 3
    torch.manual_seed(1)
    first = split(labels, 0.3)
    torch.manual_seed(2)
    second = split(labels, 0.3)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_split_is_not_just_the_head_of_each_class() -> None:
    _, validation = split(torch.zeros(100, dtype=torch.int64), 0.1)
    assert validation.max() > 20


def test_split_with_fraction_zero_keeps_everything_for_training() -> None:
    train, validation = split(torch.arange(12) % 3, 0.0)
    assert len(train) == 12
    assert len(validation) == 0


# --- checksum ---


@pytest.mark.parametrize("part", ["train_images", "train_labels", "test_images", "test_labels"])
def test_checksum_changes_with_any_single_value(part: str) -> None:
    arrays = Numbered().load(None)
    before = arrays.checksum()
    changed = getattr(arrays, part).clone()
    changed.view(-1)[-1] ^= 1
    assert replace(arrays, **{part: changed}).checksum() != before
    assert arrays.checksum() == before


def test_checksum_does_not_depend_on_memory_order() -> None:
    arrays = Numbered().load(None)
    other = arrays.train_images.to(memory_format=torch.channels_last)
    assert replace(arrays, train_images=other).checksum() == arrays.checksum()


def test_task_checksum_covers_data_and_split() -> None:
    arrays = Numbered().load(None)
    changed = arrays.train_images.clone()
    changed[3, 1, 2, 2] ^= 1
    checksums = {
        TaskData(Numbered(), given, validation_fraction=fraction, device=CPU).checksum
        for given, fraction in ((arrays, 0.1), (arrays, 0.2), (replace(arrays, train_images=changed), 0.1))
    }
    assert len(checksums) == 3
    assert _task_data().checksum == _task_data().checksum


# --- augmentation ---


def _augment_slowly(images: Tensor, augmentation: Augmentation, order: torch.Generator) -> Tensor:
    """Image by image with Python loops, from the same draws: pad by hand, cut a window out, mirror it."""
    count, channels, height, width = images.shape
    pad = augmentation.pad
    mirrored = [False] * count
    offsets = [[[0]] * count] * 2
    if augmentation.flip:
        mirrored = [value < 0.5 for value in torch.rand(count, 1, generator=order).flatten().tolist()]
    if pad:
        offsets = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=order).tolist()
    results = []
    for index, image in enumerate(images.numpy()):
        canvas = np.zeros((channels, height + 2 * pad, width + 2 * pad), dtype=image.dtype)
        canvas[:, pad : pad + height, pad : pad + width] = image
        top, left = offsets[0][index][0], offsets[1][index][0]
        window = canvas[:, top : top + height, left : left + width]
        results.append(window[:, :, ::-1] if mirrored[index] else window)
    return torch.from_numpy(np.stack(results))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_augment_equals_the_slow_version(pad: int, flip: bool) -> None:
    images = _numbered_images(40)
    augmentation = Augmentation(pad=pad, flip=flip)
    fast = augment(images, augmentation, generator("order"))
    slow = _augment_slowly(images, augmentation, generator("order"))
    assert fast.dtype == torch.uint8
    assert torch.equal(fast, slow)


def test_augment_draws_every_crop_and_nothing_else() -> None:
    image = torch.arange(1, 31, dtype=torch.uint8).view(1, 1, 5, 6)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    possible = {
        _key(crop.flip(3) if flip else crop)
        for top in range(3)
        for left in range(3)
        for flip in (False, True)
        for crop in [padded[:, :, top : top + 5, left : left + 6]]
    }
    drawn = augment(image.expand(2000, -1, -1, -1), Augmentation(pad=1, flip=True), generator("order"))
    counts = Counter(_key(one) for one in drawn)
    assert set(counts) == possible
    assert len(possible) == 18
    assert min(counts.values()) > 2000 / 18 / 2


def _key(image: Tensor) -> bytes:
    return image.numpy().tobytes()


def test_augment_without_anything_to_do_returns_the_images() -> None:
    images = _numbered_images(3)
    assert torch.equal(augment(images, Augmentation(), generator("order")), images)


# --- normalising ---


def test_normalize_uses_mean_and_std_per_channel_in_channels_last_order() -> None:
    data = _task_data()
    images = _numbered_images(7)
    normalized = data.normalize(images)
    expected = (images.numpy() / 255 - np.array([0.25, 0.5]).reshape(1, 2, 1, 1)) / np.array([0.2, 0.4]).reshape(
        1, 2, 1, 1
    )
    assert normalized.dtype == torch.float32
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(normalized.numpy(), expected, atol=1e-5)


def test_normalize_leaves_its_input_alone() -> None:
    images = _numbered_images(2)
    before = images.clone()
    _task_data().normalize(images)
    assert torch.equal(images, before)


def test_padding_is_black_before_normalising() -> None:
    class Padded(Numbered):
        augmentation = Augmentation(pad=5)

    data = _task_data(Padded())
    images = torch.cat([images for images, _ in data.training_batches(10, generator("order"))])
    black = -torch.tensor(Numbered.mean) / torch.tensor(Numbered.std)
    corners = images[:, :, 0, 0]
    assert (corners - black).abs().amax(dim=1).lt(1e-5).any()


# --- batches ---


def test_training_batches_take_every_image_at_most_once_and_drop_the_rest() -> None:
    data = _task_data()
    batches = list(data.training_batches(16, generator("order")))
    numbers = [number for images, _ in batches for number in _numbers(images)]
    train_indices, _ = split(Numbered().load(None).train_labels, 0.1)
    assert len(data.train) % 16 != 0
    assert len(batches) == data.batches_per_epoch(16) == len(data.train) // 16
    assert all(len(images) == len(labels) == 16 for images, labels in batches)
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) <= set(train_indices.tolist())


def test_training_batches_pair_images_with_their_labels() -> None:
    for images, labels in _task_data().training_batches(16, generator("order")):
        assert [number % 4 for number in _numbers(images)] == labels.tolist()


def test_training_batches_are_channels_last() -> None:
    class Augmented(Numbered):
        augmentation = Augmentation(pad=1, flip=True)

    for dataset in (Numbered(), Augmented()):
        images, _ = next(_task_data(dataset).training_batches(8, generator("order")))
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_the_same_generator_gives_the_same_batches() -> None:
    class Augmented(Numbered):
        augmentation = Augmentation(pad=1, flip=True)

    data = _task_data(Augmented())

    def epoch(seed: int) -> Tensor:
        return torch.cat([images for images, _ in data.training_batches(16, generator("order", seed))])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))


def test_one_generator_gives_another_order_in_the_next_epoch() -> None:
    data, order = _task_data(), generator("order")
    first, second = (
        [number for images, _ in data.training_batches(16, order) for number in _numbers(images)] for _ in range(2)
    )
    assert first != second


def test_a_subset_smaller_than_the_batch_gives_one_batch_of_all_it_has() -> None:
    data = _task_data()
    subset = data.train.take(torch.tensor([4, 9, 2]))
    batches = list(data.training_batches(16, generator("order"), subset=subset))
    assert data.batches_per_epoch(16, subset) == len(batches) == 1
    assert sorted(_numbers(batches[0][0])) == sorted(_numbers(data.normalize(subset.images)))


def test_evaluation_batches_keep_order_and_the_last_smaller_batch() -> None:
    data = _task_data()
    batches = list(data.evaluation_batches(data.test, batch_size=5))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 2]
    assert [number for images, _ in batches for number in _numbers(images)] == list(range(17))
    assert torch.cat([labels for _, labels in batches]).tolist() == data.test.labels.tolist()


def test_calibration_batches_are_fixed_training_images_without_repeats() -> None:
    data = _task_data()
    torch.manual_seed(5)
    first = data.calibration_batches(3, 8)
    torch.manual_seed(6)
    second = data.calibration_batches(3, 8)
    numbers = [number for images in first for number in _numbers(images)]
    assert [len(images) for images in first] == [8, 8, 8]
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert len(set(numbers)) == 24
    assert set(numbers) <= set(_numbers(data.normalize(data.train.images)))


def test_calibration_batches_are_whole_where_images_do_not_suffice() -> None:
    data = _task_data()
    images = len(data.train)
    assert [len(batch) for batch in data.calibration_batches(2, images - 1)] == [images - 1]
    assert [len(batch) for batch in data.calibration_batches(2, images + 1)] == [images]


def test_parts_do_not_overlap() -> None:
    data = _task_data(validation_fraction=0.25)
    train, validation = (set(_numbers(data.normalize(part.images))) for part in (data.train, data.validation))
    assert not train & validation
    assert len(train | validation) == 203


def test_take_keeps_images_and_labels_together() -> None:
    subset = TensorSubset(images=_numbered_images(6), labels=torch.arange(6))
    taken = subset.take(torch.tensor([5, 0]))
    assert len(taken) == 2
    assert taken.labels.tolist() == [5, 0]
    assert taken.images[:, 0, 0, 1].tolist() == [5, 0]


# --- what a data set returns is checked ---


def _spoilt(part: str, value: Tensor) -> Arrays:
    return replace(Numbered().load(None), **{part: value})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (_spoilt("train_images", torch.zeros(203, 2, 5, 6)), "training images of Numbered.*float32"),
        (
            _spoilt("train_images", torch.zeros(203, 2, 6, 5, dtype=torch.uint8)),
            r"training images.*\(203, 2, 6, 5\)",
        ),
        (_spoilt("test_images", torch.zeros(16, 2, 5, 6, dtype=torch.uint8)), "test images.*17 labels"),
        (_spoilt("train_labels", torch.full((203,), 4)), "training labels of Numbered.*0 to 3"),
        (_spoilt("test_labels", torch.full((17,), -1)), "test labels of Numbered.*0 to 3"),
        (_spoilt("test_labels", torch.zeros(17, dtype=torch.int32)), "test labels of Numbered.*int64"),
    ],
)
def test_arrays_that_break_the_promise_are_refused(arrays: Arrays, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        TaskData(Numbered(), arrays, validation_fraction=0.1, device=CPU)


def test_a_data_set_without_images_is_refused() -> None:
    with pytest.raises(BenchError, match="test labels"):
        _task_data(Numbered(test=0))


# --- conversion ---


def test_as_uint8_puts_channels_first() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    assert torch.equal(as_uint8(colour)[:, 2], torch.from_numpy(colour[..., 2].copy()))
    assert as_uint8(colour).is_contiguous()


def test_as_uint8_gives_grey_images_one_channel() -> None:
    grey = np.arange(2 * 5 * 6, dtype=np.uint8).reshape(2, 5, 6)
    assert as_uint8(grey).shape == (2, 1, 5, 6)
    assert torch.equal(as_uint8(grey)[:, 0], torch.from_numpy(grey))


def test_fewer_training_images_are_an_even_share_of_every_class() -> None:
    dataset = Synthetic()
    arrays = dataset.load(None)
    cpu = torch.device("cpu")
    whole = TaskData(dataset, arrays, validation_fraction=0.25, device=cpu)
    few = TaskData(dataset, arrays, validation_fraction=0.25, device=cpu, train_images=100)
    counts = few.train.labels.bincount(minlength=dataset.num_classes)
    assert abs(len(few.train) - 100) <= dataset.num_classes
    assert int(counts.max() - counts.min()) <= 2
    assert torch.equal(few.validation.images, whole.validation.images)
    assert few.checksum != whole.checksum
    with pytest.raises(BenchError, match=r"train_images is 9999"):
        TaskData(dataset, arrays, validation_fraction=0.25, device=cpu, train_images=9999)
