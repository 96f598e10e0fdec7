"""Where each image of the shards lies, so that any one can be read alone, in any order, by any process.

Reading shards front to back ties the order of samples to the number of ranks and workers. With an index, the order is a
function of seed and step, as for tokens: every sample of an epoch is seen once whatever the layout, also where that
changes at a resume. What is held in memory are 20 bytes an image, mapped from a file.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np
from torch import Tensor

from rearkit.data.access import Access
from rearkit.data.bad_samples import UNFETCHED, BadSamples, Unusable
from rearkit.data.decoding import Decoding, decoded
from rearkit.data.fetching import FetchError, ShardCache
from rearkit.data.image_shards import find_samples
from rearkit.errors import DataError
from rearkit.system.checksums import forget, note_checksum
from rearkit.system.console import progress_bar
from rearkit.system.files import replacing

ROW = np.dtype([("offset", "<i8"), ("size", "<i8"), ("label", "<i4")])
OPEN_FILES = 64  # of one process; systems allow a thousand


@attrs.frozen(eq=False)
class ImageIndex:
    """The usable images of some shards.

    Attributes:
        shards: paths or URLs.
        starts: (shards + 1,) where each shard's rows start, and where the last end.
        rows: (images,) of `ROW`.
    """

    shards: list[str]
    starts: np.ndarray
    rows: np.ndarray

    @classmethod
    def open(cls, path: Path, counts: Mapping[str, int]) -> ImageIndex:
        """Map an index that `write_index` wrote; ``counts`` is what it returned.

        Raises:
            DataError: it is missing or damaged.
        """
        starts = np.cumsum([0, *counts.values()])
        try:
            rows = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: index of images cannot be read ({error}); run the tokens stage again") from None
        if rows.dtype != ROW or rows.shape != (starts[-1],):
            raise DataError(f"{path}: index of images is of other shards; run the tokens stage again")
        return cls(list(counts), starts, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def shard_of(self, index: int) -> int:
        """Return the number of the shard that an image is in."""
        return int(np.searchsorted(self.starts, index, side="right")) - 1


class ImageReader:
    """Reads single images.

    Args:
        index: where they are.
        cache: has remote shards at hand.
        decoding: how they become pixels.
    """

    def __init__(self, index: ImageIndex, cache: ShardCache, decoding: Decoding) -> None:
        self.index, self.cache, self.decoding = index, cache, decoding
        self._open: OrderedDict[int, int] = OrderedDict()  # shard → descriptor, the latest used last
        self._process = os.getpid()

    def decode(self, index: int) -> tuple[Tensor, int]:
        """Return an image, uint8 (3, R, R), and its class.

        Raises:
            Unusable: it cannot be read.
        """
        content, label = self.read(index)
        return decoded(content, self.decoding), label

    def read(self, index: int) -> tuple[bytes, int]:
        """Return the bytes of an image file and its class.

        Raises:
            Unusable: it cannot be read.
        """
        row = self.index.rows[index]
        try:
            descriptor = self._descriptor(self.index.shard_of(index))
            content = os.pread(descriptor, int(row["size"]), int(row["offset"]))
        except FetchError:
            raise Unusable(UNFETCHED) from None
        except OSError as error:
            raise Unusable(f"shard cannot be read: {error.strerror}") from None
        if len(content) != row["size"]:
            raise Unusable("shard was cut off since it was indexed")
        return content, int(row["label"])

    def _descriptor(self, shard: int) -> int:
        if self._process != os.getpid():  # forked: the descriptors are shared, the list of them is not
            self._open, self._process = OrderedDict(), os.getpid()
        if shard not in self._open:
            self._open[shard] = self.cache.open(self.index.shards[shard])
            if len(self._open) > OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return self._open[shard]


def write_index(
    path: Path, shards: Mapping[str, int | None], num_classes: int, bad: BadSamples, access: Access
) -> dict[str, int]:
    """Index the images of shards; what was indexed before a call was cut off is kept.

    Args:
        path: the ``.npy`` to write; the parts of it, one a shard, go beside it.
        shards: paths or URLs with how many samples each should have; None where nobody knows.
        num_classes: C; labels are checked against it.
        bad: takes what has to be skipped.
        access: how the shards are come by and read.

    Returns:
        how many images of each shard can be used.

    Raises:
        DataError: too much had to be skipped, a label is no class, or it cannot be told what the samples are.
    """
    parts = [path.with_name(f"{path.stem}-{number:06d}.part.npy") for number in range(len(shards))]
    with progress_bar("tokens: index of images", len(shards)) as bar:
        for part, (shard, expected) in zip(parts, shards.items(), strict=True):
            if part.is_file():
                found = len(np.load(part))
                bad.good += found
                bad.skip(shard, "skipped before the stage was cut off", max((expected or 0) - found, 0))
            else:
                rows = _index(shard, expected, num_classes, bad, attrs.evolve(access, in_place=True))
                with replacing(part) as temporary, temporary.open("wb") as file:
                    np.save(file, rows)
                note_checksum(part)
            bar.advance(1)
    counts = [len(np.load(part, mmap_mode="r")) for part in parts]
    if not sum(counts):
        raise DataError("[data.source]: no training images that can be used")
    # Written, not mapped: on a full disk a write raises, and a page of a map kills the process.
    with replacing(path) as temporary, temporary.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(ROW), "fortran_order": False, "shape": (sum(counts),)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.load(part).tobytes())
    for part in parts:
        forget(part)
    return dict(zip(shards, counts, strict=True))


def _index(shard: str, expected: int | None, num_classes: int, bad: BadSamples, access: Access) -> np.ndarray:
    rows: list[tuple[int, int, int]] = []
    for _, found in find_samples(shard, expected, num_classes, bad, access):
        rows.append((found.image.offset, found.image.size, found.label))
        bad.good += 1
    return np.array(rows, ROW)
