"""Training data whose tokens are made as they are needed: image shards, a frozen tokenizer, a fresh view each epoch.

Images are read and decoded by worker processes; the training process tokenizes them, on its device. What a sample is
depends on seed and place in the run alone, so that it is the same on any number of ranks and workers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rearkit.contracts import Tokenizer
from rearkit.data.bad_samples import BadSamples, Unusable
from rearkit.data.image_index import ImageReader
from rearkit.data.pixels import to_float
from rearkit.data.training_data import Samples
from rearkit.errors import DataError
from rearkit.recipe.tables import TokensTable
from rearkit.system.devices import derive_seed
from rearkit.tokenization.views import draw_view, views

TRIES = 10_000  # samples in a row that cannot be read


class OnTheFly:
    """See `rearkit.data.training_data.TrainingData`.

    Args:
        images: read at `read_at` the tokenizer's size.
        tokenizer: put into eval mode; it is not trained.
        table: how views are drawn, how many shards are mixed, how many images are tokenized at once.
        seed: of the views.
        bad: takes what cannot be read; the next sample that can be stands in for it, so that batches stay whole.
    """

    def __init__(
        self,
        images: ImageReader,
        tokenizer: Tokenizer,
        table: TokensTable,
        seed: int,
        bad: BadSamples,
    ) -> None:
        import torchvision.transforms.functional  # noqa: F401  before workers are forked, which would import it each

        self.num_tokens, self.image_size = tokenizer.num_tokens, tokenizer.image_size
        self.names, self.starts, self.window = images.index.shards, images.index.starts, table.shuffle_shards
        self.workers = table.workers
        self.tokenizer, self.table, self.seed, self.bad = tokenizer, table, seed, bad
        tokenizer.eval().requires_grad_(False)
        self._reader = images

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(
        self, indices: np.ndarray, places: np.ndarray | None = None, reading: Callable[[int], None] = lambda shard: None
    ) -> Samples:
        """Read and decode images, on any process.

        Args:
            indices: which, (B,).
            places: where each stands in the sequence of all samples of a run, (B,), by which its view is drawn; left
                out, the first view is taken.
            reading: told the number of each shard before it is read.

        Raises:
            DataError: none of many in a row can be read.
        """
        images: list[Tensor] = []
        classes: list[int] = []
        skipped: list[tuple[str, str]] = []
        for row, index in enumerate(indices.tolist()):
            image, label = self._readable(index, reading, skipped)
            if places is None:
                images.append(views(image, self.table.augment, self.image_size)[0])
            else:
                generator = torch.Generator().manual_seed(derive_seed(self.seed, "view", int(places[row])))
                images.append(draw_view(image, self.table.augment, self.image_size, generator))
            classes.append(label)
        return Samples(torch.stack(images), torch.tensor(classes), indices, tuple(skipped))

    @torch.no_grad()
    def to_tokens(self, samples: Samples, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokenize images; tokens (B, N) and classes (B,), int64, on a device.

        Raises:
            DataError: more samples could not be read than the recipe allows.
        """
        self.bad.good += len(samples.indices) - len(samples.skipped)
        for where, reason in samples.skipped:
            self.bad.skip(where, reason)
        self.tokenizer.to(device)
        parts = samples.content.to(device).split(self.table.batch)
        return torch.cat([self.tokenizer.encode(to_float(part)) for part in parts]), samples.classes_B.to(device)

    def _readable(
        self, index: int, reading: Callable[[int], None], skipped: list[tuple[str, str]]
    ) -> tuple[Tensor, int]:
        """Decode an image, or where it cannot be read the next one that can; note the one that was wanted."""
        for attempt in range(min(TRIES, len(self))):
            candidate = (index + attempt) % len(self)
            shard = self._reader.index.shard_of(candidate)
            reading(shard)
            try:
                return self._reader.decode(candidate)
            except Unusable as error:
                if attempt == 0:
                    skipped.append((f"{self.names[shard]} image {candidate - int(self.starts[shard])}", str(error)))
        raise DataError(f"{self.names[shard]}: {skipped[-1][1]}; nor can {attempt} samples after it be read")
