"""A folder of images with one sub-folder per class, like an unpacked ImageNet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rearkit.components.datasets.imagenet_names import readable
from rearkit.contracts import ImageSample
from rearkit.data.shard_members import IMAGE_SUFFIXES
from rearkit.errors import DataError
from rearkit.recipe.settings import setting, settings

SUFFIXES = {f".{suffix}" for suffix in IMAGE_SUFFIXES}


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
        # From the training folder only, so that both splits number the classes alike.
        self._names = sorted(path.name for path in self.folders["train"].iterdir() if path.is_dir())
        if not self._names:
            raise DataError(f"[data.source] {self.folders['train']}: no class folders in this folder")
        self.num_classes = len(self._names)

    def class_names(self) -> Sequence[str]:
        """Return the names of the class folders, or words if they are ImageNet's."""
        return readable(self._names)

    def size(self, split: str) -> None:
        """Return None: only listing the folders would tell."""

    def shards(self, split: str) -> None:
        """Return None: the data stage writes the shards."""

    def images(self, split: str) -> Iterator[ImageSample]:
        """Yield the images of a split, sorted by class and file name.

        Raises:
            DataError: the split has no images.
        """
        found = False
        for label, name in enumerate(self._names):
            for path in sorted((self.folders[split] / name).glob("*")):
                if path.suffix.lower() not in SUFFIXES:
                    continue
                found = True
                # A dot would end the key in a WebDataset shard. The file is stored as it is, and decoded when read.
                yield ImageSample(f"{name}/{path.stem}".replace(".", "_"), path, label)
        if not found:
            raise DataError(f"[data.source] {self.folders[split]}: no images in its class folders")
