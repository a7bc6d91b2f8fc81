"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 32×32 photographs, 50,000 for training and 10,000 for testing."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from bench.api import Arrays, Augmentation, Dataset, as_uint8
from datasets.shared.files import PublishedFiles, locate, md5_check, paths


class _Cifar(Dataset):
    """The common part of both data sets; a subclass names torchvision's class, which knows files and checksums.

    torchvision's class compares the MD5 of every file before it unpickles any.
    """

    image_shape = (3, 32, 32)
    training_images = 50_000
    augmentation = Augmentation(pad=4, flip=True)
    _name: ClassVar[str]
    _torchvision_class: ClassVar[str]

    @classmethod
    def files(cls, data_dir: Path | None) -> list[Path]:
        """List the paths of all files; nothing is read or downloaded."""
        import torchvision.datasets

        return paths(_published(cls._name, getattr(torchvision.datasets, cls._torchvision_class)), data_dir)

    def load(self, data_dir: Path | None) -> Arrays:
        """Read the arrays from torchvision's folder; missing files are downloaded.

        Raises:
            BenchError: Files are missing and cannot be downloaded, or are corrupt.
        """
        import torchvision.datasets

        published = getattr(torchvision.datasets, self._torchvision_class)
        root = locate(_published(self._name, published), data_dir)
        train, test = (published(root, train=part, download=False) for part in (True, False))
        return Arrays(
            train_images=as_uint8(train.data),
            train_labels=torch.tensor(train.targets),
            test_images=as_uint8(test.data),
            test_labels=torch.tensor(test.targets),
        )


class Cifar10(_Cifar):
    """Ten classes. Mean and standard deviation are the values of the training images that are usually published."""

    summary = "10 classes of 32×32 colour photographs; 50,000 training and 10,000 test images"
    num_classes = 10
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    _name = "cifar10"
    _torchvision_class = "CIFAR10"


class Cifar100(_Cifar):
    """A hundred classes (fine labels). Mean and standard deviation were measured on the training images."""

    summary = "100 classes of 32×32 colour photographs; 50,000 training and 10,000 test images"
    num_classes = 100
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    _name = "cifar100"
    _torchvision_class = "CIFAR100"


def _published(name: str, torchvision_class: Any) -> PublishedFiles:
    """Collect files, checksums and download of a data set from torchvision's class."""
    checksums = [
        *torchvision_class.train_list,
        *torchvision_class.test_list,
        (torchvision_class.meta["filename"], torchvision_class.meta["md5"]),
    ]
    return PublishedFiles(
        name=name,
        folder=torchvision_class.base_folder,
        files={file: md5_check(md5) for file, md5 in checksums},
        archives={torchvision_class.filename: torchvision_class.tgz_md5},
        download=lambda folder: torchvision_class(folder, download=True),
    )
