"""The members of a shard grouped into samples: which is the image, which the label, and where their bytes lie.

Counting, reading and indexing all go by `read_contents`, so that what is counted is what is read.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import attrs
from webdataset.tariterators import base_plus_ext

from rearkit.data.class_folders import image_suffixes, is_foreign
from rearkit.data.tar_headers import remedy_of
from rearkit.data.whole_tars import UNSPARSE, files_in_tar
from rearkit.errors import DataError, StorageError
from rearkit.system.console import say_once
from rearkit.system.files import storage_errors

CLASS = "cls"
OTHER_LABELS = ("json", "txt")  # taken for the label where there is no `CLASS`
SHOWN = 6  # members that a message lists
LEFT, LEFT_SHARE = 1 << 30, 0.1  # of a disk: bytes, or if less a share, that unpacking leaves free
UNPACK: tuple[tuple[bytes, Any], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
REMEDY = (
    "a sample's members have one name up to the first dot and lie in one shard: pack them with `tar --sort=name`; "
    'members with other names are chosen in [data.source], such as image = "left.jpg" and label = "json:label"; '
    "unlabelled = true takes images without classes"
)


@attrs.frozen
class Fields:
    """Which members of a sample are its image and its label; None: those with the usual suffixes.

    Attributes:
        image: what follows the sample's key and a dot, such as ``left.jpg``.
        label: likewise; ``json:NAME`` is the value NAME of the member ``json``.
        unlabelled: whether samples are images alone; what labels there are is then left aside.
    """

    image: str | None = None
    label: str | None = None
    unlabelled: bool = False

    @property
    def label_member(self) -> str | None:
        """The label's member, without the name of a value in it."""
        return None if self.label is None else self.label.partition(":")[0].lower()

    @property
    def label_name(self) -> str:
        """Name of the label in a JSON member."""
        return (self.label or "").partition(":")[2] or "label"

    def images(self, members: Mapping[str, Member]) -> list[str]:
        """Which members may be the image: the one that is named, or those with a suffix of images."""
        if self.image is not None:
            return [name for name in members if name == self.image.lower()]
        return [name for name in members if name in image_suffixes()] or [
            name for name in members if name.rpartition(".")[2] in image_suffixes()
        ]

    def classes(self, members: Mapping[str, Member]) -> list[str]:
        """Which members are surely labels: the one that is named, or those that end in ``cls``."""
        if self.unlabelled:
            return []
        if self.label_member is not None:
            return [name for name in members if name == self.label_member]
        return [CLASS] if CLASS in members else [name for name in members if name.endswith(f".{CLASS}")]

    def labels(self, members: Mapping[str, Member]) -> list[str]:
        """Which members may be the label; of several kinds, those of the surest."""
        if (found := self.classes(members)) or self.label is not None or self.unlabelled:
            return found
        return [name for name in OTHER_LABELS if name in members][:1]

    def plain(self, members: Mapping[str, Member]) -> bool:
        """Whether an image or a label follows the key's first dot at once."""
        images = image_suffixes() if self.image is None else (self.image.lower(),)
        label = CLASS if self.label_member is None else self.label_member
        return any(name in members for name in (*images, label))

    def complete(self, members: Mapping[str, Member]) -> bool:
        """Whether an image and a label are among members; without labels, an image."""
        return bool(self.images(members)) and (self.unlabelled or bool(self.labels(members)))

    def split(self, name: str) -> tuple[str, str]:
        """Split what follows a key's first dot into more of a key that has dots, and a member's name."""
        for wanted in (self.image, self.label_member):
            if wanted is not None and name.lower().endswith(f".{wanted.lower()}"):
                return name[: -len(wanted) - 1], wanted.lower()
        more, _, last = name.rpartition(".")
        return more, last.lower()


@attrs.frozen
class Member:
    """One file in a shard: its name after the key, and where its bytes lie."""

    name: str
    offset: int
    size: int


@attrs.frozen
class Sample:
    """One sample; what it lacks is None."""

    key: str
    image: Member | None
    label: Member | None


@attrs.frozen
class Contents:
    """What a shard holds.

    Attributes:
        samples: in the order of their first members.
        whole: whether the shard is neither damaged nor truncated.
        digest: of the names, sizes and times of its members, by which other content is noticed.
    """

    samples: Sequence[Sample]
    whole: bool
    digest: str


