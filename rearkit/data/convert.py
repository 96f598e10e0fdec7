"""Preparing images outside a run: folders or tars of images into shards.

Each shard is written whole or not at all, and those that are there already are passed over, so that a conversion that
was cut off goes on. Those of images that have changed since are made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
import webdataset

from rearkit.data.class_folders import find_images, image_suffixes, sort_classes, suffix_of
from rearkit.data.conversions import conversion, remove_outdated
from rearkit.data.image_files import COPY, ImageFile, files_of_folder, files_of_tar
from rearkit.data.label_files import read_labels
from rearkit.data.shard_lists import CLASSES
from rearkit.errors import DataError
from rearkit.system.console import progress_bar
from rearkit.system.devices import derive_seed
from rearkit.system.files import read_json, replacing, write_json
from rearkit.system.processes import in_processes

UNPACK = "unpack it first: images are read out of its middle"
PACKED = ("gz", "tgz", "bz2", "xz", "zst", "zip", "7z", "rar")
FLAT = "; of those outside, --labels FILE lists their classes, --unlabelled does without"


@attrs.frozen
class Source:
    """An image file on its way into a shard.

    Attributes:
        file: where its bytes lie.
        key: unique name, ``class/name``.
        suffix: of the image file, without the dot.
        label: its class; None for images without classes.
    """

    file: ImageFile
    key: str
    suffix: str
    label: int | None


@attrs.frozen
class Labelling:
    """How the classes of images are told: by folders, unless one of these is given.

    Attributes:
        file: lists them; see `rearkit.data.label_files`.
        none: whether the images have none.
        classes: the ``classes.json`` of other shards, whose numbers the classes get; None for sorted names.
    """

    file: Path | None = None
    none: bool = False
    classes: Path | None = None

    @property
    def by_folder(self) -> bool:
        """Whether the folder below the root names the class."""
        return self.file is None and not self.none


BY_FOLDER = Labelling()


def images_to_shards(
    source: Path, target: Path, shard_size: int = 1000, workers: int | None = None, labelling: Labelling = BY_FOLDER
) -> list[Path]:
    """Turn images into WebDataset shards, in an order that mixes the classes, files as they are.

    Args:
        source: a folder with one sub-folder a class, a tar of such a folder, or a tar of one tar a class (as ImageNet
            comes). Sorted class names are the classes 0, 1, …
        target: folder for ``000000.tar``, … and ``classes.json``.
        shard_size: images in a shard.
        workers: processes; left out, one a core.
        labelling: how the classes are told, where not by folders.

    Raises:
        DataError: no images, no class for one, or ``target`` holds another conversion.
    """
    sources, names = list_images(source, labelling)
    order = np.random.default_rng(derive_seed("shards")).permutation(len(sources))
    # Labels that folders tell are in the keys.
    told = [f"{s.key} {s.file.size}" + ("" if labelling == BY_FOLDER else f" {s.label}") for s in sources]
    jobs = [
        (target / f"{index:06d}.tar", [sources[i] for i in order[start : start + shard_size]])
        for index, start in enumerate(range(0, len(sources), shard_size))
    ]
    with conversion(target, {"images": len(sources), "shard_size": shard_size, "listing": _digest(told)}):
        # Images that were edited may have the size that they had, so that only the time tells.
        times = {path.name: _digest(f"{s.key} {s.file.modified}" for s in members) for path, members in jobs}
        remove_outdated(target, times)
        if names is not None:
            write_json(target / CLASSES, names)
        missing = [job for job in jobs if not job[0].is_file()]
        with progress_bar("data: shards", len(jobs), len(jobs) - len(missing)) as bar:
            for _ in in_processes(_write_shard, missing, workers):
                bar.advance(1)
    return [path for path, _ in jobs]


def list_images(source: Path, labelling: Labelling = BY_FOLDER) -> tuple[list[Source], list[str] | None]:
    """Find the images of a folder or tar, sorted, and the names of the classes; None if they have none.

    Raises:
        DataError: there are none, the source cannot be read, or an image has no class.
    """
    files = {file.name: file for file in _files(source)}
    found = find_images(files, str(source), labelling.by_folder)
    if not found:
        there = labelling.by_folder and any(suffix_of(path) in image_suffixes() for path in files)
        where = " in class folders" if labelling.by_folder else ""
        raise DataError(f"{source}: no images{where}{FLAT if there else ''}")
    names: list[str] | None = None
    labels: Mapping[str, int] = {}
    if labelling.file is not None:
        labels, names = read_labels(labelling.file, [image.path for image in found], str(source))
    elif labelling.by_folder:
        names = sort_classes(image.owner for image in found)
        numbers = {name: label for label, name in enumerate(names)}
        labels = {image.path: numbers[image.owner] for image in found}
    if names is not None and labelling.classes is not None:
        order = {name: label for label, name in enumerate(_order(labelling.classes))}
        if strangers := [name for name in names if name not in order]:
            raise DataError(f"{source}: class {strangers[0]!r} is not among those of {labelling.classes}; rename it")
        labels, names = {path: order[names[label]] for path, label in labels.items()}, list(order)
    sources = [Source(files[f.path], f.key, suffix_of(f.path), labels.get(f.path)) for f in found]
    return sorted(sources, key=lambda s: s.key), names


def _digest(lines: Iterable[str]) -> str:
    # Names of old archives may be in no known encoding.
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _order(file: Path) -> list[str]:
    names = read_json(file)
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: no list of class names, such as the {CLASSES} that a conversion writes")
    return [str(name) for name in names]


def _files(source: Path) -> list[ImageFile]:
    if source.is_dir():
        return files_of_folder(source)
    if source.is_file():
        return files_of_tar(source, UNPACK if suffix_of(source.name) in PACKED else COPY, nested=True)
    raise DataError(f"{source}: no such folder or tar")


def _write_shard(path: Path, sources: Sequence[Source]) -> None:
    with replacing(path) as temporary, webdataset.TarWriter(str(temporary), mtime=0) as writer:
        for source in sources:
            label = {} if source.label is None else {"cls": source.label}
            writer.write({"__key__": source.key, source.suffix: source.file.read(), **label})
