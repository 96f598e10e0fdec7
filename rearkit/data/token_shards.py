"""Token shards: uncompressed tar files (readable with WebDataset), each with the tokens of many images in one array.

Members of a shard: ``000000.tokens.npy`` (n, N) uint16, ``000000.classes.npy`` (n,) int32, ``000000.json`` (what was
tokenized, with which views, what was skipped). A random sample takes one read of 2·N bytes at its position in the tar.
"""

from __future__ import annotations

import json
import math
import os
import tarfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from rearkit.data.bad_samples import BadSamples
from rearkit.data.token_writing import CLASSES, TOKENS, as_whole
from rearkit.data.training_data import TrainingSamples
from rearkit.data.whole_tars import members_in_tar
from rearkit.errors import DataError
from rearkit.system.console import progress_bar, say
from rearkit.system.files import check_disk, sha256
from rearkit.system.npz_files import read_npy_header

# Bytes read at a time where all tokens are looked at.
BLOCK = 1 << 24


@attrs.define(eq=False)
class FileRows:
    """An array in a file, whose rows are read by their numbers.

    The file is read, not memory-mapped: a process that reads much stays small, and a file that is cut off while it is
    in use gives an error message instead of a crash.

    Attributes:
        path: the file.
        start: position of the array's first byte in the file.
        dtype: dtype of the values.
        shape: shape of the array; the first dimension is the number of rows.
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
            DataError: the file is too short, or cannot be read.
        """
        width = math.prod(self.shape[1:]) * self.dtype.itemsize
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
                weakref.finalize(self, os.close, self._descriptor)
            # `pread` takes the position with the call: threads and forked processes share the descriptor's own.
            read = [os.pread(self._descriptor, width, self.start + row * width) for row in rows.tolist()]
        except OSError as error:
            check_disk(self.path, error)
            raise DataError(f"{self.path}: token shard cannot be read: {error.strerror}") from None
        content = b"".join(read)
        if len(content) != len(rows) * width:
            raise DataError(f"{self.path}: token shard was cut off; remove it and run the tokens stage again")
        return np.frombuffer(content, self.dtype).reshape(len(rows), *self.shape[1:])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all rows in order, many at a time.

        Raises:
            DataError: the file is too short, or cannot be read.
        """
        rows = max(1, BLOCK // (math.prod(self.shape[1:]) * self.dtype.itemsize or 1))
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                for begin in range(0, len(self), rows):
                    shape = (min(rows, len(self) - begin), *self.shape[1:])
                    content = file.read(math.prod(shape) * self.dtype.itemsize)
                    # ValueError: fewer bytes than that.
                    yield np.frombuffer(content, self.dtype).reshape(shape)
        except OSError as error:
            check_disk(self.path, error)
            raise DataError(f"{self.path}: token shard cannot be read: {error.strerror}") from None
        except ValueError:
            raise DataError(f"{self.path}: token shard was cut off; remove it and run the tokens stage again") from None


class TokenData:
    """All tokens of a split, indexed 0 to len - 1, from shards or from arrays in memory.

    Args:
        tokens: list of (n, N) uint16 arrays, in memory or in files.
        classes: list of (n,) arrays.
        names: names of the shards.
    """

    # All samples can be mixed, and a thread can read them: a sample is one small read, wherever it is.
    window = workers = 0

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
        """Open shards. Classes are read now, tokens when samples are taken.

        Raises:
            DataError: a shard is missing or damaged; the message names it.
        """
        members = [_open_members(Path(path)) for path in paths]
        widths = [tokens.shape[1] for tokens, _ in members]
        for path, width in zip(paths, widths, strict=True):
            if width != widths[0]:
                raise DataError(f"{path}: token shard has {width} tokens an image, but {paths[0]} has {widths[0]}")
        return cls([tokens for tokens, _ in members], [classes for _, classes in members], list(map(str, paths)))

    def check_codes(self, codebook_size: int) -> None:
        """Look at all tokens, once, in little memory.

        Raises:
            DataError: one is no code of the tokenizer; the message names shard and image.
        """
        for name, shard in zip(self.names, self._tokens, strict=True):
            row = 0
            for block in shard.blocks() if isinstance(shard, FileRows) else (shard,):
                if block.size and int(block.max()) >= codebook_size:
                    first = int(np.flatnonzero((block >= codebook_size).any(1))[0])
                    raise DataError(
                        f"{name}: image {row + first} has token {int(block[first].max())}, but the tokenizer has "
                        f"{codebook_size} codes: the tokens are damaged, or come from another tokenizer or dataset"
                    )
                row += len(block)

    @classmethod
    def from_arrays(cls, tokens: np.ndarray | Tensor, classes: np.ndarray | Tensor) -> TokenData:
        """Wrap tokens (n, N) and classes (n,) that are in memory.

        Raises:
            DataError: one of them is no whole number in its range.
        """
        return cls([as_whole(tokens, TOKENS, "token")], [as_whole(classes, CLASSES, "class")])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def num_classes(self) -> int:
        """The highest class that occurs, plus one."""
        return 1 + max(int(classes.max(initial=-1)) for classes in self._classes)

    def read(self, indices: np.ndarray, places: np.ndarray, reading: Callable[[int], None]) -> TrainingSamples:
        """Read samples to train on; see `rearkit.data.training_data.TrainingData`."""
        return TrainingSamples(*self.take(indices, reading), indices)

    def to_tokens(self, samples: TrainingSamples, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return tokens (B, N) and classes (B,) on a device."""
        return samples.content.to(device, non_blocking=True), samples.classes_B.to(device, non_blocking=True)

    def take(
        self, indices: Sequence[int] | np.ndarray | Tensor, reading: Callable[[int], None] = lambda shard: None
    ) -> tuple[Tensor, Tensor]:
        """Return samples in the order of ``indices``: tokens (B, N) and classes (B,), int64.

        Args:
            indices: (B,) the samples.
            reading: called with the number of each shard before it is read.
        """
        wanted = np.asarray(indices)
        tokens = np.empty((len(wanted), self.num_tokens), np.int64)
        classes = np.empty(len(wanted), np.int64)
        shard_of = np.searchsorted(self.starts, wanted, side="right") - 1
        # Shard by shard, so that `reading` names the one that a read hangs at.
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            rows = wanted[here] - self.starts[shard]
            reading(int(shard))
            tokens[here] = self._tokens[shard][rows]
            classes[here] = self._classes[shard][rows]
        return torch.from_numpy(tokens), torch.from_numpy(classes)


