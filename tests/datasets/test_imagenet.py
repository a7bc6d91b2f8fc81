from pathlib import Path

import pytest

from bench.errors import BenchError
from datasets.imagenet import ImageNet


def test_shape_and_size() -> None:
    plain = ImageNet.described()
    assert (plain.image_shape, plain.num_classes) == ((3, 224, 224), 1000) == (ImageNet.image_shape, 1000)
    assert (plain.framing.resize, plain.framing.crop) == (256, 224)
    assert ImageNet.training_images == 1_281_167
    small = ImageNet.described(image_size=64)
    assert small.image_shape == (3, 64, 64)
    assert small.framing.resize == 73


def test_another_number_of_classes_is_refused() -> None:
    assert ImageNet.described(classes=1000).num_classes == 1000
    with pytest.raises(BenchError, match="has no effect on imagenet"):
        ImageNet.described(classes=10)


@pytest.mark.parametrize("made", [(), ("train",)])
def test_what_is_missing_is_named_in_one_line(tmp_path: Path, made: tuple[str, ...]) -> None:
    for part in made:
        (tmp_path / "imagenet" / part).mkdir(parents=True)
    with pytest.raises(BenchError) as caught:
        ImageNet.described().load(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert f"{tmp_path}/imagenet/val" in message and "--data-dir DIR" in message
    assert (f"{tmp_path}/imagenet/train" in message) == (not made)


def test_its_layout_is_read(tmp_path: Path) -> None:
    """Files are listed, not opened."""
    for part, count in (("train", 2), ("val", 1)):
        for label in range(1000):
            folder = tmp_path / "imagenet" / part / f"n{label:08}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{part}_{number}.JPEG").touch()
    contents = ImageNet.described().load(tmp_path)
    assert (len(contents.train), len(contents.test)) == (2000, 1000)
    assert contents.train.name(3) == "n00000001/train_1.JPEG"
    assert contents.test.labels[999] == 999
    for label in range(3):
        (tmp_path / "imagenet" / "val" / f"n{label:08}" / "val_0.JPEG").unlink()
        (tmp_path / "imagenet" / "val" / f"n{label:08}").rmdir()
    with pytest.raises(BenchError, match=r"only .*train has n00000000, n00000001, n00000002"):
        ImageNet.described().load(tmp_path)


def test_fewer_than_a_thousand_classes_are_refused(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / "imagenet" / part / "n0").mkdir(parents=True)
        (tmp_path / "imagenet" / part / "n0" / "a.JPEG").touch()
    with pytest.raises(BenchError, match="has 1 folders of classes; ImageNet is expected to have 1000"):
        ImageNet.described().load(tmp_path)
