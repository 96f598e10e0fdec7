"""Preparing data outside a run: folders or tars of images into shards, published token files into token shards.

Both write one shard after another, each whole or not at all, and pass over those that are there already, so that a
conversion that was cut off goes on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import attrs
import numpy as np
import webdataset

from rearkit.data.class_folders import find_images, sort_classes, strip_roots, suffix_of
from rearkit.data.token_shards import MAX_CODES, write_token_shard
from rearkit.errors import DataError
from rearkit.system.console import progress_bar
from rearkit.system.devices import derive_seed
from rearkit.system.files import read_json, replacing, write_json

PLAN = "plan.json"
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
    _claim(target, {"images": len(sources), "shard_size": shard_size, "listing": digest})
    write_json(target / CLASSES, names)
    jobs = [
        (target / f"{index:06d}.tar", [sources[i] for i in order[start : start + shard_size]])
        for index, start in enumerate(range(0, len(sources), shard_size))
    ]
    missing = [job for job in jobs if not job[0].is_file()]
    with (
        progress_bar("data: shards", len(jobs), len(jobs) - len(missing)) as bar,
        ProcessPoolExecutor(workers or os.cpu_count()) as pool,
    ):
        for _ in pool.map(_write_shard, *zip(*missing, strict=True)) if missing else ():
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


def jsonl_to_token_shards(source: Path, target: Path, shard_size: int = 100_000) -> list[Path]:
    """Turn a published token file, one ``{"class_id": 1, "tokens": [...]}`` a line, into token shards.

    Raises:
        DataError: a line is damaged, of another length, or has a token out of range; the message names it.
    """
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    _claim(target, {"source": source.name, "bytes": source.stat().st_size, "shard_size": shard_size})
    paths: list[Path] = []
    length: int | None = None
    with source.open(encoding="utf-8") as file, progress_bar("tokens: MiB", source.stat().st_size >> 20) as bar:
        lines = enumerate(file, start=1)
        done = 0
        while chunk := list(itertools.islice(lines, shard_size)):
            path = target / f"train-{len(paths):06d}.tar"
            paths.append(path)
            if not path.is_file():
                rows = [_parse(text, f"{source}, line {number}") for number, text in chunk]
                length = length or len(rows[0][1])
                for (number, _), (_, tokens) in zip(chunk, rows, strict=True):
                    if len(tokens) != length:
                        raise DataError(f"{source}, line {number}: {len(tokens)} tokens, where others have {length}")
                tokens_nN = np.array([tokens for _, tokens in rows])
                write_token_shard(path, tokens_nN, np.array([label for label, _ in rows]), {"source": source.name})
            done += sum(len(text) for _, text in chunk)
            bar.advance((done >> 20) - bar.done)
    if not paths:
        raise DataError(f"{source}: no lines")
    return paths


def _parse(text: str, where: str) -> tuple[int, list[int]]:
    try:
        row = json.loads(text)
        label, tokens = int(row["class_id"]), row["tokens"]
        if not all(isinstance(token, int) and 0 <= token < MAX_CODES for token in tokens):
            raise ValueError("a token is no whole number from 0 to 65535")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{where}: expected {{"class_id": 1, "tokens": [...]}} ({error})') from None
    return label, tokens


def _claim(target: Path, plan: dict[str, object]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    before = read_json(target / PLAN)
    if before is None and any(target.glob("*.tar")):
        raise DataError(f"{target}: holds shards of something else; choose another folder")
    if before not in (None, plan):
        raise DataError(f"{target}: holds another conversion ({before}); choose another folder")
    write_json(target / PLAN, plan)


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
