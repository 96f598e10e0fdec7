"""The contract of a dataset."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from rearkit.contracts import SPLITS, Dataset, ImageSample
from rearkit.testing.clauses import named, require, require_count


def check_dataset(dataset: Dataset, limit: int = 1000) -> None:
    """Check a dataset: its classes, and the shards or images of both splits.

    Args:
        dataset: the dataset to check.
        limit: number of images of a split to read, twice; a split's size is checked if it has fewer images.

    Raises:
        AssertionError: a clause of the contract is broken.
    """
    require(
        isinstance(dataset, Dataset),
        f"a dataset must have num_classes, class_names, size, shards and images; {named(dataset)} lacks one",
    )
    require_count(dataset, "num_classes", "dataset")
    names = dataset.class_names()
    require(
        names is None or (len(names) == dataset.num_classes and all(isinstance(name, str) for name in names)),
        f"class_names() must return a string for each of the {dataset.num_classes} classes, or None; found {names!r}",
    )
    for split in SPLITS:
        size = dataset.size(split)
        shards = dataset.shards(split)
        require(
            size is None or (isinstance(size, int) and size >= 0),
            f"size({split!r}) must be a number of images or None; found {size!r}",
        )
        if shards is None:
            _check_images(dataset, split, size, limit)
        else:
            require(
                not isinstance(shards, str) and all(isinstance(shard, str) for shard in shards),
                f"shards({split!r}) must be None, or a list of paths and URLs as strings; found {shards!r}",
            )


def _check_images(dataset: Dataset, split: str, size: int | None, limit: int) -> None:
    order: list[str] = []
    for sample in itertools.islice(dataset.images(split), limit):
        require(isinstance(sample, ImageSample), f"images({split!r}) must yield ImageSample; found {sample!r}")
        _check_image(sample, dataset.num_classes)
        order.append(sample.key)
    require(order, f"images({split!r}) must yield images where shards({split!r}) is None; there are none")
    repeated = next((key for key, count in itertools.groupby(sorted(order)) if len(list(count)) > 1), None)
    require(repeated is None, f"a key must be unique within a split; {repeated!r} is not, in {split!r}")
    again = [sample.key for sample in itertools.islice(dataset.images(split), limit)]
    require(again == order, f"images({split!r}) must yield the same order each time")
    if size is not None:
        # Where reading stopped at the limit, the size can only be compared with a lower bound.
        found = f"{len(order)} at least" if len(order) == limit else str(len(order))
        require(
            size >= len(order) and (size == len(order) or len(order) == limit),
            f"size({split!r}) must be how many images the split yields; it is {size}, and there are {found}",
        )


def _check_image(sample: ImageSample, num_classes: int) -> None:
    key = sample.key
    image = sample.image
    require(
        # Only the part after the last slash: WebDataset splits names at the first dot there.
        isinstance(key, str) and key.rpartition("/")[2] and "." not in key.rpartition("/")[2],
        f"a key must be a string without a dot, which would end it in a WebDataset shard; found {key!r}",
    )
    require(
        isinstance(sample.label, int | np.integer) and 0 <= sample.label < num_classes,
        f"labels must lie in [0, num_classes), that is 0 to {num_classes - 1}; image {key!r} has {sample.label!r}",
    )
    # A file's content may be damaged, whatever the dataset does; such samples are counted when they are read.
    if isinstance(image, bytes):
        return
    if isinstance(image, Path):
        require(image.is_file(), f"the image of {key!r} must be pixels or an existing file; there is no {image}")
        return
    found = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    require(
        isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3,
        f"the image of {key!r} must be pixels, uint8 of shape (height, width, 3), or a file, its Path or its bytes; "
        f"found {found}",
    )
