"""Sources of images for an evaluation: memory, an ``.npz`` of any size, a run's shards, a tokenizer's output.

All can be read several times, in order and batch by batch; only the first kind is ever in memory as a whole.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import attrs
import numpy as np
import torch
from torch import Tensor

from rearkit.errors import DataError
from rearkit.evaluation.shares import WHOLE, Share
from rearkit.system.console import say_once
from rearkit.system.files import sha256
from rearkit.system.npz_files import DAMAGE, check_npz, read_npy_header

ARRAY = "arr_0"
LABELS = "arr_1"
# Numbers from there on are no classes, but say of images.
MOST_CLASSES = 1 << 24


class Images(Protocol):
    """A set of square RGB images."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batches(self, size: int, share: Share = WHOLE) -> Iterator[Tensor]:
        """Yield uint8 batches (B, 3, R, R) with B up to ``size``, starting at the first image on each call.

        The batches of all shares, one after the other, are those of the whole.
        """
        ...

    def digest(self) -> str:
        """Return a hash that differs if any image differs."""
        ...


@attrs.frozen(eq=False)
class MemoryImages:
    """Images (n, 3, R, R) uint8 in memory."""

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, size: int, share: Share = WHOLE) -> Iterator[Tensor]:
        """See `Images`."""
        for start in share.among(range(0, len(self), size)):
            yield self.images[start : start + size]

    def digest(self) -> str:
        """See `Images`."""
        # The shape is hashed too, since the same bytes could be images of another size.
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        # In parts, since a permuted tensor has to be copied before its bytes can be read.
        for part in self.images.split(256):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()


SCALES = {"0 to 1": (0.0, 255.0), "-1 to 1": (1.0, 127.5), "0 to 255": (0.0, 1.0)}
"""Ranges of floating-point pixels, with what to add and then multiply to come to 0 to 255."""


