"""Samples before they are put into one file: a file per batch, a part, written atomically by any number of ranks.

A part is a ``.safetensors`` with images, tokens and the samples' numbers. A run that was killed keeps its parts and
makes only what is missing, even with another batch size or on another number of ranks.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rearkit.sampling.sampler import Samples
from rearkit.system.checksums import forget, note_checksum
from rearkit.system.files import replacing
from rearkit.system.npz_files import write_npy_member

# Parts that are mapped at once, so that memory does not grow with their number.
OPEN_PARTS = 32


def write_part(folder: Path, numbers: Sequence[int], samples: Samples) -> None:
    """Write a batch of samples; ``numbers`` are their numbers in the whole set."""
    tensors = {
        "images": np.ascontiguousarray(samples.images),
        "tokens": samples.tokens.astype(np.uint16),
        "numbers": np.array(numbers, np.int64),
    }
    # The first number makes the name unique. The count is in the name so that `count_samples` need not open the file.
    path = folder / f"{numbers[0]:09d}-{len(numbers)}.safetensors"
    with replacing(path) as temporary:
        save_file(tensors, temporary)
    note_checksum(path)


def count_samples(folder: Path) -> int:
    """Return how many samples the parts in a folder hold, according to their names."""
    return sum(int(path.stem.split("-")[1]) for path in folder.glob("*.safetensors"))


class Parts:
    """The parts in a folder. Parts that cannot be read are removed, so that their samples are made again."""

    def __init__(self, folder: Path) -> None:
        self.place: dict[int, tuple[Path, int]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, "numpy") as part:
                    numbers = part.get_tensor("numbers").tolist()
            except (SafetensorError, OSError):
                forget(path)
                continue
            self.place |= {number: (path, row) for row, number in enumerate(numbers)}
        self._open = functools.lru_cache(OPEN_PARTS)(lambda path: safe_open(path, "numpy"))

    def read(self, name: str, number: int) -> np.ndarray:
        """Read ``images`` or ``tokens`` of one sample, with a first axis of size 1."""
        path, row = self.place[number]
        found: np.ndarray = self._open(path).get_slice(name)[row : row + 1]
        return found

    def close(self) -> None:
        """Close the files."""
        self._open.cache_clear()


def write_npz(path: Path, parts: Parts, classes: Sequence[int], manifest: Path) -> None:
    """Write the samples to an ``.npz`` in the ADM layout, in order, without having all of them in memory.

    The same samples give the same bytes. Members: ``arr_0`` (n, R, R, 3) uint8, ``arr_1`` (n,) int64 classes,
    ``tokens`` (n, N) uint16, and the manifest.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        count = len(classes)
        for member, name in (("arr_0", "images"), ("tokens", "tokens")):
            write_npy_member(archive, member, count, (parts.read(name, number) for number in range(count)))
        write_npy_member(archive, "arr_1", count, iter([np.array(classes, np.int64)]))
        # A bare `ZipInfo` is dated 1980; the manifest's own time would change the bytes.
        archive.writestr(zipfile.ZipInfo(manifest.name), manifest.read_bytes())
