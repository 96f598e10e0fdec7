"""Sources of images for an evaluation: memory, an ``.npz`` of any size, a run's shards, a tokenizer's output.

All can be read several times, in order and batch by batch; only the first kind is ever in memory as a whole.
"""

from __future__ import annotations

import hashlib
import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import attrs
import numpy as np
import torch
from torch import Tensor

from rearkit.errors import DataError
from rearkit.system.files import read_npy_header, sha256

ARRAY = "arr_0"
LABELS = "arr_1"
# What reading a damaged archive raises: numpy, zipfile and zlib do not agree on one error.
DAMAGE = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)


class Images(Protocol):
    """A set of square RGB images."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield uint8 batches (B, 3, R, R) with B up to ``size``, starting at the first image on each call."""
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

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `Images`."""
        yield from self.images.split(size)

    def digest(self) -> str:
        """See `Images`."""
        # The shape is hashed too, since the same bytes could be images of another size.
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        # In parts, since a permuted tensor has to be copied before its bytes can be read.
        for part in self.images.split(256):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()


@attrs.frozen
class NpzImages:
    """The array ``arr_0`` of an ``.npz`` in the ADM layout, compressed or not, read as a stream.

    Attributes:
        path: of the archive.
        shape: (n, R, R, 3).
    """

    path: Path
    shape: tuple[int, int, int, int]

    @classmethod
    def open(cls, path: str | Path) -> NpzImages:
        """Open an archive, reading only the header of its images.

        Raises:
            DataError: the file is missing, or has no ``arr_0`` of uint8 images (n, R, R, 3).
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{ARRAY}.npy") as member:
                shape, fortran, dtype = read_npy_header(member)
        except DAMAGE as error:
            raise DataError(f"{path}: no .npz with images in {ARRAY} ({error})") from None
        if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2]:
            raise DataError(f"{path}: {ARRAY} has the shape {shape}, but images are (n, side, side, 3)")
        if dtype != np.uint8:
            raise DataError(
                f"{path}: {ARRAY} is of {dtype}, but pixels are uint8 from 0 to 255; convert values in 0 to 1 by "
                "(255 * x).round().astype('uint8')"
            )
        if fortran:
            raise DataError(f"{path}: {ARRAY} is in Fortran order; save numpy.ascontiguousarray(images)")
        return cls(path, shape)

    def __len__(self) -> int:
        return self.shape[0]

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `Images`.

        Raises:
            DataError: the archive is damaged or ends too early.
        """
        # np.load would read the whole array, 10 GB for 50,000 images of 256 × 256; zipfile reads it piece by piece.
        row = self.shape[1] * self.shape[2] * self.shape[3]
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{ARRAY}.npy") as member:
                read_npy_header(member)
                for start in range(0, len(self), size):
                    count = min(size, len(self) - start)
                    # A bytearray, since torch warns of arrays that cannot be written to.
                    content = bytearray(_exactly(member, count * row))
                    array = np.frombuffer(content, np.uint8).reshape(count, *self.shape[1:])
                    yield torch.from_numpy(array).permute(0, 3, 1, 2)
        except DAMAGE as error:
            raise DataError(f"{self.path}: damaged or truncated ({error})") from None

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
        return found.astype(np.int64) if found is not None and whole else None


@attrs.frozen(eq=False)
class StreamedImages:
    """Images that a function yields from the start on each call.

    Attributes:
        count: number of images.
        stream: called with a batch size, yields batches; see `Images`.
        name: a hash of what the images are made from.
    """

    count: int
    stream: Callable[[int], Iterator[Tensor]]
    name: str

    def __len__(self) -> int:
        return self.count

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `Images`."""
        return self.stream(size)

    def digest(self) -> str:
        """See `Images`."""
        return self.name


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
