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

from rearkit.data.conversions import conversion
from rearkit.data.image_shards import IMAGE_SUFFIXES
from rearkit.errors import DataError
from rearkit.system.console import progress_bar
from rearkit.system.devices import derive_seed
from rearkit.system.files import replacing, write_json
from rearkit.system.processes import in_processes

CLASSES = "classes.json"


@attrs.frozen
class Source:
    """Where the bytes of one image file lie.

    Attributes:
        file: the image file, or the tar that it is in.
        offset: of its first byte.
        size: bytes.
        key: unique name, ``class/name``.
        suffix: of the image file, without the dot.
        label: its class.
    """

    file: str
    offset: int
    size: int
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
    digest = hashlib.sha256("\n".join(f"{s.key} {s.size}" for s in sources).encode()).hexdigest()
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
    if source.is_dir():
        found = list(_in_folder(source))
    elif source.is_file():
        try:
            found = list(_in_tar(source, 0, None))
        except tarfile.TarError as error:
            raise DataError(f"{source}: not a readable tar ({error})") from None
    else:
        raise DataError(f"{source}: no such folder or tar")
    if not found:
        raise DataError(f"{source}: no images in class folders ({', '.join(IMAGE_SUFFIXES)})")
    names = sorted({name for name, _ in found})
    labels = {name: label for label, name in enumerate(names)}
    return sorted((attrs.evolve(s, label=labels[name]) for name, s in found), key=lambda s: s.key), names


def _in_folder(folder: Path) -> Iterator[tuple[str, Source]]:
    for child in sorted(folder.iterdir()):
        if child.is_dir():
            for path in sorted(child.rglob("*")):
                name = path.relative_to(child).as_posix()
                if (found := _source(child.name, name, str(path), 0, path.stat().st_size)) is not None:
                    yield child.name, found


def _in_tar(path: Path, start: int, name: str | None) -> Iterator[tuple[str, Source]]:
    """Images of a tar that begins at ``start`` of a file; a tar in a tar is a class of its own."""
    with path.open("rb") as file:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                inner = Path(member.name)
                if inner.suffix == ".tar" and name is None:
                    yield from _in_tar(path, member.offset_data, inner.stem)
                    continue
                owner = name or inner.parent.name
                found = _source(owner, inner.name, str(path), member.offset_data, member.size)
                if owner and found is not None:
                    yield owner, found


def _source(owner: str, name: str, file: str, offset: int, size: int) -> Source | None:
    stem, _, suffix = name.rpartition(".")
    suffix = suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        return None
    # A dot would end the key in a WebDataset shard.
    return Source(file, offset, size, f"{owner}/{stem}".replace(".", "_"), suffix, -1)


def _write_shard(path: Path, sources: Sequence[Source]) -> None:
    with replacing(path) as temporary, webdataset.TarWriter(str(temporary), mtime=0) as writer:
        for source in sources:
            with Path(source.file).open("rb") as file:
                file.seek(source.offset)
                content = file.read(source.size)
            writer.write({"__key__": source.key, source.suffix: content, "cls": source.label})
