"""Samples as a folder of PNGs, with the manifest beside them: ``000012-class0002.png``, names that sort in order.

Each file is written whole or not at all, so that a set that was cut off goes on; a folder holds one set only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import attrs
import numpy as np

from rearkit.data.image_bytes import save_png
from rearkit.errors import RearkitError
from rearkit.sampling.manifest import MEMBER, Manifest, read_manifest
from rearkit.system.files import remove_leftovers, storage_errors, write_json
from rearkit.system.locks import claimed

LOCK = ".lock"
THREADS = 4  # each waits for the disk most of the time


@attrs.frozen
class PngFolder:
    """A folder that one set of samples is written to.

    Attributes:
        path: the folder.
        classes: the class of each sample, in order.
    """

    path: Path
    classes: Sequence[int]

    def file(self, number: int) -> Path:
        """Return the file of a sample."""
        digits = max(6, len(str(len(self.classes) - 1)))
        class_digits = max(4, len(str(max(self.classes))))
        return self.path / f"{number:0{digits}d}-class{self.classes[number]:0{class_digits}d}.png"

    def missing(self) -> list[int]:
        """Return the numbers of the samples that are not there yet."""
        there = {path.name for path in self.path.iterdir()}
        return [number for number in range(len(self.classes)) if self.file(number).name not in there]

    def write(self, numbers: Sequence[int], images: np.ndarray) -> None:
        """Write samples (n, H, W, 3) uint8."""
        with ThreadPoolExecutor(THREADS, "png") as pool:
            list(pool.map(save_png, map(self.file, numbers), images))


def first_in(path: Path) -> str | None:
    """Return the name of something that a folder holds, hidden files aside; None if it is new or empty.

    Raises:
        RearkitError: it is no folder.
    """
    if path.exists() and not path.is_dir():
        raise RearkitError(f"{path}: not a folder; choose another with --to-folder")
    return next((one.name for one in path.glob("*") if not one.name.startswith(".")), None)


def check_target(path: Path) -> None:
    """Check, before hours go into sampling, that a folder is new, empty or one of samples.

    Raises:
        RearkitError: it is not.
    """
    foreign = first_in(path)
    if foreign is not None and read_manifest(path) is None:
        raise RearkitError(
            f"{path}: not empty and no folder of samples (it holds {foreign}); choose another with --to-folder"
        )


@contextmanager
def png_folder(path: Path, manifest: Manifest, classes: Sequence[int]) -> Iterator[PngFolder]:
    """Claim a folder for one set of samples while the block runs; if it was cut off, the same set goes on.

    Raises:
        RearkitError: the folder holds something else, or another process writes into it.
    """
    check_target(path)
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with claimed(path / LOCK, str(path)):
        before = read_manifest(path)
        # Through JSON, as the one in the folder went.
        if before not in (None, json.loads(json.dumps(manifest))):
            raise RearkitError(
                f"{path}: holds another set of samples (other weights, settings or versions); choose another folder "
                "with --to-folder, or remove this one"
            )
        remove_leftovers(path)
        # First, so that a set that is cut off is known by it.
        write_json(path / MEMBER, manifest)
        yield PngFolder(path, classes)
