"""What a dataset must do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import attrs
import numpy as np

# Held-out images are never trained on: tokenizers, backbones and classifiers are measured on them.
SPLITS = ("train", "held-out")


@attrs.frozen
class Classes:
    """The classes of a dataset.

    Attributes:
        number: C.
        names: C names for people to read; None if the dataset has none.
    """

    number: int
    names: tuple[str, ...] | None = None

    @property
    def titles(self) -> tuple[str, ...]:
        """The names of the classes, or their numbers if they have none."""
        return self.names or tuple(map(str, range(self.number)))

    @classmethod
    def of(cls, dataset: Dataset) -> Classes:
        """Return the classes of a dataset."""
        names = dataset.class_names()
        return cls(dataset.num_classes, None if names is None else tuple(names))


@attrs.frozen(eq=False)
class ImageSample:
    """One image of a dataset: a unique key, an image, a class in [0, C).

    The image is (height, width, 3) uint8 pixels, the path of an image file, or the bytes of one; a file goes into a
    shard as it is. Bytes that are no image make a bad sample, which is skipped and counted.

    The last part of a key must have no dot, since a dot ends the key in a WebDataset shard.
    """

    key: str
    image: np.ndarray | Path | bytes
    label: int


@runtime_checkable
class Dataset(Protocol):
    """A source of images with classes.

    One that reads files may also have ``stamp()``, which returns a text that is another when they have changed; the
    shards that the data stage wrote of them are then made again. Images without classes are all of one class; a setting
    ``unlabelled = true`` says so, and recipes that need classes are refused.
    """

    num_classes: int

    def class_names(self) -> Sequence[str] | None:
        """Return C names for people to read, or None if there are none."""
        ...

    def size(self, split: str) -> int | None:
        """Return the number of images in a split (``"train"`` or ``"held-out"``); None if only reading shows it."""
        ...

    def shards(self, split: str) -> Sequence[str] | None:
        """Return a split's existing WebDataset shards (paths or URLs); None to have them written from `images`.

        A dataset whose samples have unusual members also has ``fields``, a `rearkit.data.shard_members.Fields`.

        Args:
            split: ``"train"`` or ``"held-out"``.
        """
        ...

    def images(self, split: str) -> Iterator[ImageSample]:
        """Yield the images of a split in a fixed order."""
        ...
