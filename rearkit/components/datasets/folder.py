"""A folder of images with one sub-folder per class, like an unpacked ImageNet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rearkit.components.datasets.imagenet_names import readable
from rearkit.contracts import ImageSample
from rearkit.data.class_folders import (
    files_below,
    find_images,
    image_suffixes,
    is_hidden,
    listing_digest,
    sort_classes,
)
from rearkit.data.labels import UNLABELLED
from rearkit.errors import DataError, RecipeError
from rearkit.recipe.settings import setting, settings
from rearkit.system.devices import derive_seed

FLAT = (
    ", and images right in it; unlabelled = true trains on them without classes; where a file lists their classes: "
    "python -m rearkit data --from-folder FOLDER --labels FILE --to SHARDS"
)


@settings
class FolderSettings:
    """Images in folders, one per class (their sorted names are the classes 0, 1, …), as ImageNet is unpacked."""

    train: str = setting("folder of the training images' class folders")
    held_out: str = setting("folder of the held-out images' class folders, with the same names")
    unlabelled: bool = setting(
        "images without classes, anywhere below the folders, for an unconditional model", default=False, since="0.2.0"
    )


class Folder:
    """The dataset; see `rearkit.contracts.Dataset`.

    Raises:
        RecipeError: a folder is missing.
        DataError: a folder contains no class folders.
    """

    def __init__(self, settings: FolderSettings) -> None:
        self.folders = {"train": Path(settings.train), "held-out": Path(settings.held_out)}
        self.unlabelled = settings.unlabelled
        for split, path in self.folders.items():
            if not path.is_dir():
                raise RecipeError(
                    [f"[data.source] {split.replace('-', '_')}: {path}: no such folder; correct the path"]
                )
        self._names = [UNLABELLED] if self.unlabelled else _classes(self.folders["train"])
        self.num_classes = len(self._names)

    def class_names(self) -> Sequence[str]:
        """Return the names of the class folders, with ImageNet's identifiers translated into words."""
        return readable(self._names)

    def stamp(self) -> str:
        """Return a hash of the files' paths, sizes and times."""
        return " ".join(listing_digest(path) for path in self.folders.values())

    def size(self, split: str) -> None:
        """Return None: only listing the folders would tell."""

    def shards(self, split: str) -> None:
        """Return None: the data stage writes the shards."""

    def images(self, split: str) -> Iterator[ImageSample]:
        """Yield the images of a split in an order that mixes the classes, the same each time.

        Raises:
            DataError: the split has no images, or a class that the training images do not have.
        """
        root = self.folders[split]
        found = find_images((path for path, _ in files_below(root)), f"[data.source] {root}", not self.unlabelled)
        if not found:
            raise DataError(f"[data.source] {root}: no images in {'it' if self.unlabelled else 'its class folders'}")
        # Unlabelled images have no owner; all are of the only class.
        labels = {name: label for label, name in enumerate([""] if self.unlabelled else self._names)}
        if strangers := sorted({image.owner for image in found} - labels.keys()):
            raise DataError(f"[data.source] {root}: class {strangers[0]!r} is not among the training images' classes")
        # Mixed, so that the first images of a set are of all classes, wherever only some are looked at.
        for index in np.random.default_rng(derive_seed("shards")).permutation(len(found)).tolist():
            image = found[index]
            yield ImageSample(image.key, root / image.path, labels[image.owner])


def _classes(root: Path) -> list[str]:
    """Return the names of the class folders, sorted."""
    # A class has a file somewhere; which files are images is looked up when they are read.
    names = sort_classes(
        path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name) and any(files_below(path))
    )
    if not names:
        flat = any(path.suffix.lower().removeprefix(".") in image_suffixes() for path in root.iterdir())
        raise DataError(f"[data.source] {root}: no class folders in this folder{FLAT if flat else ''}")
    return names
