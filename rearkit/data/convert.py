"""Preparing images outside a run: folders or tars of images into shards.

Each shard is written whole or not at all, and those that are there already are passed over, so that a conversion that
was cut off goes on.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
import webdataset

from rearkit.data.class_folders import find_images, sort_classes, strip_roots, suffix_of
from rearkit.data.conversions import conversion
from rearkit.errors import DataError
from rearkit.system.console import progress_bar
from rearkit.system.devices import derive_seed
from rearkit.system.files import replacing, write_json
from rearkit.system.processes import in_processes

CLASSES = "classes.json"


@attrs.frozen
class Place:
    """Where the bytes of a file lie.

    Attributes:
        file: the file itself, or the tar that it is in.
        offset: of its first byte.
        size: bytes.
    """

    file: str
    offset: int
    size: int


@attrs.frozen
class Source:
    """An image file on its way into a shard.

    Attributes:
        place: where its bytes lie.
        key: unique name, ``class/name``.
        suffix: of the image file, without the dot.
        label: its class.
    """

    place: Place
    key: str
    suffix: str
    label: int


def images_to_shards(source: Path, target: Path, shard_size: int = 1000, workers: int | None = None) -> list[Path]:
    """Turn images into WebDataset shards, in an order that mixes the classes, files as they are.

    Args:
        source: a folder with one sub-folder a class, a tar of such a folder, or a tar of one tar a class (as ImageNet
            comes). Sorted class names are the classes 0, 1, …
        target: folder for ``000000.tar``, … and ``classes.json``.
        shard_size: images in a shard.
        workers: processes; left out, one a core.

    Raises:
        DataError: no images, or ``target`` holds another conversion.
    """
    sources, names = list_images(source)
    order = np.random.default_rng(derive_seed("shards")).permutation(len(sources))
    digest = hashlib.sha256("\n".join(f"{s.key} {s.place.size}" for s in sources).encode()).hexdigest()
    jobs = [
        (target / f"{index:06d}.tar", [sources[i] for i in order[start : start + shard_size]])
        for index, start in enumerate(range(0, len(sources), shard_size))
    ]
    with conversion(target, {"images": len(sources), "shard_size": shard_size, "listing": digest}):
        write_json(target / CLASSES, names)
        missing = [job for job in jobs if not job[0].is_file()]
        with progress_bar("data: shards", len(jobs), len(jobs) - len(missing)) as bar:
            for _ in in_processes(_write_shard, missing, workers):
                bar.advance(1)
    return [path for path, _ in jobs]


def list_images(source: Path) -> tuple[list[Source], list[str]]:
    """Find the images of a folder or tar, sorted, and the names of the classes.

    Raises:
        DataError: there are none, or the source cannot be read.
    """
    files: dict[str, Place] = {}
    if source.is_dir():
        paths = (path for path in source.rglob("*") if path.is_file())
        files = {path.relative_to(source).as_posix(): Place(str(path), 0, path.stat().st_size) for path in paths}
    elif source.is_file():
        try:
            files = strip_roots(dict(_in_tar(source, 0, "")))
        except tarfile.TarError as error:
            raise DataError(f"{source}: not a readable tar ({error})") from None
    else:
        raise DataError(f"{source}: no such folder or tar")
    found = find_images(files, str(source))
    if not found:
        raise DataError(f"{source}: no images in class folders")
    names = sort_classes(image.owner for image in found)
    labels = {name: label for label, name in enumerate(names)}
    sources = [Source(files[f.path], f.key, suffix_of(f.path), labels[f.owner]) for f in found]
    return sorted(sources, key=lambda s: s.key), names


def _in_tar(path: Path, start: int, owner: str) -> Iterator[tuple[str, Place]]:
    """Files of a tar that begins at ``start`` of a file; a tar in a tar is a class of its own."""
    with path.open("rb") as file:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                if member.name.endswith(".tar") and not owner:
                    yield from _in_tar(path, member.offset_data, f"{Path(member.name).stem}/")
                else:
                    yield f"{owner}{member.name}", Place(str(path), member.offset_data, member.size)


def _write_shard(path: Path, sources: Sequence[Source]) -> None:
    with replacing(path) as temporary, webdataset.TarWriter(str(temporary), mtime=0) as writer:
        for source in sources:
            with Path(source.place.file).open("rb") as file:
                file.seek(source.place.offset)
                content = file.read(source.place.size)
            writer.write({"__key__": source.key, source.suffix: content, "cls": source.label})
