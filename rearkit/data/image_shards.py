"""Image shards: WebDataset `.tar` files of images (.png, .jpg, …) and classes (.cls), written whole, read with care.

A sample that cannot be used is counted and logged by shard, key and reason, and stops the run past a limit.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import attrs
import numpy as np
import torch
import webdataset
from torch import Tensor

from rearkit.contracts import ImageSample
from rearkit.data.access import Access
from rearkit.data.bad_samples import LOST, PATIENCE, UNFETCHED, BadSamples, Unusable
from rearkit.data.class_folders import read_bytes
from rearkit.data.decoding import Decoding, decoded
from rearkit.data.fetching import FetchError, is_remote, local_copy
from rearkit.data.image_bytes import png_bytes, suffix_of_bytes
from rearkit.data.labels import checked_class, read_class
from rearkit.data.sample_keys import with_checked_keys
from rearkit.data.shard_members import Contents, Fields, Member, Sample, is_packed, opened, read_contents
from rearkit.data.streams import Ahead, ReadImage, shuffled
from rearkit.errors import DataError
from rearkit.system.checksums import note_checksum
from rearkit.system.console import say
from rearkit.system.files import replacing

DEFAULT_ACCESS = Access()


def write_shards(
    samples: Iterable[ImageSample], folder: Path, split: str, shard_size: int
) -> Iterator[tuple[str, int]]:
    """Write images into shards, each whole or not at all; shards that are there already are kept.

    Yields:
        path and number of samples of each shard.

    Raises:
        DataError: a key comes twice, or cannot be the name of a shard's member.
    """
    chunk: list[ImageSample] = []
    index = 0

    def flush() -> tuple[str, int]:
        path = folder / f"{split}-{index:06d}.tar"
        if not path.is_file():
            with replacing(path) as temporary, webdataset.TarWriter(str(temporary), mtime=0) as writer:
                for sample in chunk:
                    writer.write({"__key__": sample.key, **_encoded(sample), "cls": sample.label})
            note_checksum(path)
        return str(path), len(chunk)

    for sample in with_checked_keys(samples, split):
        chunk.append(sample)
        if len(chunk) == shard_size:
            yield flush()
            index, chunk = index + 1, []
    if chunk:
        yield flush()


@attrs.frozen
class ShardHeaders:
    """What the headers of a shard tell without reading its images.

    Attributes:
        samples: how many it has; None for a shard that is not a local file.
        whole: whether the shard is neither damaged nor truncated.
        digest: of the names, sizes and times of its members, by which other content is noticed.
    """

    samples: int | None
    whole: bool
    digest: str


def read_headers(shard: str, fields: Fields = DEFAULT_ACCESS.fields, path: Path | None = None) -> ShardHeaders:
    """Read the headers of a shard; of one that is not a local file, nothing is known.

    Args:
        shard: path or URL.
        fields: which members of a sample are its image and its label.
        path: of a copy of it, if there is one.

    Raises:
        DataError: it cannot be told what its samples are.
    """
    path = path or Path(shard)
    if not path.is_file():
        return ShardHeaders(None, True, "")
    with _contents(shard, path, fields) as (_, contents):
        return ShardHeaders(len(contents.samples), contents.whole, contents.digest)


def read_images(
    shards: Mapping[str, int | None],
    decoding: Decoding | int,
    num_classes: int,
    bad: BadSamples,
    shuffle: torch.Generator | None = None,
    access: Access = DEFAULT_ACCESS,
) -> Iterator[ReadImage]:
    """Read images once through, resized and cropped to a square.

    Args:
        shards: paths or URLs in the order to read, and how many samples each should yield; fewer are counted as
            skipped. None where the number is unknown.
        decoding: how images become pixels; or R alone.
        num_classes: C; labels are checked against it.
        bad: takes what has to be skipped.
        shuffle: shuffles the shards and, within a window, the samples.
        access: how the shards are come by and read.

    Raises:
        DataError: too much had to be skipped, a label is no class, or it cannot be told what the samples are.
    """
    how = Decoding(decoding) if isinstance(decoding, int) else decoding
    order = list(shards)
    if shuffle is not None:
        order = [order[i] for i in torch.randperm(len(order), generator=shuffle).tolist()]
    with Ahead[FoundSample](how, access.threads) as ahead:
        images = (
            image for shard in order for image in _read_shard(shard, shards[shard], num_classes, bad, access, ahead)
        )
        yield from images if shuffle is None else shuffled(images, shuffle)


@attrs.frozen
class FoundSample:
    """A sample that can be used, if its image can be decoded."""

    key: str
    image: Member
    label: int


def find_samples(
    shard: str,
    expected: int | None,
    num_classes: int,
    bad: BadSamples,
    access: Access,
    settle: Callable[[], None] = lambda: None,
) -> Iterator[tuple[IO[bytes], FoundSample]]:
    """Find the samples of a shard, wherever it is, with the tar that holds them; read their labels, not their images.

    ``settle`` is called after the last sample, and counts those whose images could not be decoded.

    Raises:
        DataError: too much had to be skipped, a label is no class, or it cannot be told what the samples are.
    """
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(local_copy(shard, access.retry))
        except FetchError as error:
            say(f"data: {shard} is passed over: {error}")
            # Where nobody knows how many samples it has, it counts as so many that a loss of shards is noticed.
            bad.skip(shard, UNFETCHED, expected or PATIENCE)
            return
        if access.in_place and is_packed(path):
            raise DataError(f"{shard}: compressed; images are read out of the middle of a shard, so unpack it first")
        file, contents = stack.enter_context(_contents(shard, path, access.fields))
        if access.counts is not None and is_remote(shard) and contents.whole:
            access.counts[shard] = len(contents.samples)
        before = bad.count
        wanted = None if access.only is None else access.only[shard]
        for place, sample in enumerate(contents.samples):
            if wanted is not None and place not in wanted:
                continue
            try:
                found = _found(file, sample, access.fields, num_classes, f"{shard} {sample.key}")
            except Unusable as error:
                bad.skip(f"{shard} {sample.key}", str(error))
                continue
            yield file, found
        settle()
        # What the damage cut in two was skipped above; the damage itself counts where nothing else tells of it.
        damaged = not contents.whole or not contents.samples
        silent = damaged and bad.count == before and shard not in access.quiet
        lost = range(len(contents.samples), expected or 0)
        missing = len(lost) if wanted is None else sum(place in lost for place in wanted)
        bad.skip(shard, LOST, max(missing, 1 if silent else 0))


def _found(file: IO[bytes], sample: Sample, fields: Fields, num_classes: int, where: str) -> FoundSample:
    if sample.image is None:
        raise Unusable("no image in the sample")
    label = 0
    if sample.label is not None:
        label = read_class(_bytes(file, sample.label), sample.label.name, fields, num_classes, where)
    elif not fields.unlabelled:
        raise Unusable("no label in the sample")
    return FoundSample(sample.key, sample.image, label)


def _bytes(file: IO[bytes], member: Member) -> bytes:
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) != member.size:
        raise Unusable(LOST)
    return content


def _bytes_or_why(file: IO[bytes], member: Member) -> bytes | Unusable:
    try:
        return _bytes(file, member)
    except Unusable as error:
        return error


@contextlib.contextmanager
def _contents(shard: str, path: Path, fields: Fields) -> Iterator[tuple[IO[bytes], Contents]]:
    """The tar of a shard and what it holds; nothing, where it cannot be read."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(opened(path))
        except OSError:
            yield io.BytesIO(), Contents((), False, "")
            return
        yield file, read_contents(shard, file, fields)


