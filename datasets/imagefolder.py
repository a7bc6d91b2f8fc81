"""Any folder of images, with one folder for each class, for training and for testing."""

from pathlib import Path
from typing import Self

from bench.api import BenchError, ImageDataset, ImageFiles
from bench.data.image_files import classes_in
from bench.spec.schema import ImageOptions

_TRAIN = "train"
_TEST = ("test", "val")
"""Folders for testing. The first one with folders of classes is used; a test part without labels has none."""
_LAYOUT = "it needs DIR/train/<class>/… and DIR/val/<class>/… (or DIR/test/<class>/…), given by --data-dir DIR"


class ImageFolder(ImageDataset):
    """The images in `train/<class>` and `test/<class>` or `val/<class>`, with ImageNet's mean and standard deviation.

    `task.images` has options on mirroring, windows, colours, channels and statistics. The validation part is split off
    the training images, as for all data sets. If both `test` and `val` exist, `val` is not used.
    """

    summary = "any images, in DIR/train/<class>/… and DIR/val/<class>/… or DIR/test/<class>/…; --data-dir DIR"
    counts_classes = True

    @classmethod
    def described(
        cls,
        *,
        image_size: int | None = None,
        classes: int | None = None,
        data_dir: Path | None = None,
        images: ImageOptions | None = None,
    ) -> Self:
        """Make the data set with the given number of classes; by default, folders are counted.

        Raises:
            BenchError: Classes must be counted, and their folder is missing.
        """
        return cls(len(classes_in(_parts(data_dir)[0])) if classes is None else classes, image_size, images)

    @classmethod
    def folders(cls, data_dir: Path | None) -> list[Path]:
        """List the folders of both parts; none without a data folder.

        Raises:
            BenchError: A part is missing.
        """
        return [] if data_dir is None else list(_parts(data_dir))

    def load(self, data_dir: Path | None) -> ImageFiles:
        """List the images.

        Raises:
            BenchError: A part is missing or empty, or the parts have different classes.
        """
        return self.read(*_parts(data_dir))


def _parts(data_dir: Path | None) -> tuple[Path, Path]:
    """Return the folders for training and for testing.

    Raises:
        BenchError: One of them is missing, or no data folder is given.
    """
    if data_dir is None:
        raise BenchError(f"data set 'imagefolder' has no folder of its own: {_LAYOUT}")
    root = data_dir.expanduser().absolute()
    train, *test = (root / name for name in (_TRAIN, *_TEST))
    tests = [folder for folder in test if folder.is_dir() and classes_in(folder)]
    if not train.is_dir() or not classes_in(train) or not tests:
        missing = f"{train}/<class>" if not train.is_dir() or not classes_in(train) else f"{root}/val/<class>"
        raise BenchError(f"data set 'imagefolder' was not found: there is no {missing}; {_LAYOUT}")
    return train, tests[0]
