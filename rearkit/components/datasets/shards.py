"""Existing WebDataset shards, on a disk or behind a pipe or URL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rearkit.components.datasets.imagenet_names import readable
from rearkit.contracts import ImageSample
from rearkit.data.fetching import is_remote
from rearkit.data.labels import UNLABELLED
from rearkit.data.shard_lists import CLASSES, expand_shards, tars_in
from rearkit.data.shard_members import Fields
from rearkit.errors import DataError, RecipeError
from rearkit.recipe.settings import setting, settings
from rearkit.system.files import read_json


def _braces(instance: Any, attribute: Any, value: str) -> None:
    expand_shards(value)


def _names_beside(place: str | None) -> list[str]:
    """Return the class names that lie beside shards; empty if none do."""
    if place is None:
        return []
    found = read_json((Path(place) if Path(place).is_dir() else Path(place).parent) / CLASSES)
    return [str(name) for name in found] if isinstance(found, list) else []


@settings
class Shards:
    """Existing WebDataset shards: an image (.jpg, .png, .webp, …) and a class (.cls, .json, .txt) for each sample."""

    train: str | None = setting(
        "train shards: a folder, or a path or URL with braces, such as 'in/{0000..1023}.tar'; left out, no images",
        default=None,
        validator=_braces,
    )
    held_out: str | None = setting("held-out shards, likewise", default=None, validator=_braces)
    train_images: int | None = setting("number of training images, for counting epochs", default=None, ge=1)
    num_classes: int = setting("C; labels are 0 to C-1; left out where unlabelled", default=0, ge=0)
    image: str | None = setting(
        "the image's name after its key, such as 'left.jpg'; left out: the one with a suffix of images",
        default=None,
        min_len=1,
        since="0.2.0",
    )
    label: str | None = setting(
        "the label's name likewise, such as 'txt', or 'json:NAME' for a value in JSON; left out: .cls, or else "
        "the value 'label' of .json, or .txt",
        default=None,
        min_len=1,
        since="0.2.0",
    )

    unlabelled: bool = setting(
        "images without classes, or whose classes are left aside, for an unconditional model",
        default=False,
        since="0.2.0",
    )

    def __attrs_post_init__(self) -> None:
        if not self.unlabelled and not self.num_classes:
            raise ValueError("num_classes is missing; unlabelled = true takes images without classes")
        if self.unlabelled and self.num_classes > 1:
            raise ValueError(f"unlabelled = true leaves no use for num_classes = {self.num_classes}; leave it out")
        if self.unlabelled and self.label is not None:
            raise ValueError(f"unlabelled = true leaves no use for label = {self.label!r}; leave it out")
        if self.unlabelled:
            # As for any dataset, at least one class: all images are of it.
            object.__setattr__(self, "num_classes", 1)

    @property
    def fields(self) -> Fields:
        """Which members of a sample are its image and its label."""
        return Fields(self.image, self.label, self.unlabelled)

    def class_names(self) -> Sequence[str] | None:
        """Return the names that ``rearkit data --from-folder`` wrote beside the shards, if any; ImageNet's in words."""
        if self.unlabelled:
            return [UNLABELLED]
        names = _names_beside(self.train)
        return readable(names) if len(names) == self.num_classes else None

    def size(self, split: str) -> int | None:
        """Return the recipe's number of training images; otherwise None: only reading the shards would tell."""
        return self.train_images if split == "train" else None

    def shards(self, split: str) -> list[str]:
        """Expand braces and folders to a list of shards.

        Raises:
            RecipeError: a file or folder is missing.
            DataError: a folder is empty, or the held-out images' classes are numbered otherwise than the training's.
        """
        place = self.held_out if split == "held-out" else self.train
        if place is None:
            return []
        if split == "held-out" and not self.unlabelled:
            self._check_order()
        if Path(place).is_dir():
            found = [str(path) for path in tars_in(Path(place))]
            if not found:
                raise DataError(f"[data.source] {place}: no .tar shards in this folder")
            return found
        urls = expand_shards(place)
        # Only local files: to look for a URL or a pipe means to fetch it.
        missing = [url for url in urls if not is_remote(url) and not Path(url).is_file()]
        if missing:
            key = "held_out" if split == "held-out" else "train"
            told = f"{len(missing)} of {len(urls)} shards do not exist, the first {missing[0]}"
            raise RecipeError([f"[data.source] {key}: {place}: {told}; correct the path"])
        return urls

    def _check_order(self) -> None:
        """Raise DataError where the names beside the shards say that a number is another class in the other split."""
        names, held_out = _names_beside(self.train), _names_beside(self.held_out)
        if all(name.isdecimal() for name in held_out):  # of a file that has numbers for classes
            return
        for label, (name, other) in enumerate(zip(names, held_out, strict=False)):
            if name != other:
                raise DataError(
                    f"[data.source] held_out: {self.held_out}: class {label} is {other!r} there, and {name!r} in "
                    f"{self.train}; convert the held-out images again, with --classes and the training's {CLASSES}"
                )

    def images(self, split: str) -> Iterator[ImageSample]:
        """Never called, since shards exist."""
        raise NotImplementedError
