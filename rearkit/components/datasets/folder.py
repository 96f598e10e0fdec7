"""A folder of images with one sub-folder per class, like an unpacked ImageNet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rearkit.components.datasets.imagenet_names import readable
from rearkit.contracts import ImageSample
from rearkit.data.class_folders import find_images, is_hidden, sort_classes
from rearkit.errors import DataError
from rearkit.recipe.settings import setting, settings
from rearkit.system.devices import derive_seed


@settings
class FolderSettings:
    """Images in folders, one per class (their sorted names are the classes 0, 1, …), as ImageNet is unpacked."""

    train: str = setting("folder of the training images' class folders")
    held_out: str = setting("folder of the held-out images' class folders, with the same names")


class Folder:
    """The dataset; see `rearkit.contracts.Dataset`.

    Raises:
        DataError: a folder is missing, or contains no class folders.
    """

    def __init__(self, settings: FolderSettings) -> None:
        self.folders = {"train": Path(settings.train), "held-out": Path(settings.held_out)}
        for path in self.folders.values():
            if not path.is_dir():
                raise DataError(f"[data.source] {path}: no such folder")
        root = self.folders["train"]
        # A class has a file somewhere; which files are images is looked up when they are read.
        self._names = sort_classes(path.name for path in root.iterdir() if path.is_dir() and _has_files(path))
        if not self._names:
            raise DataError(f"[data.source] {root}: no class folders in this folder")
        self.num_classes = len(self._names)

    def class_names(self) -> Sequence[str]:
        """Return the names of the class folders, with ImageNet's identifiers translated into words."""
        return readable(self._names)

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
        labels = {name: label for label, name in enumerate(self._names)}
        paths = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        found = find_images(paths, f"[data.source] {root}")
        if not found:
            raise DataError(f"[data.source] {root}: no images in its class folders")
        if strangers := sorted({image.owner for image in found} - labels.keys()):
            raise DataError(f"[data.source] {root}: class {strangers[0]!r} is not among the training images' classes")
        # Mixed, so that the first images of a set are of all classes, wherever only some are looked at.
        for index in np.random.default_rng(derive_seed("shards")).permutation(len(found)).tolist():
            image = found[index]
            yield ImageSample(image.key, root / image.path, labels[image.owner])


def _has_files(folder: Path) -> bool:
    """Return whether a folder that is not hidden has a file in it that is not hidden either."""
    if is_hidden(folder.name):
        return False
    return any(path.is_file() and not is_hidden(path.relative_to(folder).as_posix()) for path in folder.rglob("*"))
