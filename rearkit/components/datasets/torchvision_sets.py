"""The datasets of torchvision that have images with one class each, by the names of their classes in Python."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import attrs
import numpy as np
from PIL import Image

from rearkit.contracts import ImageSample
from rearkit.data.image_bytes import UNREADABLE, png_of
from rearkit.errors import DataError, did_you_mean, first_line
from rearkit.recipe.settings import setting, settings
from rearkit.system.console import say_once
from rearkit.system.devices import derive_seed
from rearkit.system.locks import locked

# What is decided here, or would have to be code, which a recipe does not hold.
NOT_OPTIONS = ("root", "train", "download", "loader", "transform", "transforms", "target_transform", "is_valid_file")


@settings
class TorchvisionSettings:
    """A dataset of torchvision.datasets with images and whole numbers as labels, such as CIFAR10."""

    dataset: str = setting("name of its class in torchvision.datasets")
    root: str = setting("folder that it is in, or is downloaded to", default="data")
    download: bool = setting("download it if it is not there", default=False)
    train: str = setting("its split to train on, where it has splits by name", default="train")
    held_out: str = setting("its split kept from training, likewise, such as 'val'", default="test")
    held_out_share: float = setting(
        "share of the images kept from training, where it has no splits at all", default=0.1, gt=0, lt=1
    )
    num_classes: int | None = setting("C, where the dataset does not say it", default=None, ge=1)
    options: dict[str, Any] = setting(
        "further arguments of its class, such as split = 'balanced' of EMNIST", default=attrs.Factory(dict)
    )


class Torchvision:
    """The dataset; see `rearkit.contracts.Dataset`. It is opened when something is asked of it.

    Raises:
        DataError: torchvision is not installed.
        ValueError: torchvision has no such dataset, or it has no such options.
    """

    def __init__(self, settings: TorchvisionSettings) -> None:
        if importlib.util.find_spec("torchvision") is None:
            raise DataError("the dataset torchvision needs the package torchvision; run: pip install torchvision")
        self.settings = settings
        self._held: dict[str, Any] = {}
        self.cls = _class_named(settings.dataset)
        self.takes = _parameters(self.cls)
        for name in settings.options:
            if name in NOT_OPTIONS or name not in self.takes:
                known = sorted(self.takes - set(NOT_OPTIONS))
                hint = did_you_mean(name, known)
                raise ValueError(f"options: {settings.dataset} takes no {name!r}{hint}; it takes {', '.join(known)}")
        if settings.download and "download" not in self.takes:
            raise ValueError(f"download: torchvision cannot download {settings.dataset}; put it into {settings.root}")
        # Of its own, by a switch or by name; otherwise images are held out here.
        self.by_name = "split" in self.takes and "split" not in settings.options and "train" not in self.takes
        self.has_splits = self.by_name or "train" in self.takes

    @functools.cached_property
    def num_classes(self) -> int:
        """C: the recipe's, or as many as the dataset names or counts."""
        opened = self._opened("train")
        names = _names(opened)
        found = self.settings.num_classes or (len(names) if names else getattr(opened, "num_classes", None))
        if not isinstance(found, int):
            raise DataError(
                f"[data.source] {self.settings.dataset} does not say how many classes it has; give num_classes"
            )
        return found

    def class_names(self) -> Sequence[str] | None:
        """Return the dataset's names of its classes, if it has any."""
        names = _names(self._opened("train"))
        return names if names is not None and len(names) == self.num_classes else None

    def size(self, split: str) -> int:
        """Return the number of images in a split."""
        return len(self._order(split))

    def shards(self, split: str) -> None:
        """Return None: the data stage writes the shards."""

    def images(self, split: str) -> Iterator[ImageSample]:
        """Yield the images of a split in an order that mixes the classes, the same each time.

        Raises:
            DataError: the dataset is not there, or its samples are not an image and a class.
        """
        opened = self._opened(split)
        for index in self._order(split):
            try:
                sample = opened[index]
            # A damaged file raises whatever its reader does. Its label is unknown then, but it must be counted.
            except Exception as error:
                say_once(f"data: {self.settings.dataset} cannot read its image {index}: {first_line(error)}")
                yield ImageSample(f"{index:07d}", UNREADABLE, 0)
                continue
            image, label = self._pair(sample)
            yield ImageSample(f"{index:07d}", _content(image), label)

    def _pair(self, sample: Any) -> tuple[Any, int]:
        """Return the image and the class of a sample."""
        if isinstance(sample, tuple) and len(sample) == 2 and isinstance(sample[0], Image.Image | Path | np.ndarray):
            try:
                return sample[0], operator.index(sample[1])
            except (TypeError, RuntimeError):
                pass
        said = tuple(type(part).__name__ for part in sample) if isinstance(sample, tuple) else type(sample).__name__
        raise DataError(
            f"[data.source] {self.settings.dataset}: its samples are not an image and a whole number but {said}; "
            "options may say which label, such as target_type"
        )

    def _order(self, split: str) -> list[int]:
        """Return the numbers of a split's images, mixed, so that the first ones are of all classes."""
        count = len(self._opened(split))
        order: list[int] = np.random.default_rng(derive_seed("shards")).permutation(count).tolist()
        if self.has_splits:
            return order
        held_out = max(1, round(count * self.settings.held_out_share))
        return order[:held_out] if split == "held-out" else order[held_out:]

    def _opened(self, split: str) -> Any:
        # Without splits, both are the same dataset, which need not be read twice.
        return self._open("train" if not self.has_splits else split)

    def _open(self, split: str) -> Any:
        if split not in self._held:
            self._held[split] = self._made(split)
        return self._held[split]

    def _made(self, split: str) -> Any:
        table = self.settings
        chosen = table.train if split == "train" else table.held_out
        arguments: dict[str, Any] = {
            "root": table.root,
            "train": split == "train",
            "download": table.download,
            # Files as they are, which then go into the shards undecoded.
            "loader": Path,
            **({"split": chosen} if self.by_name else {}),
        }
        given = {name: value for name, value in arguments.items() if name in self.takes} | table.options
        lock = Path(table.root) / ".rearkit-download"
        try:
            # Several ranks, or runs, may ask for it at once.
            with locked(lock) if table.download else contextlib.nullcontext():
                return self.cls(**given)
        # RuntimeErrors are of what is missing, ValueErrors of splits, OSErrors of downloads and folders.
        except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
            remedy = "correct root, or set download = true" if "download" in self.takes else "correct root"
            if isinstance(error, URLError):
                remedy = f"it could not be downloaded, so try again, or put its files into {table.root}"
            elif isinstance(error, ValueError) and self.by_name:
                remedy = "name its splits by train and held_out"
            elif isinstance(error, TypeError):
                remedy = "give what it needs under options"
            raise DataError(f"[data.source] {table.dataset} in {table.root}: {first_line(error)}; {remedy}") from error


