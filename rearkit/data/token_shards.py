"""Token shards: tar files (readable with WebDataset) that hold, uncompressed, arrays of many images' tokens at once.

Members of a shard: ``000000.tokens.npy`` (n, N) uint16, ``000000.classes.npy`` (n,) int32, ``000000.json`` (what was
tokenized, with which tokenizer, what was skipped). A random sample is one read of 2·N bytes where it lies in the tar.
"""

from __future__ import annotations

import json
import math
import os
import tarfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from rearkit.data.bad_samples import BadSamples
from rearkit.data.token_writing import CLASSES, TOKENS
from rearkit.data.token_writing import MAX_CODES as MAX_CODES
from rearkit.data.token_writing import write_token_shard as write_token_shard
from rearkit.data.training_data import Samples
from rearkit.errors import DataError
from rearkit.system.console import progress_bar, say
from rearkit.system.files import read_npy_header, sha256


@attrs.define(eq=False)
class FileRows:
    """An array in a file, of which rows are read by their numbers.

    It is read, not memory-mapped: a process that reads much stays small, and a file that is cut off under it is an
    error to tell of instead of a crash.

    Attributes:
        path: the file.
        start: where the array's first byte is.
        dtype: of its values.
        shape: its first dimension counts the rows.
    """

    path: Path
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    _descriptor: int | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Read rows, in the order given.

        Raises:
            DataError: the file ends before them, or cannot be read.
        """
        width = math.prod(self.shape[1:]) * self.dtype.itemsize
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._descriptor)
            read = [os.pread(self._descriptor, width, self.start + row * width) for row in rows.tolist()]
        except OSError as error:
            raise DataError(f"{self.path}: token shard cannot be read: {error.strerror}") from None
        content = b"".join(read)
        if len(content) != len(rows) * width:
            raise DataError(f"{self.path}: token shard was cut off; remove it and run the tokens stage again")
        return np.frombuffer(content, self.dtype).reshape(len(rows), *self.shape[1:])


class TokenData:
    """All tokens of a split, indexed 0 to len - 1, from shards or from arrays in memory.

    Args:
        tokens: list of (n, N) uint16 arrays, in memory or in files.
        classes: list of (n,) arrays.
        names: of the shards.
    """

    window = workers = 0  # a sample is one small read, wherever it lies

    def __init__(
        self, tokens: Sequence[np.ndarray | FileRows], classes: Sequence[np.ndarray], names: Sequence[str] = ()
    ) -> None:
        if not tokens or not sum(map(len, tokens)):
            raise DataError("no tokens: the token shards are empty")
        self._tokens: list[np.ndarray | FileRows] = list(tokens)
        self._classes = list(classes)
        self.names = list(names) or ["memory"] * len(self._tokens)
        self.starts = np.cumsum([0, *map(len, self._tokens)])
        self.num_tokens = self._tokens[0].shape[1]

    @classmethod
    def from_shards(cls, paths: Sequence[str | Path]) -> TokenData:
        """Open shards; their tokens stay where they are, and are read as they are taken.

        Raises:
            DataError: a shard is missing or damaged; the message names it.
        """
        members = [_open_members(Path(path)) for path in paths]
        widths = [tokens.shape[1] for tokens, _ in members]
        for path, width in zip(paths, widths, strict=True):
            if width != widths[0]:
                raise DataError(f"{path}: token shard has {width} tokens an image, but {paths[0]} has {widths[0]}")
        return cls([tokens for tokens, _ in members], [classes for _, classes in members], list(map(str, paths)))

    @classmethod
    def from_arrays(cls, tokens: np.ndarray | Tensor, classes: np.ndarray | Tensor) -> TokenData:
        """Take (n, N) tokens and (n,) classes that are in memory."""
        return cls([np.asarray(tokens).astype(TOKENS)], [np.asarray(classes).astype(CLASSES)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def num_classes(self) -> int:
        """One more than the highest class that occurs."""
        return 1 + max(int(classes.max(initial=-1)) for classes in self._classes)

    def read(self, indices: np.ndarray, places: np.ndarray, reading: Callable[[int], None]) -> Samples:
        """Read samples to train on; see `rearkit.data.training_data.TrainingData`."""
        return Samples(*self.take(indices, reading), indices)

    def to_tokens(self, samples: Samples, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return tokens (B, N) and classes (B,) on a device."""
        return samples.content.to(device), samples.classes_B.to(device)

    def take(
        self, indices: Sequence[int] | np.ndarray | Tensor, reading: Callable[[int], None] = lambda shard: None
    ) -> tuple[Tensor, Tensor]:
        """Gather samples in the order of their indices: tokens (B, N) and classes (B,), int64.

        Args:
            indices: which.
            reading: told the number of each shard before it is read.
        """
        wanted = np.asarray(indices)
        tokens = np.empty((len(wanted), self.num_tokens), np.int64)
        classes = np.empty(len(wanted), np.int64)
        shard_of = np.searchsorted(self.starts, wanted, side="right") - 1
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            rows = wanted[here] - self.starts[shard]
            reading(int(shard))
            tokens[here], classes[here] = self._tokens[shard][rows], self._classes[shard][rows]
        return torch.from_numpy(tokens), torch.from_numpy(classes)


