"""Images in class folders: which files are images, of which class, under which key; for folders and tars alike.

The folder just below the root names the class, however deep the files lie. Hidden files, what macOS adds, and empty
folders are ignored. Links to folders are followed, since parts of large sets are often picked out by them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeVar

import attrs

from rearkit.errors import DataError
from rearkit.system.console import say, say_once

T = TypeVar("T")
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
"""Pillow's readers that are used, whatever a file is called: none that starts another program (EPS: Ghostscript), and
none of the many old ones that nobody tries with files made to do harm."""
REMEDY = {
    "heic": "convert them to PNG or JPEG first, for example by: magick mogrify -format png *.heic",
    "heif": "convert them to PNG or JPEG first, for example by: magick mogrify -format png *.heif",
    "svg": "render them to PNG first: a drawing has no pixels",
}
SHOWN = 5  # suffixes named in a message
META = re.compile(r"__[^/]*__($|/)")  # WebDataset's own members, which its readers pass over


@attrs.frozen
class ImagePath:
    """An image file below a root.

    Attributes:
        path: below the root, with slashes.
        owner: name of its class; empty where classes are not told by folders.
        key: unique name of its sample, ``class/name`` without a dot, since a dot ends a key in a WebDataset shard.
    """

    path: str
    owner: str
    key: str


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Return the suffixes, without dots, of `FORMATS`."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(s[1:] for s, form in known.items() if form in Image.OPEN and form in FORMATS)


def suffix_of(path: str) -> str:
    """Return a file's suffix in lower case, without the dot."""
    return PurePosixPath(path).suffix.lower().removeprefix(".")


def is_hidden(path: str) -> bool:
    """True for hidden files and folders, and for those in which macOS keeps what its archives have besides."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts)


def is_foreign(name: str) -> bool:
    """True for members of a shard that are no part of a sample: hidden, or left by macOS or WebDataset."""
    return is_hidden(name) or META.match(name) is not None


def files_below(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the files below a folder that are not hidden, in one order: path below the root with slashes, and entry.

    What is no file is left out, and said with a count: an image that is lost should not go unnoticed.

    Raises:
        DataError: a folder cannot be read.
    """
    others: list[str] = []
    yield from _walk(str(root), "", frozenset(), others)
    if others:
        say_once(
            f"data: {root}: ignored {len(others)} links that lead nowhere, pipes or devices, the first {others[0]}; "
            "fetch the files of links, or remove them"
        )


def _walk(
    folder: str, below: str, above: frozenset[tuple[int, int]], others: list[str]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        status = Path(folder).stat()
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: folder cannot be read ({error.strerror}); see its permissions") from None
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder that it lies in
        return
    for entry in entries:
        path = f"{below}{entry.name}"
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link that leads to itself
            is_folder = is_file = False
        if is_folder:
            yield from _walk(entry.path, f"{path}/", above | {here}, others)
        elif is_file:
            yield path, entry
        # Never opened: a pipe would be waited for, for ever.
        else:
            others.append(path)


def read_bytes(path: Path) -> bytes:
    """Read a listed file.

    Raises:
        DataError: it has gone since it was listed, or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: image cannot be read ({error.strerror}); restore or remove it") from None


def listing_digest(root: Path) -> str:
    """Return a hash of the paths, sizes and times of the files below a folder, by which a change is noticed."""
    digest = hashlib.sha256()
    for path, entry in files_below(root):
        status = entry.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def sort_classes(names: Iterable[str]) -> list[str]:
    """Sort the names of classes: as numbers if all are, else by their letters."""
    found = sorted(set(names))
    return sorted(found, key=int) if all(name.isdecimal() for name in found) else found


def find_images(paths: Iterable[str], root: str, by_folder: bool = True) -> list[ImagePath]:
    """Find the images among the files below a root, sorted by key; say once what was ignored.

    Args:
        paths: of all files, relative to the root, with slashes.
        root: what to call the root in messages.
        by_folder: whether the first part of a path is its class; otherwise images may lie anywhere.

    Raises:
        DataError: a class has files, but no images.
    """
    visible = sorted(path for path in paths if not is_hidden(path))
    pictures = [path for path in visible if suffix_of(path) in image_suffixes()]
    images = [path for path in pictures if "/" in path or not by_folder]
    if by_folder:
        _check_owners(visible, images, root)
    if ignored := Counter(suffix_of(path) for path in set(visible) - set(images)):
        outside = len(pictures) - len(images)
        more = f"; {outside} of them are images that lie in no class folder" if outside else ""
        say(f"data: {root}: ignored {sum(ignored.values())} files that are no images: {_listed(ignored)}{more}")
    owners = [path.partition("/")[0] if by_folder else "" for path in images]
    return [ImagePath(*found) for found in zip(images, owners, _keys(images), strict=True)]


def _check_owners(visible: Sequence[str], images: Sequence[str], root: str) -> None:
    """Raise DataError if a class has files, but no images."""
    owners = {path.partition("/")[0] for path in images}
    for path in visible:
        owner, slash, _ = path.partition("/")
        if slash and owner not in owners:
            there = Counter(suffix_of(other) for other in visible if other.startswith(f"{owner}/"))
            raise DataError(f"{root}: class {owner!r} has no images, only {_listed(there)}; move the folder away")


def strip_roots(paths: Mapping[str, T]) -> dict[str, T]:
    """Leave out the folders that contain all others, such as the one of which a tar was made."""
    found = {str(PurePosixPath(path)): value for path, value in paths.items()}
    while True:
        visible = [path for path in found if not is_hidden(path)]
        tops = {path.partition("/")[0] for path in visible}
        # With files right inside of it, a single folder is the only class there is.
        if len(tops) != 1 or any(path.count("/") < 2 for path in visible):
            return found
        found = {path.partition("/")[2]: value for path, value in found.items() if path.partition("/")[0] in tops}


def _keys(paths: Sequence[str]) -> list[str]:
    """Name samples by their files; those of one name in several formats, or with dots, are kept apart."""
    plain = [_key(path.rpartition(".")[0]) for path in paths]
    often = Counter(plain)
    taken: set[str] = set()
    keys = []
    for path, key in zip(paths, plain, strict=True):
        wanted = key if often[key] == 1 else _key(path)
        number = 1
        unique = wanted
        while unique in taken or (unique != key and unique in often):
            number += 1
            unique = f"{wanted}_{number}"
        taken.add(unique)
        keys.append(unique)
    return keys


def _key(path: str) -> str:
    """Return a path without dots, and not in a folder such as ``__background__``: readers of shards pass over both."""
    key = path.replace(".", "_")
    return f"x{key}" if META.match(key) else key


def _listed(suffixes: Counter[str]) -> str:
    parts = [
        f"{count} × .{suffix}" if suffix else f"{count} without a suffix" for suffix, count in suffixes.most_common()
    ]
    more = f" and {len(parts) - SHOWN} kinds more" if len(parts) > SHOWN else ""
    hints = [f" ({REMEDY[suffix]})" for suffix in REMEDY if suffix in suffixes]
    return ", ".join(parts[:SHOWN]) + more + "".join(hints[:1])
