"""Batches of images for fitting: the shards of a run, epoch after epoch, in a seeded order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs
import numpy as np
import torch
from torch import Tensor

from rearkit.data.image_shards import BadSamples, ReadImage, read_images
from rearkit.data.pixels import to_float
from rearkit.errors import DataError
from rearkit.recipe.tables import Recipe
from rearkit.stages.data import read_listing, retry_of
from rearkit.stages.run_folder import RunFolder


def open_split(
    recipe: Recipe,
    folder: RunFolder,
    split: str,
    image_size: int,
    num_classes: int,
    log: Path,
    *,
    epoch: int | None = None,
) -> tuple[Iterator[ReadImage], BadSamples]:
    """Read a split of a run once; in the order of the shards, or in a shuffled one that depends on seed and epoch."""
    listing = read_listing(folder, split)
    bad = BadSamples(recipe.data.max_bad_share, sum(listing.values()), log)
    shuffle = None if epoch is None else torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    return read_images(list(listing), image_size, num_classes, bad, listing, shuffle, retry_of(recipe)), bad


def image_batches(
    recipe: Recipe, folder: RunFolder, image_size: int, num_classes: int, batch: int, log: Path, start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield training batches without end: images (batch, 3, R, R) float32 in [0, 1] and labels (batch,) int64.

    Args:
        start: batches to pass over, for a resumed fit; the stream is the same from there on.

    Raises:
        DataError: there are no images that can be used.
    """
    held: list[ReadImage] = []  # the last images of an epoch go into a batch with the next one's first
    for epoch in itertools.count():
        images, bad = open_split(recipe, folder, "train", image_size, num_classes, log, epoch=epoch)
        for image in images:
            held.append(image)
            if len(held) == batch:
                if start > 0:
                    start -= 1
                else:
                    yield stack(held)
                held = []
        if not bad.good:
            raise DataError("[data.source]: no training images that can be used")


@attrs.frozen(eq=False)
class ImageSet:
    """Images in memory, with their classes.

    Attributes:
        images: (n, 3, R, R) uint8.
        labels: (n,) int64.
    """

    images: Tensor
    labels: Tensor

    @classmethod
    def from_arrays(cls, images: np.ndarray, labels: np.ndarray) -> ImageSet:
        """Take images (n, R, R, 3) uint8 and labels (n,)."""
        channels_first = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        return cls(channels_first, torch.from_numpy(np.asarray(labels, dtype=np.int64)))

    def __len__(self) -> int:
        return len(self.images)


def read_all(
    recipe: Recipe,
    folder: RunFolder,
    split: str,
    image_size: int,
    num_classes: int,
    log: Path,
    limit: int | None = None,
) -> ImageSet:
    """Read a split of a run, or its first ``limit`` images, into memory."""
    images, _ = open_split(recipe, folder, split, image_size, num_classes, log)
    return _image_set(itertools.islice(images, limit), image_size)


def _image_set(images: Iterable[ReadImage], image_size: int) -> ImageSet:
    held = list(images)
    if not held:
        empty = torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)
        return ImageSet(empty, torch.empty(0, dtype=torch.int64))
    return ImageSet(torch.stack([image.image for image in held]), torch.tensor([image.label for image in held]))


def stack(images: list[ReadImage]) -> tuple[Tensor, Tensor]:
    """Stack read images: float32 (B, 3, R, R) in [0, 1] and labels (B,) int64."""
    return to_float(torch.stack([image.image for image in images])), torch.tensor([image.label for image in images])