def _read_shard(
    shard: str, expected: int | None, num_classes: int, bad: BadSamples, access: Access, ahead: Ahead[FoundSample]
) -> Iterator[ReadImage]:
    def settle() -> None:
        for found, error in ahead.failed():
            bad.skip(f"{shard} {found.key}", str(error))

    def usable(results: Iterator[tuple[FoundSample, Tensor | Unusable]]) -> Iterator[ReadImage]:
        for found, image in results:
            if isinstance(image, Unusable):
                bad.skip(f"{shard} {found.key}", str(image))
                continue
            bad.good += 1
            yield ReadImage(image, found.label, found.key)

    for file, found in find_samples(shard, expected, num_classes, bad, access, settle):
        # Read here, in order: threads would share the place in the file.
        yield from usable(ahead.add(_bytes_or_why(file, found.image), found))
    yield from usable(ahead.rest())


def read_dataset(
    samples: Iterable[ImageSample], how: Decoding, num_classes: int, bad: BadSamples
) -> Iterator[ReadImage]:
    """Read a dataset's images as they would come out of the shards that `write_shards` makes of them.

    Raises:
        DataError: too much had to be skipped, or a label is no class.
    """
    for sample in samples:
        label = checked_class(int(sample.label), num_classes, sample.key)
        try:
            (content,) = _encoded(sample).values()
            image = decoded(content, how)
        except Unusable as error:
            bad.skip(sample.key, str(error))
            continue
        bad.good += 1
        yield ReadImage(image, label, sample.key)


def _encoded(sample: ImageSample) -> dict[str, bytes]:
    """Bytes of an image file: a file's own, untouched, or the pixels as PNG."""
    if isinstance(sample.image, bytes):
        return {suffix_of_bytes(sample.image): sample.image}
    if isinstance(sample.image, Path):
        return {sample.image.suffix.lower().removeprefix("."): read_bytes(sample.image)}
    return {"png": png_bytes(np.asarray(sample.image))}