def _class_named(name: str) -> type:
    """Return a class of torchvision.datasets by its name there; nothing else can be named.

    Raises:
        ValueError: there is none.
    """
    from torchvision import datasets  # here, since it takes seconds to import

    found = {
        each: value
        for each in datasets.__all__
        if isinstance(value := getattr(datasets, each), type)
        and issubclass(value, datasets.VisionDataset)
        and value is not datasets.VisionDataset
    }
    if name not in found:
        hint = did_you_mean(name, found)
        raise ValueError(f"dataset: torchvision.datasets has no {name!r}{hint}; for example CIFAR10, STL10, Flowers102")
    return found[name]


def _parameters(cls: type) -> set[str]:
    """Return what a class can be made with, the arguments that it hands on to the class it inherits from included."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}


def _names(opened: Any) -> list[str] | None:
    """Return the names of a dataset's classes; the first of several that ImageNet has for each."""
    classes = getattr(opened, "classes", None) or getattr(opened, "categories", None)
    if not isinstance(classes, list | tuple):
        return None
    return [str(name[0] if isinstance(name, tuple) else name) for name in classes]


def _content(image: Any) -> np.ndarray | Path | bytes:
    """Return an image as a shard takes it: a file as it is, pixels as PNG."""
    if isinstance(image, Path):
        return image
    return png_of(Image.fromarray(image) if isinstance(image, np.ndarray) else image)
