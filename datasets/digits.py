"""Scikit-learn's handwritten digits: 1,797 real 8×8 images that are installed with it, without a download."""

from pathlib import Path

import numpy as np
import torch

from bench.api import Arrays, Augmentation, Dataset, as_uint8
from bench.data import split

_TEST_FRACTION = 0.2


class Digits(Dataset):
    """Ten classes. Mean and standard deviation were measured on the training part.

    Scikit-learn has only the test part of the UCI original (Alpaydin and Kaynak 1998), and defines no split of it. A
    fixed, stratified fifth is used for testing.
    """

    summary = "10 classes of 8×8 handwritten digits; 1,438 training and 359 test images; needs no download"
    image_shape = (1, 8, 8)
    num_classes = 10
    training_images = 1_438
    mean = (0.3055,)
    std = (0.3761,)
    augmentation = Augmentation(pad=1)

    def load(self, data_dir: Path | None) -> Arrays:
        """Read the arrays from the installed scikit-learn; the folder is not used."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        # Pixels are counts from 0 to 16.
        images = as_uint8(np.round(digits.images * 255 / 16).astype(np.uint8))
        labels = torch.from_numpy(digits.target.astype(np.int64))
        train, test = split(labels, _TEST_FRACTION)
        return Arrays(
            train_images=images[train],
            train_labels=labels[train],
            test_images=images[test],
            test_labels=labels[test],
        )
