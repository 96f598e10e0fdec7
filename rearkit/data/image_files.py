"""Files of images that are no dataset: in a folder, flat or by classes, in a tar, or in several tars such as shards."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import attrs
import numpy as np

from rearkit.data.class_folders import files_below, image_suffixes, is_hidden, sort_classes, strip_roots, suffix_of
from rearkit.data.shard_lists import expand_shards
from rearkit.data.tar_headers import remedy_of
from rearkit.data.whole_tars import files_in_tar
from rearkit.errors import DataError

# The class at the end of a name, as `sample --to-folder` writes it.
NAMED_CLASS = re.compile(r"class(\d{1,6})$")


@attrs.frozen
class ImageFile:
    """Where an image file lies.

    Attributes:
        name: below the root, with slashes.
        file: the file itself, or the tar that it is in.
        offset: of its first byte.
        size: bytes.
    """

    name: str
    file: str
    offset: int
    size: int

    @property
    def told(self) -> str:
        """What to call it in a message."""
        return self.file if self.file.endswith(self.name) else f"{self.file}: {self.name}"

    def read(self) -> bytes:
        """Read the bytes of the file.

        Raises:
            DataError: it is not there any more, or is cut off.
        """
        try:
            with Path(self.file).open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise DataError(f"{self.told}: cannot be read ({error.strerror})") from None
        if len(content) != self.size:
            raise DataError(f"{self.told}: cut off, {self.size - len(content)} bytes are missing; copy it again")
        return content


def list_image_files(source: Path) -> tuple[list[ImageFile], np.ndarray | None]:
    """Find images and their classes, if the names tell them.

    Names are sorted with numbers by their size. Images of class folders are taken in turn, one of each class: folders
    have no order among them, and the Inception Score needs mixed classes.

    Args:
        source: a folder of images, flat or with a folder for each class; a tar of such a folder; a folder of tars; or
            several tars, as ``shards/{000..009}.tar``.

    Returns:
        the files, and their classes (n,) int64 by the place of the class among the sorted names, or None.

    Raises:
        DataError: there are no images, or some lie in class folders and others beside them.
    """
    found = [file for file in _files(source) if suffix_of(file.name) in image_suffixes() and not is_hidden(file.name)]
    if not found:
        raise DataError(
            f"{source}: no images in it; expected PNGs or others, in a folder, in class folders or in a tar"
        )
    found.sort(key=lambda file: _natural(file.name))
    owners = [file.name.partition("/")[0] if "/" in file.name else "" for file in found]
    names = sort_classes(owners)
    if "" in names and len(names) > 1:
        beside = [file.name for file, owner in zip(found, owners, strict=True) if not owner]
        raise DataError(
            f"{source}: {len(beside)} images lie beside class folders, such as {beside[0]}; move them into their "
            "classes, or away"
        )
    if len(names) > 1:
        return _in_turn(found, owners, names)
    told = [NAMED_CLASS.search(Path(file.name).stem) for file in found]
    return found, np.array([int(one[1]) for one in told if one], np.int64) if all(told) else None


def _in_turn(
    files: Sequence[ImageFile], owners: Sequence[str], names: Sequence[str]
) -> tuple[list[ImageFile], np.ndarray]:
    members: dict[str, list[ImageFile]] = {name: [] for name in names}
    for file, owner in zip(files, owners, strict=True):
        members[owner].append(file)
    labelled = [[(file, label) for file in members[name]] for label, name in enumerate(names)]
    mixed = [one for row in zip_longest(*labelled) for one in row if one is not None]
    return [file for file, _ in mixed], np.array([label for _, label in mixed], np.int64)


def _files(source: Path) -> Iterator[ImageFile]:
    if source.is_dir():
        found = list(files_below(source))
        tars = sorted(Path(entry.path) for name, entry in found if suffix_of(name) == "tar")
        if tars and not any(suffix_of(name) in image_suffixes() for name, _ in found):
            for tar in tars:
                yield from _in_tar(tar)
            return
        for name, entry in found:
            yield ImageFile(name, entry.path, 0, entry.stat().st_size)
        return
    try:
        tars = [Path(tar) for tar in expand_shards(str(source))]
    except ValueError as error:
        raise DataError(f"{source}: {error}") from None
    for tar in tars:
        if not tar.is_file():
            raise DataError(f"{tar}: no such file or folder")
        yield from _in_tar(tar)


def _in_tar(path: Path) -> list[ImageFile]:
    try:
        with path.open("rb") as file:
            found = files_in_tar(file, 0, path.stat().st_size, str(path))
            members: Mapping[str, tarfile.TarInfo] = {one.name: one for one in found}
    except tarfile.TarError as error:
        remedy = remedy_of(error, "unpack it where it is compressed, since images are read out of its middle")
        raise DataError(f"{path}: not a readable tar ({error}); {remedy}") from None
    return [ImageFile(name, str(path), one.offset_data, one.size) for name, one in strip_roots(members).items()]


def _natural(name: str) -> list[str | int]:
    """Sort key by which 2.png comes before 10.png; texts and numbers alternate, so that like meets like."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]