def spread(size: int, most: int) -> np.ndarray:
    """Return at most ``most`` of the indices 0 to size - 1, evenly spread, since shards may be sorted by class."""
    return np.arange(size) if size <= most else np.linspace(0, size - 1, most).astype(np.int64)


def whole_shards(digests: Mapping[Path, str], max_bad_share: float, log: Path) -> list[Path]:
    """Leave out the shards whose content is not what was written; their samples count as skipped.

    The order of the others' samples is then another, so a resumed epoch may show some twice and others not.

    Args:
        digests: the SHA-256 that each shard had when it was written.
        max_bad_share: largest share of the samples that may be lost.
        log: file to which each loss is appended.

    Raises:
        DataError: more are lost.
    """
    counts: dict[Path, int | None] = {}
    damaged: list[Path] = []
    with progress_bar("train: checksums", len(digests)) as bar:
        for path, digest in digests.items():
            try:
                counts[path] = len(_open_members(path)[1])
                whole = sha256(path) == digest
            except (DataError, OSError):
                counts[path], whole = None, False
            if not whole:
                damaged.append(path)
            bar.advance(1)
    likely = max((count for count in counts.values() if count), default=1)
    bad = BadSamples(max_bad_share, sum(likely if count is None else count for count in counts.values()), log)
    for path in damaged:
        say(f"train: {path} is missing or not what was written (SHA-256); to make it again, remove it and run `tokens`")
        count = counts[path]
        bad.skip(str(path), "lost with a damaged token shard", likely if count is None else count)
    return [path for path in digests if path not in damaged]


def read_meta(path: Path) -> dict[str, Any]:
    """Return the JSON member of a shard."""
    with tarfile.open(path) as archive:
        member = archive.extractfile("000000.json")
        assert member is not None
        meta: dict[str, Any] = json.load(member)
        return meta


def _open_members(path: Path) -> tuple[FileRows, np.ndarray]:
    try:
        with tarfile.open(path, "r:") as archive:
            members = {member.name: member for member in archive}
        tokens = _find_array(path, members["000000.tokens.npy"], TOKENS, 2)
        classes = _find_array(path, members["000000.classes.npy"], CLASSES, 1)
        if len(tokens) != len(classes):
            raise ValueError(f"{len(tokens)} images but {len(classes)} classes")
    except FileNotFoundError:
        raise DataError(f"{path}: token shard is missing; run the tokens stage again") from None
    except OSError as error:
        raise DataError(f"{path}: token shard cannot be read: {error.strerror}") from None
    except Exception as error:  # numpy reads an array's header as Python, so that damage to it can raise much
        raise DataError(f"{path}: token shard is damaged ({error}); remove it and run the tokens stage again") from None
    return tokens, classes[np.arange(len(classes))]


def _find_array(path: Path, member: tarfile.TarInfo, dtype: np.dtype[Any], dimensions: int) -> FileRows:
    """Find the rows of a .npy that lies inside a tar."""
    with path.open("rb") as file:
        file.seek(member.offset_data)
        shape, by_columns, found = read_npy_header(file)
        start = file.tell()
    size = start - member.offset_data + math.prod(shape) * dtype.itemsize
    if (found, by_columns, len(shape), size) != (dtype, False, dimensions, member.size):
        raise ValueError(f"{member.name} holds no array of {dtype} with {dimensions} dimension(s)")
    return FileRows(path, start, dtype, shape)
