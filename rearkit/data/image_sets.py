"""Sets of images: a split of a dataset in its shards, and images in memory.

Shapes: n images, B batch, R image side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
import torch
from torch import Tensor

from rearkit.data.access import Access
from rearkit.data.bad_samples import BadSamples
from rearkit.data.decoding import Decoding
from rearkit.data.fetching import FetchError, is_remote, local_copy
from rearkit.data.image_shards import DEFAULT_ACCESS, read_headers, read_images
from rearkit.data.pixels import check_pixels, to_float
from rearkit.data.shard_members import is_packed
from rearkit.data.streams import ReadImage
from rearkit.data.subsets import drawn_of, far_apart
from rearkit.errors import DataError

EPOCH_STRIDE = 1_000_003  # a prime, so that the shuffles of neighbouring seeds and epochs do not coincide


@attrs.frozen(eq=False)
class ImageSet:
    """Images in memory, with their classes.

    Attributes:
        images: (n, 3, H, W) uint8.
        labels: (n,) int64.

    Raises:
        DataError: they are something else; the message says how to convert them.
    """

    images: Tensor = attrs.field(validator=lambda held, field, images: check_pixels(images))
    labels: Tensor = attrs.field()

    @labels.validator
    def _one_for_each(self, field: attrs.Attribute[Tensor], labels: object) -> None:
        fits = isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.shape == self.images.shape[:1]
        if not fits:
            found = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else repr(labels)
            raise DataError(
                f"labels must be a tensor of {len(self.images)} int64, one for each image; found {found}; numbers of "
                "another type are converted by torch.as_tensor(labels, dtype=torch.int64)"
            )

    @classmethod
    def from_arrays(cls, images: np.ndarray, labels: np.ndarray) -> ImageSet:
        """Take images (n, R, R, 3) uint8 and labels (n,)."""
        channels_first = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        return cls(channels_first, torch.from_numpy(np.asarray(labels, dtype=np.int64)))

    @classmethod
    def of(cls, images: Iterable[ReadImage], image_size: int) -> ImageSet:
        """Collect images as they were read; there may be none."""
        held = list(images)
        if not held:
            empty = torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)
            return cls(empty, torch.empty(0, dtype=torch.int64))
        return cls(torch.stack([image.image for image in held]), torch.tensor([image.label for image in held]))

    def __len__(self) -> int:
        return len(self.images)


@attrs.frozen(kw_only=True, eq=False)
class Split:
    """One split of a dataset in its shards: everything that reading it takes.

    Attributes:
        name: ``"train"`` or ``"held-out"``.
        shards: paths or URLs, with the number of samples in each; None where it is unknown.
        num_classes: C; labels are checked against it.
        decoding: how images become pixels of side R.
        max_bad_share: largest share of the samples that may be skipped.
        access: how the shards are come by and read.
        seed: of the shuffled orders.
        log: file to which each skipped sample is appended, or None.
    """

    name: str
    shards: Mapping[str, int | None]
    num_classes: int
    decoding: Decoding
    max_bad_share: float = 0.0
    access: Access = DEFAULT_ACCESS
    seed: int = 0
    log: Path | None = None

    def count(self) -> int:
        """Count the samples; shards of unknown number are fetched for it, and lost ones have none."""
        if self.access.only is not None:
            return sum(map(len, self.access.only.values()))
        return sum(self.count_of(shard) for shard in self.shards)

    def part(self, limit: int | None) -> Split:
        """Return the split, or ``limit`` samples spread over it, since its shards may be sorted by class.

        Of remote shards, which are fetched whole, as few are chosen as have so many samples.
        """
        if limit is None or self.access.only is not None:
            return self
        names = list(self.shards)
        remote = any(map(is_remote, names))
        counts: dict[str, int] = {}
        for index in far_apart(len(names)):
            if remote and sum(counts.values()) >= limit:
                break
            counts[names[index]] = self.count_of(names[index])
        if len(counts) == len(names) and sum(counts.values()) <= limit:
            return self
        chosen = sorted(counts, key=names.index)
        places = drawn_of([counts[shard] for shard in chosen], limit)
        only = {shard: frozenset(found.tolist()) for shard, found in zip(chosen, places, strict=True) if len(found)}
        return attrs.evolve(
            self, shards={shard: counts[shard] for shard in only}, access=attrs.evolve(self.access, only=only)
        )

    def stretches(self, length: int) -> list[Split]:
        """Cut the split into consecutive stretches of ``length`` samples, each to be read alone, by any process.

        Shards that are fetched or unpacked before they are read stay whole, so that none is more than once: where there
        are any, stretches end where shards do, and may be longer.
        """
        only = self.access.only
        places = {shard: range(self.count_of(shard)) if only is None else sorted(only[shard]) for shard in self.shards}
        whole = any(is_remote(shard) or is_packed(Path(shard)) for shard in self.shards)
        cut: list[dict[str, Sequence[int]]] = [{}]
        for shard, here in places.items():
            start = 0
            while start < len(here):
                room = length - sum(map(len, cut[-1].values()))
                if room <= 0:
                    cut.append({})
                    continue
                stop = len(here) if whole else start + room
                cut[-1][shard] = here[start:stop]
                start = stop
        return [self._stretch(stretch, places) for stretch in cut if stretch]

    def _stretch(self, chosen: Mapping[str, Sequence[int]], places: Mapping[str, Sequence[int]]) -> Split:
        # Damage that no sample tells of is counted once, with the end of the shard.
        quiet = frozenset(shard for shard, here in chosen.items() if here[-1] != places[shard][-1])
        only = {shard: frozenset(here) for shard, here in chosen.items()}
        shards = {shard: self.shards[shard] for shard in chosen}
        return attrs.evolve(self, shards=shards, access=attrs.evolve(self.access, only=only, quiet=quiet))

    def count_of(self, shard: str) -> int:
        """Count the samples of a shard; 0 where it is lost."""
        known = self.shards[shard]
        if known is not None:
            return known
        if self.access.counts is not None and shard in self.access.counts:
            return self.access.counts[shard]
        try:
            with local_copy(shard, self.access.retry) as path:
                found = read_headers(shard, self.access.fields, path).samples or 0
        except FetchError:
            return 0
        if self.access.counts is not None:
            self.access.counts[shard] = found
        return found

    def budget(self) -> BadSamples:
        """Begin a count of samples that have to be skipped, which raises when they are too many."""
        known = sum(number or 0 for number in self.shards.values())
        return BadSamples(self.max_bad_share, known if self.access.only is None else self.count(), self.log)

    def read(self, epoch: int | None = None, bad: BadSamples | None = None) -> Iterator[ReadImage]:
        """Read the split once, in the order of its shards.

        Args:
            epoch: shuffles the shards and, within a window, the samples, by seed and epoch.
            bad: counts what is skipped; left out, a new `budget`.

        Raises:
            DataError: more had to be skipped than the split allows.
        """
        shuffle = None if epoch is None else torch.Generator().manual_seed(self.seed * EPOCH_STRIDE + epoch)
        bad = self.budget() if bad is None else bad
        return read_images(self.shards, self.decoding, self.num_classes, bad, shuffle, self.access)

    def batches(self, batch: int, place: tuple[int, int] = (0, 0)) -> ImageBatches:
        """Return batches without end, from a place in their stream on."""
        return ImageBatches(self, batch, place)

    def all(self, limit: int | None = None) -> ImageSet:
        """Read the split into memory, or ``limit`` images spread over it."""
        return ImageSet.of(self.part(limit).read(), self.decoding.shape[0])


class ImageBatches(Iterator[tuple[Tensor, Tensor]]):
    """Batches of a split without end: images (B, 3, R, R) float32 in [0, 1] and labels (B,) int64.

    The last images of an epoch share a batch with the first of the next.

    Args:
        split: the split.
        batch: B.
        place: where to begin, as a `place` of the same stream; images before it are decoded from its epoch's begin on.

    Attributes:
        place: the epoch of the last image that was in a batch, and how many of that epoch's have been.

    Raises:
        DataError: there are no images that can be used; at the first batch.
    """

    def __init__(self, split: Split, batch: int, place: tuple[int, int] = (0, 0)) -> None:
        self.place = place
        self._batches = self._read(split, batch)

    def __next__(self) -> tuple[Tensor, Tensor]:
        return next(self._batches)

    def _read(self, split: Split, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        held: list[ReadImage] = []
        first, skipped = self.place
        for epoch in itertools.count(first):
            bad = split.budget()
            used = 0
            for used, image in enumerate(split.read(epoch, bad), 1):
                if skipped >= used:
                    continue
                held.append(image)
                if len(held) == batch:
                    self.place = (epoch, used)
                    found = ImageSet.of(held, split.decoding.shape[0])
                    yield to_float(found.images), found.labels
                    held = []
            skipped = max(0, skipped - used)
            if not bad.good:
                raise DataError("[data.source]: no training images that can be used")