def whole_shards(digests: Mapping[Path, str], max_bad_share: float, log: Path) -> list[Path]:
    """Return the shards whose content is what was written. The samples of all others count as skipped.

    Without a shard, the order of the remaining samples changes, so a resumed epoch may show some twice and others not
    at all.

    Args:
        digests: the SHA-256 of each shard when it was written.
        max_bad_share: largest share of the samples that may be lost.
        log: file to which each loss is appended.

    Raises:
        DataError: more samples are lost.
    """
    counts: dict[Path, int | None] = {}
    damaged: list[Path] = []
    with progress_bar("train: checksums", len(digests)) as bar:
        for path, digest in digests.items():
            try:
                counts[path] = len(_open_members(path)[1])
                whole = sha256(path) == digest
            except (DataError, OSError):
                counts[path] = None
                whole = False
            if not whole:
                damaged.append(path)
            bar.advance(1)
    # Shards have about the same size, but the last of a split may be smaller, so the largest stands for unknown ones.
    likely = max((count for count in counts.values() if count), default=1)
    bad = BadSamples(max_bad_share, sum(likely if count is None else count for count in counts.values()), log)
    for path in damaged:
        say(f"train: {path} is missing or not what was written (SHA-256); to make it again, remove it and run `tokens`")
        count = counts[path]
        bad.skip(str(path), "lost with a damaged token shard", likely if count is None else count)
    return [path for path in digests if path not in damaged]


def read_meta(path: Path) -> dict[str, Any]:
    """Return the content of a shard's JSON member."""
    with tarfile.open(path) as archive:
        member = archive.extractfile("000000.json")
        assert member is not None
        return json.load(member)


def count_samples(path: Path) -> int:
    """Return how many samples a shard has.

    Raises:
        DataError: it is missing or damaged.
    """
    return len(_open_members(path)[1])


def _open_members(path: Path) -> tuple[FileRows, np.ndarray]:
    try:
        with path.open("rb") as file:
            members = {member.name: member for member in members_in_tar(file, 0, path.stat().st_size)}
        tokens = _find_array(path, members["000000.tokens.npy"], TOKENS, 2)
        classes = _find_array(path, members["000000.classes.npy"], CLASSES, 1)
        if len(tokens) != len(classes):
            raise ValueError(f"{len(tokens)} images but {len(classes)} classes")
    except FileNotFoundError:
        raise DataError(f"{path}: token shard is missing; run the tokens stage again") from None
    except OSError as error:
        check_disk(path, error)
        raise DataError(f"{path}: token shard cannot be read: {error.strerror}") from None
    except Exception as error:
        # numpy parses an array's header as Python, so a damaged one can raise many exceptions.
        raise DataError(f"{path}: token shard is damaged ({error}); remove it and run the tokens stage again") from None
    labels = classes[np.arange(len(classes))]
    if (labels < 0).any():
        row = int(np.flatnonzero(labels < 0)[0])
        raise DataError(f"{path}: image {row} has class {labels[row]}; classes count from 0: make the shard again")
    return tokens, labels


def _find_array(path: Path, member: tarfile.TarInfo, dtype: np.dtype[Any], dimensions: int) -> FileRows:
    """Return the rows of a .npy inside a tar, after checking its header.

    Raises:
        ValueError: it has another dtype, layout or size.
    """
    with path.open("rb") as file:
        file.seek(member.offset_data)
        shape, by_columns, found = read_npy_header(file)
        start = file.tell()
    size = start - member.offset_data + math.prod(shape) * dtype.itemsize
    if (found, by_columns, len(shape), size) != (dtype, False, dimensions, member.size):
        raise ValueError(f"{member.name} holds no array of {dtype} with {dimensions} dimension(s)")
    return FileRows(path, start, dtype, shape)