@attrs.frozen
class NpzImages:
    """Images of an ``.npz``, in the ADM layout or one that is clearly another, compressed or not, read as a stream.

    Attributes:
        path: of the archive.
        shape: (n, R, R, 3).
        name: of the array.
        dtype: of its values.
        channels_first: True if the array is (n, 3, R, R).
        scale: the range of floating-point values, of `SCALES`; None for uint8.
    """

    path: Path
    shape: tuple[int, int, int, int]
    name: str = ARRAY
    dtype: np.dtype[Any] = attrs.field(factory=lambda: np.dtype(np.uint8))
    channels_first: bool = False
    scale: str | None = None

    @classmethod
    def open(cls, path: str | Path) -> NpzImages:
        """Open an archive, reading only the header of its images, and all values only where they are floats.

        Raises:
            DataError: the file is missing, or has no images in a layout that is clear.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
        try:
            check_npz(path)
            with zipfile.ZipFile(path) as archive:
                name, header = _image_array(archive)
        except DAMAGE as error:
            raise DataError(f"{path}: no .npz with images in {ARRAY} ({error})") from None
        shape, fortran, dtype = header
        first = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] != 3
        if shape[:1] == (0,):
            raise DataError(f"{path}: {name} has no images")
        if not first and not _is_channels_last(shape):
            raise DataError(f"{path}: {name} has the shape {shape}, but images are (n, side, side, 3)")
        if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
            raise DataError(
                f"{path}: {name} is of {dtype}, but pixels are uint8 from 0 to 255; convert values in 0 to 1 by "
                "(255 * x).round().astype('uint8')"
            )
        if fortran:
            raise DataError(f"{path}: {name} is in Fortran order; save numpy.ascontiguousarray(images)")
        side = shape[2]
        found = cls(path, (shape[0], side, side, 3), name, dtype, first)
        if dtype != np.uint8:
            found = attrs.evolve(found, scale=found._range())
        read = [f"from {name}"] * (name != ARRAY) + ["channels first"] * first
        read += [f"{dtype} from {found.scale}"] * (found.scale is not None)
        if read:
            say_once(f"{path}: images are read {', '.join(read)}")
        return found

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int, share: Share = WHOLE) -> Iterator[Tensor]:
        """See `Images`.

        Raises:
            DataError: the archive is damaged or ends too early.
        """
        for array in self._arrays(size, share):
            images = torch.from_numpy(array)
            if self.scale is not None:
                add, factor = SCALES[self.scale]
                images = ((images.double() + add) * factor).round().clamp(0, 255).to(torch.uint8)
            yield images if self.channels_first else images.permute(0, 3, 1, 2)

    def _arrays(self, size: int, share: Share = WHOLE) -> Iterator[np.ndarray]:
        """Yield the array as it is, in batches."""
        starts = share.among(range(0, len(self), size))
        # np.load would read the whole array, 10 GB for 50,000 images of 256 × 256; zipfile reads it piece by piece.
        shape = (3, *self.shape[1:3]) if self.channels_first else self.shape[1:]
        row = math.prod(shape) * self.dtype.itemsize
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.name}.npy") as member:
                read_npy_header(member)
                if starts:
                    member.seek(starts[0] * row, 1)
                for start in starts:
                    count = min(size, len(self) - start)
                    # A bytearray, since torch warns of arrays that cannot be written to.
                    content = bytearray(_exactly(member, count * row))
                    array = np.frombuffer(content, self.dtype).reshape(count, *shape)
                    # Of another machine's byte order, which torch does not take.
                    yield array if self.dtype.isnative else array.astype(self.dtype.newbyteorder("="))
        except DAMAGE as error:
            raise DataError(f"{self.path}: damaged or truncated ({error})") from None

    def _range(self) -> str:
        """Return which of `SCALES` floating-point values are in.

        Raises:
            DataError: none of them, clearly.
        """
        bounds = [(float(part.min()), float(part.max())) for part in self._arrays(256)]
        lowest, highest = (f(values) for f, values in zip((min, max), zip(*bounds, strict=True), strict=True))
        slack = 0.01
        if -slack <= lowest and highest <= 1 + slack:
            return "0 to 1"
        if -1 - slack <= lowest < -0.5 and 0.5 < highest <= 1 + slack:
            return "-1 to 1"
        if lowest >= 0 and 128 < highest <= 255:
            return "0 to 255"
        raise DataError(
            f"{self.path}: {self.name} is of {self.dtype}, but pixels are uint8 from 0 to 255; its values lie in "
            f"{lowest:.4g} to {highest:.4g}, which is no range of pixels (0 to 1, -1 to 1, 0 to 255)"
        )

    def digest(self) -> str:
        """Return the hash of the whole archive; see `Images`."""
        return sha256(self.path)

    def labels(self) -> np.ndarray | None:
        """Return the classes (n,) int64 in ``arr_1``; None if there are none, or none that fit the images.

        Raises:
            DataError: the archive is damaged.
        """
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                found = archive.get(LABELS)
        except DAMAGE as error:
            raise DataError(f"{self.path}: damaged or truncated ({error})") from None
        # An arr_1 that can't be the classes is ignored, since scores need none.
        whole = found is not None and found.shape == (len(self),) and np.issubdtype(found.dtype, np.integer)
        fits = found is not None and whole and found.max() < MOST_CLASSES
        return found.astype(np.int64) if found is not None and fits else None


@attrs.frozen(eq=False)
class StreamedImages:
    """Images that a function yields from the start on each call.

    Attributes:
        count: number of images.
        stream: called with a batch size and a share, yields batches; see `Images`.
        name: a hash of what the images are made from.
    """

    count: int
    stream: Callable[[int, Share], Iterator[Tensor]]
    name: str

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int, share: Share = WHOLE) -> Iterator[Tensor]:
        """See `Images`."""
        return self.stream(size, share)

    def digest(self) -> str:
        """See `Images`."""
        return self.name


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[3] == 3 and shape[1] == shape[2]


def _image_array(archive: zipfile.ZipFile) -> tuple[str, tuple[tuple[int, ...], bool, np.dtype[Any]]]:
    """Return the name and header of the array of images: ``arr_0``, or the only one that has the shape of images.

    Raises:
        KeyError: there is no such array, or several.
    """
    headers = {}
    for name in archive.namelist():
        if name.endswith(".npy"):
            with archive.open(name) as member:
                headers[name.removesuffix(".npy")] = read_npy_header(member)
    if ARRAY in headers:
        return ARRAY, headers[ARRAY]
    found = [
        name for name, (shape, *_) in headers.items() if len(shape) == 4 and (_is_channels_last(shape) or shape[1] == 3)
    ]
    if len(found) != 1:
        held = ", ".join(f"{name} {shape}" for name, (shape, *_) in headers.items())
        raise KeyError(f"it holds {held or 'nothing'}")
    return found[0], headers[found[0]]


def take(images: Images, indices: Sequence[int], batch: int = 64) -> Tensor:
    """Return the images with the given indices, in the given order, uint8 (k, 3, R, R)."""
    found: dict[int, Tensor] = {}
    wanted = set(indices)
    start = 0
    for part in images.batches(batch):
        for index in wanted.intersection(range(start, start + len(part))):
            # Cloned, or one image would keep its whole batch in memory.
            found[index] = part[index - start].clone()
        start += len(part)
        if len(found) == len(wanted):
            break
    return torch.stack([found[index] for index in indices])


def in_batches(images: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Stack single images into batches of ``size``; the last batch may be smaller."""
    while held := list(itertools.islice(images, size)):
        yield torch.stack(held)


def _exactly(member: IO[bytes], count: int) -> bytes:
    """Read exactly ``count`` bytes.

    Raises:
        EOFError: the file ends too early.
    """
    content = member.read(count)
    if len(content) != count:
        raise EOFError(f"{count - len(content)} bytes are missing")
    return content