def is_packed(path: Path) -> bool:
    """Whether a shard is compressed; not, where it cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return _packing(file.read(6)) is not None
    return False


def _packing(start: bytes) -> Any:
    return next((unpack for magic, unpack in UNPACK if start.startswith(magic)), None)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a shard as a plain tar; one that is compressed is unpacked to where it is damaged, if it is.

    Raises:
        OSError: it cannot be read.
        StorageError: unpacked it fills the disk; a few MB may have as many GB in them.
    """
    with path.open("rb") as file:
        unpack = _packing(file.read(6))
        if unpack is None:
            yield file
            return
    with unpack(path) as packed, tempfile.TemporaryFile() as plain:
        while part := _next_part(packed):
            _check_room(path, plain.tell() + len(part))
            with storage_errors(Path(tempfile.gettempdir())):
                plain.write(part)
        yield plain


def _next_part(packed: IO[bytes]) -> bytes:
    """Unpack a part more; none at the end, or where it is damaged."""
    with contextlib.suppress(OSError, EOFError, zlib.error, lzma.LZMAError):
        return packed.read(1 << 20)
    return b""


def _check_room(path: Path, size: int) -> None:
    folder = tempfile.gettempdir()
    disk = shutil.disk_usage(folder)
    if disk.free < min(LEFT, LEFT_SHARE * disk.total):
        raise StorageError(
            f"{path}: more than {size >> 20:,} MiB unpacked, and {folder} has {disk.free >> 20:,} MiB left; if it "
            "should be so large, unpack it where there is room, or name another folder by TMPDIR"
        )


def read_contents(shard: str, file: IO[bytes], fields: Fields) -> Contents:
    """Group a shard's members into samples, by its headers alone; of a damaged one, those before the damage.

    Raises:
        DataError: it cannot be told which members belong together, or which is meant; or one is sparse.
    """
    digest = hashlib.sha256()
    names: list[str] = []
    groups: dict[tuple[str, int], dict[str, Member]] = {}
    turns: dict[str, int] = {}
    whole = True

    def see(member: tarfile.TarInfo) -> None:
        digest.update(f"{member.name} {member.size} {member.mtime}\n".encode("utf-8", "surrogateescape"))

    try:
        for member in files_in_tar(file, 0, file.seek(0, 2), shard, see):
            key, name = base_plus_ext(member.name)
            if key is None or is_foreign(member.name):
                continue
            if len(names) < SHOWN:
                names.append(member.name)
            group = groups.setdefault((key, turns.get(key, 0)), {})
            if name.lower() in group:  # the same name again is another sample
                turns[key] = turns.get(key, 0) + 1
                group = groups.setdefault((key, turns[key]), {})
            group[name.lower()] = Member(name, member.offset_data, member.size)
    except OSError:
        whole = False
    except tarfile.TarError as error:
        whole = False
        if remedy := remedy_of(error, ""):
            if remedy == UNSPARSE:  # no damage that some samples are lost with, but how it was packed
                raise DataError(f"{shard}: {error}; {remedy}") from None
            say_once(f"data: {shard}: {error}; {remedy}")
    samples = [sample for (key, _), group in groups.items() for sample in _samples(shard, key, group, fields)]
    complete = any(s.image is not None and (fields.unlabelled or s.label is not None) for s in samples)
    if whole and names and not complete and len(samples) != 1:
        if fields.unlabelled:
            raise DataError(f"{shard}: no sample has an image; members are {', '.join(names)}, …")
        raise DataError(f"{shard}: no sample has an image and a label; members are {', '.join(names)}, …; {REMEDY}")
    return Contents(samples, whole, digest.hexdigest())


def _samples(shard: str, key: str, members: Mapping[str, Member], fields: Fields) -> Iterator[Sample]:
    """The samples of one WebDataset key, which ends at the first dot: one, or several whose own keys have dots."""
    if not fields.plain(members):
        parts: dict[str, dict[str, Member]] = {}
        for member in members.values():
            more, last = fields.split(member.name)
            parts.setdefault(more, {})[last] = member
        if any(fields.complete(part) for part in parts.values()):
            for more, part in parts.items():
                yield from _sample(shard, f"{key}.{more}" if more else key, part, fields)
            return
    yield from _sample(shard, key, members, fields)


def _sample(shard: str, key: str, members: Mapping[str, Member], fields: Fields) -> Iterator[Sample]:
    """One sample; none, where the members are something else."""
    images, labels = fields.images(members), fields.labels(members)
    if not images and not fields.classes(members):
        return
    for what, found in (("image", images), ("label", labels)):
        if len(found) > 1:
            raise DataError(
                f"{shard}: sample {key} has several {what}s ({', '.join(found)}); say which is meant, such as "
                f'[data.source] {what} = "{found[0]}"'
            )
    yield Sample(key, members[images[0]] if images else None, members[labels[0]] if labels else None)
