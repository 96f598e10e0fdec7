"""Shares of a set of images: what each rank looks at, and files of what it found, for the first rank to put together.

A rank's share begins and ends where a batch does, so that networks see the same batches on any number of ranks, and
what is found is put together in the order of the images: scores are then the same to the last bit.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import attrs
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rearkit.system.files import remove, replacing

T = TypeVar("T")
Rows = dict[str, Tensor]
"""What is kept of a batch of images, by name."""
# Batches whose rows share a file: few enough to hold in memory, and enough for files of some size.
BATCHES = 32


@attrs.frozen
class Share:
    """One of several consecutive shares of a set.

    Attributes:
        index: its number, from 0.
        of: how many there are.
    """

    index: int = 0
    of: int = 1

    def among(self, items: Sequence[T]) -> Sequence[T]:
        """Return those of consecutive items that are in this share; all shares differ by one item at most."""
        return items[self.index * len(items) // self.of : (self.index + 1) * len(items) // self.of]


WHOLE = Share()


@attrs.frozen
class ShareFiles:
    """Rows that ranks have left for the first one.

    Attributes:
        folder: where the files are; all ranks see it.
    """

    folder: Path

    def clear(self) -> None:
        """Remove all of them."""
        remove(self.folder)

    def write(self, label: str, rows: Iterator[Rows], share: Share) -> None:
        """Write the rows of a share, batch by batch; ``label`` names the set of images."""
        for number in itertools.count():
            held = list(itertools.islice(rows, BATCHES))
            if not held:
                return
            tensors = {f"{i:04d} {name}": found for i, batch in enumerate(held) for name, found in batch.items()}
            # By number, so that the order of the names is that of the images.
            path = self.folder / f"{_name(label)}-{share.index:05d}-{number:06d}.safetensors"
            with replacing(path) as temporary:
                save_file(tensors, temporary)

    def has(self, label: str) -> bool:
        """Return whether rows of a set were written."""
        return bool(self._files(label))

    def read(self, label: str) -> Iterator[Rows]:
        """Yield the rows of a set, batch by batch, in the order of the images."""
        for path in self._files(label):
            with safe_open(path, "pt") as file:
                for _, names in itertools.groupby(sorted(file.keys()), lambda key: key.partition(" ")[0]):
                    yield {key.partition(" ")[2]: file.get_tensor(key) for key in names}

    def _files(self, label: str) -> list[Path]:
        return sorted(self.folder.glob(f"{_name(label)}-*.safetensors"))


def _name(label: str) -> str:
    return re.sub(r"\W+", "_", label)
