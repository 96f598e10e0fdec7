"""Files of images that are no dataset: in a folder, flat or by classes, in a tar, or in several tars such as shards."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
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
COPY = "copy it again"
UNPACK = "unpack it where it is compressed, since images are read out of its middle"


@attrs.frozen
class ImageFile:
    """Where an image file lies.

    Attributes:
        name: below the root, with slashes.
        file: the file itself, or the tar that it is in.
        offset: of its first byte.
        size: bytes.
        modified: when the file, or the tar, was last changed, in nanoseconds.
    """

    name: str
    file: str
    offset: int
    size: int
    modified: int

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
            raise DataError(f"{self.told}: image cannot be read ({error.strerror}); restore or remove it") from None
        if len(content) != self.size:
            raise DataError(f"{self.told}: cut off, {self.size - len(content)} bytes are missing; copy it again")
        return content


def files_of_folder(source: Path) -> list[ImageFile]:
    """Return all files below a folder, images or not, in one order.

    Raises:
        DataError: a folder cannot be read.
    """
    found = ((name, entry.path, entry.stat()) for name, entry in files_below(source))
    return [ImageFile(name, path, 0, status.st_size, status.st_mtime_ns) for name, path, status in found]


def files_of_tar(source: Path, usual: str, nested: bool = False) -> list[ImageFile]:
    """Return all files in a tar, images or not, without the folder that it was made of.

    Args:
        source: the tar, uncompressed.
        usual: what to do about one that cannot be read, where its fault does not say.
        nested: whether a tar in it is a class of its own, as ImageNet comes; otherwise it is a file like others.

    Raises:
        DataError: it is damaged, or one in it.
    """
    try:
        status = source.stat()
        found = {file.name: file for file in _in_tar(source, 0, status.st_size, "", nested)}
    except tarfile.TarError as error:
        raise DataError(f"{source}: not a readable tar ({error}); {remedy_of(error, usual)}") from None
    modified = status.st_mtime_ns
    return [attrs.evolve(file, name=name, modified=modified) for name, file in strip_roots(found).items()]


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


def _files(source: Path) -> list[ImageFile]:
    if source.is_dir():
        found = files_of_folder(source)
        tars = sorted(Path(file.file) for file in found if suffix_of(file.name) == "tar")
        if not tars or any(suffix_of(file.name) in image_suffixes() for file in found):
            return found
    else:
        try:
            tars = [Path(tar) for tar in expand_shards(str(source))]
        except ValueError as error:
            raise DataError(f"{source}: {error}") from None
    for tar in tars:
        if not tar.is_file():
            raise DataError(f"{tar}: no such file or folder")
    return [file for tar in tars for file in files_of_tar(tar, UNPACK)]


def _in_tar(path: Path, start: int, size: int, owner: str, nested: bool) -> Iterator[ImageFile]:
    """Yield the files of a tar that lies in a file; of a tar in a tar, below a class folder."""
    with path.open("rb") as file:
        for member in files_in_tar(file, start, size, f"{path}: {owner[:-1]}.tar" if owner else str(path)):
            if nested and member.name.endswith(".tar"):
                try:
                    yield from _in_tar(path, member.offset_data, member.size, f"{Path(member.name).stem}/", False)
                except tarfile.TarError as error:
                    raise DataError(
                        f"{path}: {member.name} in it is not a readable tar ({error}); {remedy_of(error, COPY)}"
                    ) from None
            else:
                # As `tar` unpacks them: below the folder, whatever is said.
                yield ImageFile(f"{owner}{member.name.lstrip('/')}", str(path), member.offset_data, member.size, 0)


def _natural(name: str) -> list[str | int]:
    """Sort key by which 2.png comes before 10.png; texts and numbers alternate, so that like meets like."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]
