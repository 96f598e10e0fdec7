"""Datasets of the Hugging Face Hub, or of local folders and files, read by the package datasets."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rearkit.contracts import ImageSample
from rearkit.data.image_bytes import UNREADABLE
from rearkit.errors import DataError, first_line
from rearkit.recipe.settings import setting, settings
from rearkit.system.devices import derive_seed

# Readers of the package datasets that unpickle files or run code; a recipe is data, and runs none.
RUN_CODE = ("pandas", "generator", "spark", "sql")
# The first version of the package that runs no code of a dataset's.
CODELESS = 4
# Samples among which a stream is mixed.
WINDOW = 1000


def _runs_no_code(instance: Any, attribute: Any, value: str) -> None:
    if value in RUN_CODE or value.endswith((".py", ".pkl", ".pickle")):
        raise ValueError(f"{value!r} would run code; give a name on the Hub, a folder, or parquet, csv or imagefolder")


@settings
class HuggingFaceSettings:
    """A dataset of the Hugging Face Hub, or a local folder or parquet files, read by the package datasets."""

    path: str = setting(
        "name on the Hub ('owner/name'), a local folder, or 'parquet' with train_files and held_out_files",
        min_len=1,
        validator=_runs_no_code,
    )
    config: str | None = setting("which of its configurations, if it has several", default=None)
    revision: str | None = setting("branch, tag or commit on the Hub; left out: the newest", default=None)
    train: str = setting("its split to train on; also part of one, such as 'train[:90%]'", default="train", min_len=1)
    held_out: str = setting("its split kept from training", default="test", min_len=1)
    train_files: str | tuple[str, ...] | None = setting("files of the split train, with or without *", default=None)
    held_out_files: str | tuple[str, ...] | None = setting("files of the split held_out, likewise", default=None)
    image: str = setting("its column of images", default="image", min_len=1)
    label: str = setting("its column of classes, whole numbers from 0", default="label", min_len=1)
    num_classes: int | None = setting("C, where the column of classes does not say it", default=None, ge=1)
    streaming: bool = setting("read it while the shards are written, instead of downloading it first", default=False)


class HuggingFace:
    """The dataset; see `rearkit.contracts.Dataset`. It is opened when something is asked of it.

    Raises:
        DataError: the package datasets is not installed.
    """

    def __init__(self, settings: HuggingFaceSettings) -> None:
        if importlib.util.find_spec("datasets") is None:
            raise DataError(
                "the dataset huggingface needs the package datasets; run: pip install 'rearkit[huggingface]'"
            )
        self.settings = settings
        self._held: dict[str, Any] = {}

    @functools.cached_property
    def num_classes(self) -> int:
        """C: the recipe's, or as many as the column of classes names."""
        names = self._label_names()
        found = self.settings.num_classes or (None if names is None else len(names))
        if found is None:
            raise DataError(f"{self._where()}: the column {self.settings.label} names no classes; give num_classes")
        return found

    def class_names(self) -> Sequence[str] | None:
        """Return the names that the column of classes has, if any."""
        names = self._label_names()
        return names if names is not None and len(names) == self.num_classes else None

    def size(self, split: str) -> int | None:
        """Return the number of images in a split; None for a stream, which only reading would tell."""
        return None if self.settings.streaming else len(self._opened(split))

    def shards(self, split: str) -> None:
        """Return None: the data stage writes the shards."""

    def images(self, split: str) -> Iterator[ImageSample]:
        """Yield the images of a split in an order that mixes the classes, the same each time.

        Raises:
            DataError: the dataset cannot be read, or a label is no whole number.
        """
        for number, row in enumerate(self._rows(split)):
            label = row[self.settings.label]
            if not isinstance(label, int):
                raise DataError(
                    f"{self._where()}: the column {self.settings.label} has {label!r} in row {number} of {split}, no "
                    "whole number; name another column by label, or cast it to ClassLabel"
                )
            yield ImageSample(f"{number:08d}", _content(row[self.settings.image]), label)

    def _rows(self, split: str) -> Iterable[dict[str, Any]]:
        opened = self._opened(split)
        seed = derive_seed("shards")
        if self.settings.streaming:
            return iter(opened.shuffle(seed=seed % 2**32, buffer_size=WINDOW))
        # Not its own shuffle, which writes a table of indices into the user's cache.
        return (opened[index] for index in np.random.default_rng(seed).permutation(len(opened)).tolist())

    def _label_names(self) -> list[str] | None:
        feature = (self._opened("train").features or {}).get(self.settings.label)
        names = getattr(feature, "names", None)
        return None if names is None else list(names)

    def _opened(self, split: str) -> Any:
        if split not in self._held:
            self._held[split] = self._open(split)
        return self._held[split]

    def _open(self, split: str) -> Any:
        """Open a split, with its two columns alone, and its images as files."""
        import datasets

        if int(datasets.__version__.partition(".")[0]) < CODELESS:
            raise DataError(
                f"{self._where()}: datasets {datasets.__version__} can run code that comes with a dataset; "
                f"run: pip install 'datasets>={CODELESS}'"
            )
        table = self.settings
        files = {table.train: table.train_files, table.held_out: table.held_out_files}
        given = {name: list(f) if isinstance(f, tuple) else f for name, f in files.items() if f is not None}
        chosen = table.train if split == "train" else table.held_out
        try:
            found = datasets.load_dataset(
                table.path,
                table.config,
                data_files=given or None,
                split=chosen,
                revision=table.revision,
                streaming=table.streaming,
            )
        # Its own errors are FileNotFoundErrors and ValueErrors; those of the network are OSErrors.
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"{self._where()}, split {chosen!r}: {first_line(error)}") from error
        columns = list(found.features or found.column_names or ())
        for key, name in (("image", table.image), ("label", table.label)):
            if columns and name not in columns:
                raise DataError(f"{self._where()}: no column {name!r}; name one by {key}: {', '.join(columns)}")
        found = found.select_columns([table.image, table.label])
        # As they are stored, so that the shards get the files themselves and damage is met where it is counted.
        if isinstance((found.features or {}).get(table.image), datasets.Image):
            found = found.cast_column(table.image, datasets.Image(decode=False))
        return found

    def _where(self) -> str:
        return f"[data.source] huggingface {self.settings.path}"


def _content(value: Any) -> Path | bytes:
    """Return an image file as a shard takes it, from bytes, or from a table of bytes and a path."""
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        if isinstance(content, bytes):
            return content
        return UNREADABLE if path is None else _file(str(path))
    return value if isinstance(value, bytes) else UNREADABLE


def _file(path: str) -> Path | bytes:
    """Return a file, or the bytes of one that is elsewhere."""
    if "://" not in path:
        # A file that is missing is a bad sample, as one that is damaged.
        return Path(path) if Path(path).is_file() else UNREADABLE
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()
    except OSError:
        return UNREADABLE
    return content
