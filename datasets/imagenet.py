"""ImageNet-1k (Russakovsky et al. 2015): 1,281,167 photographs for training and 50,000 for testing, in files."""

from pathlib import Path
from typing import Self

from bench.api import BenchError, ImageDataset, ImageFiles
from bench.spec.schema import ImageOptions
from datasets.shared.files import data_folder

_CLASSES = 1000


class ImageNet(ImageDataset):
    """A thousand classes. Its validation images are the test part here, as in all papers.

    Mean and standard deviation are the values that are usually published.
    """

    summary = "1,000 classes of photographs, 224×224 after cropping; 1,281,167 training and 50,000 test images"
    image_shape = (3, ImageDataset.crop, ImageDataset.crop)
    num_classes = _CLASSES
    training_images = 1_281_167

    @classmethod
    def described(
        cls,
        *,
        image_size: int | None = None,
        classes: int | None = None,
        data_dir: Path | None = None,
        images: ImageOptions | None = None,
    ) -> Self:
        """Make the data set with images of any size.

        Raises:
            BenchError: Another number of classes is given, or another treatment of images.
        """
        if images is not None:
            raise BenchError("task.images has no effect on imagenet; it is for image folders, so leave it out")
        if classes not in (None, _CLASSES):
            raise BenchError(f"task.classes = {classes} has no effect on imagenet, which has {_CLASSES}; leave it out")
        return cls(_CLASSES, image_size)

    @classmethod
    def folders(cls, data_dir: Path | None) -> list[Path]:
        """List the folders of both parts.

        Raises:
            BenchError: A folder is missing.
        """
        root = data_folder(data_dir) / "imagenet"
        parts = [root / "train", root / "val"]
        if missing := [str(part) for part in parts if not part.is_dir()]:
            raise BenchError(
                f"data set 'imagenet' was not found: looked for {' and '.join(missing)}; it cannot be downloaded: get "
                "it from image-net.org and unpack it as DIR/imagenet/train/<wnid>/*.JPEG and "
                "DIR/imagenet/val/<wnid>/*.JPEG, then give --data-dir DIR"
            )
        return parts

    def load(self, data_dir: Path | None) -> ImageFiles:
        """List the images.

        Raises:
            BenchError: A folder is missing, or does not have a thousand classes.
        """
        return self.read(*self.folders(data_dir))
