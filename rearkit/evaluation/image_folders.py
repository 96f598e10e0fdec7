"""Images of a folder or a tar, read as a stream: samples as they are, or photographs made squares for a reference."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import numpy as np
import torch
from torch import Tensor

from rearkit.data.bad_samples import Unusable
from rearkit.data.class_folders import suffix_of
from rearkit.data.decoding import Decoding, decoded, opened
from rearkit.data.image_files import ImageFile, list_image_files
from rearkit.data.shard_members import is_packed
from rearkit.data.tar_headers import is_tar
from rearkit.errors import DataError
from rearkit.evaluation.image_streams import NpzImages
from rearkit.evaluation.shares import WHOLE, Share
from rearkit.system.console import say_once

LOSSY = ("jpg", "jpeg", "jfif", "jpe")
THREADS = 4  # that decode; Pillow lets others run meanwhile


@attrs.frozen(eq=False)
class FileImages:
    """Images of files; see `rearkit.evaluation.image_streams.Images`. One batch is in memory at a time.

    Attributes:
        files: the image files, in order.
        classes: (n,) int64, or None.
        decoding: how they become squares.
        resized: whether images of other sizes may be made squares; otherwise they are refused.
    """

    files: tuple[ImageFile, ...]
    classes: np.ndarray | None
    decoding: Decoding
    resized: bool

    @classmethod
    def open(cls, source: Path, decoding: Decoding | None = None) -> FileImages:
        """Find the images, as `list_image_files` does; none but the first is opened.

        Args:
            source: a folder, a tar, or several tars.
            decoding: how images become squares; None where all have to be squares of one size already.

        Raises:
            DataError: there are none, or the first is no image.
        """
        files, classes = list_image_files(source)
        resized = decoding is not None
        if decoding is None:
            width, height = _size(files[0], files[0].read())
            if width != height:
                raise DataError(f"{files[0].told}: {width}×{height} pixels, but images are squares{REMEDY}")
            decoding = Decoding(width)
            if any(suffix_of(file.name) in LOSSY for file in files):
                say_once(f"{source}: read from JPEG, whose losses count in the scores; PNG has none")
        folders = {file.name.partition("/")[0] for file in files if "/" in file.name}
        in_turn = f", {len(folders)} classes in turn" if len(folders) > 1 and classes is not None else ""
        say_once(f"{source}: {len(files)} image files are read, the first of them {files[0].name}{in_turn}")
        return cls(tuple(files), classes, decoding, resized)

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, size: int, share: Share = WHOLE) -> Iterator[Tensor]:
        """See `rearkit.evaluation.image_streams.Images`.

        Raises:
            DataError: a file is no image, or of another size than the first; the message names it.
        """
        with ThreadPoolExecutor(THREADS, "decoding") as pool:
            for start in share.among(range(0, len(self), size)):
                part = torch.stack(list(pool.map(self._pixels, self.files[start : start + size])))
                # In memory as images of an `.npz` are, since convolutions round by that: the scores are the same.
                yield part.contiguous(memory_format=torch.channels_last)

    def digest(self) -> str:
        """See `rearkit.evaluation.image_streams.Images`."""
        digest = hashlib.sha256(f"{self.decoding} {self.resized}".encode())
        for file in self.files:
            # Each by itself, so that the bytes of two files can't be taken for those of two others.
            digest.update(hashlib.sha256(file.read()).digest())
        return digest.hexdigest()

    def labels(self) -> np.ndarray | None:
        """Return the classes (n,) int64, or None."""
        return self.classes

    def _pixels(self, file: ImageFile) -> Tensor:
        content = file.read()
        wanted = self.decoding.shape[::-1]
        if not self.resized and (size := _size(file, content)) != wanted:
            told = "{}×{} pixels, but the first image has {}×{}".format(*size, *wanted)
            raise DataError(f"{file.told}: {told}{REMEDY}")
        try:
            return decoded(content, self.decoding)
        except Unusable as error:
            raise DataError(f"{file.told}: {error}; make it again, or move it away") from None


REMEDY = "; resize them, or give --image-size where a reference is made of --images"


def open_samples(path: str | Path) -> NpzImages | FileImages:
    """Open a set of samples: an ``.npz``, or a folder or tar of image files.

    Raises:
        DataError: it is none of these.
    """
    path = Path(path)
    if path.is_dir() or (path.is_file() and (is_tar(path) or is_packed(path))):
        return FileImages.open(path)
    return NpzImages.open(path)


def _size(file: ImageFile, content: bytes) -> tuple[int, int]:
    """Return width and height, by the header alone."""
    try:
        with opened(content) as image:
            return image.size
    except Exception:
        raise DataError(f"{file.told}: image cannot be decoded; make it again, or move it away") from None
