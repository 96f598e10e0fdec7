"""Image shards: WebDataset `.tar` files of images (.png, .jpg, …) and classes (.cls), written whole, read with care.

A sample that cannot be used is counted and logged by shard, key and reason, and stops the run past a limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor

from rearkit.contracts import ImageSample
from rearkit.data.bad_samples import LOST, PATIENCE, UNFETCHED, BadSamples
from rearkit.data.fetching import FetchError, Retry, local_copy
from rearkit.errors import DataError
from rearkit.system.console import say
from rearkit.system.files import replacing

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp")
DEFAULT_RETRY = Retry()


@attrs.frozen(eq=False)
class ReadImage:
    """One image as read: uint8 (3, R, R), its class, its key."""

    image: Tensor
    label: int
    key: str


def write_shards(
    samples: Iterable[ImageSample], folder: Path, split: str, shard_size: int
) -> Iterator[tuple[str, int]]:
    """Write images into shards, each whole or not at all; shards that are there already are kept.

    Yields:
        path and number of samples of each shard.
    """
    chunk: list[ImageSample] = []
    index = 0

    def flush() -> tuple[str, int]:
        path = folder / f"{split}-{index:06d}.tar"
        if not path.is_file():
            with replacing(path) as temporary, webdataset.TarWriter(str(temporary), mtime=0) as writer:
                for sample in chunk:
                    writer.write({"__key__": sample.key, **_encoded(sample), "cls": sample.label})
        return str(path), len(chunk)

    for sample in samples:
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
        samples: labelled images; 0 for a shard that is not a local file.
        whole: whether the shard is neither damaged nor truncated.
        digest: of the names, sizes and times of its members, by which other content is noticed.
    """

    samples: int
    whole: bool
    digest: str


def read_headers(shard: str) -> ShardHeaders:
    """Read the headers of a shard; of one that is not a local file, nothing is known."""
    if not Path(shard).is_file():
        return ShardHeaders(0, True, "")
    names: set[str] = set()
    digest = hashlib.sha256()
    end = 0
    whole = True
    try:
        with tarfile.open(shard) as archive:
            for member in archive:
                names.add(member.name)
                digest.update(f"{member.name} {member.size} {member.mtime}\n".encode("utf-8", "surrogateescape"))
                end = member.offset_data + member.size
        whole = Path(shard).stat().st_size >= end > 0
    except (tarfile.ReadError, OSError):
        whole = False
    return ShardHeaders(sum(name.endswith(".cls") for name in names), whole, digest.hexdigest())


def read_images(
    shards: Mapping[str, int],
    image_size: int,
    num_classes: int,
    bad: BadSamples,
    shuffle: torch.Generator | None = None,
    retry: Retry = DEFAULT_RETRY,
) -> Iterator[ReadImage]:
    """Read images once through, resized and cropped to a square.

    Args:
        shards: paths or URLs in the order to read, and how many samples each should yield; fewer are counted as
            skipped. 0 where the number is unknown.
        image_size: R.
        num_classes: C; labels are checked against it.
        bad: takes what has to be skipped.
        shuffle: shuffles the shards and, within a window, the samples.
        retry: how often to try to fetch a shard that is remote.
    """
    order = list(shards)
    if shuffle is not None:
        order = [order[i] for i in torch.randperm(len(order), generator=shuffle).tolist()]
    images = (
        image for shard in order for image in _read_shard(shard, image_size, num_classes, bad, shards[shard], retry)
    )
    yield from images if shuffle is None else _shuffled(images, shuffle)


def open_image(image: np.ndarray | Path) -> Image.Image:
    """Make a picture of pixels, or of an image file."""
    return Image.open(image) if isinstance(image, Path) else Image.fromarray(np.asarray(image))


def center_crop(image: Image.Image, size: int) -> Tensor:
    """Resize the shorter side to ``size`` and crop the middle; uint8 (3, size, size)."""
    from torchvision.transforms import functional as transforms  # here, since it takes seconds to import

    if image.size != (size, size):
        image = transforms.resize(image, size, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True)
        image = transforms.center_crop(image, [size, size])
    return transforms.pil_to_tensor(image.convert("RGB"))


def _read_shard(
    shard: str, image_size: int, num_classes: int, bad: BadSamples, expected: int, retry: Retry
) -> Iterator[ReadImage]:
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(local_copy(shard, retry))
        except FetchError as error:
            say(f"data: {shard} is passed over: {error}")
            # Where nobody knows how many samples it has, it counts as so many that a loss of shards is noticed.
            bad.skip(shard, UNFETCHED, expected or PATIENCE)
            return
        yield from _read_file(shard, path, image_size, num_classes, bad, expected)


def _read_file(
    shard: str, path: Path, image_size: int, num_classes: int, bad: BadSamples, expected: int
) -> Iterator[ReadImage]:
    errors: list[Exception] = []

    def note(error: Exception) -> bool:
        errors.append(error)
        return len(errors) < PATIENCE  # a stream that only fails is given up

    shards = webdataset.SimpleShardList([str(path)])
    pipeline = webdataset.DataPipeline(shards, webdataset.tarfile_to_samples(handler=note))
    seen, before = 0, bad.count
    for sample in pipeline:
        seen += 1
        where = f"{shard} {sample['__key__']}"
        try:
            read = _decoded(sample, image_size, num_classes)
        except DataError as error:
            bad.skip(where, str(error))
            continue
        bad.good += 1
        yield read
    # A sample that the damage cut in two was skipped above; the damage itself counts where nothing else tells of it.
    silent = (errors or not seen) and bad.count == before
    lost = max(expected - seen, 1 if silent else 0)
    bad.skip(shard, LOST, lost)


def _decoded(sample: Mapping[str, Any], image_size: int, num_classes: int) -> ReadImage:
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in sample), None)
    if suffix is None:
        raise DataError("no image in the sample")
    if "cls" not in sample:
        raise DataError("no label in the sample")
    label = checked_label(sample["cls"], num_classes)
    return ReadImage(decoded(sample[suffix], image_size), label, sample["__key__"])


def checked_label(text: bytes, num_classes: int) -> int:
    """Return the class that a ``.cls`` member holds.

    Raises:
        DataError: it holds none; the message is a reason, for `BadSamples`.
    """
    try:
        label = int(text)
    except ValueError:
        raise DataError("label is not a whole number") from None
    if not 0 <= label < num_classes:
        raise DataError(f"label out of range 0 to {num_classes - 1}")
    return label


def decoded(content: bytes, size: int) -> Tensor:
    """Decode an image file, resize and crop it to a square; uint8 (3, size, size).

    Raises:
        DataError: that cannot be done; the message is a reason, for `BadSamples`.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return center_crop(image.convert("RGB"), size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise DataError("image cannot be decoded") from None


def _encoded(sample: ImageSample) -> dict[str, bytes]:
    """Bytes of an image file: a file's own, untouched, or the pixels as PNG."""
    if isinstance(sample.image, Path):
        return {sample.image.suffix.lower().removeprefix("."): sample.image.read_bytes()}
    buffer = io.BytesIO()
    open_image(sample.image).save(buffer, format="png")
    return {"png": buffer.getvalue()}


def _shuffled(images: Iterator[ReadImage], generator: torch.Generator, window: int = 2000) -> Iterator[ReadImage]:
    held: list[ReadImage] = []
    for image in images:
        if len(held) < window:
            held.append(image)
            continue
        index = int(torch.randint(window, (), generator=generator))
        held[index], image = image, held[index]
        yield image
    for index in torch.randperm(len(held), generator=generator).tolist():
        yield held[index]
