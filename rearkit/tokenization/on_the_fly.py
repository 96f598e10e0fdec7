"""Training data that is tokenized during training: from image shards, by a frozen tokenizer, a new view each epoch.

Worker processes read and decode the images; the training process tokenizes them on its device. A sample depends only on
the seed and on its position in the run, so that it is the same with any number of ranks and workers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rearkit.contracts import Tokenizer, square_side
from rearkit.data.bad_samples import BadSamples, Unusable
from rearkit.data.image_index import ImageReader
from rearkit.data.pixels import to_float
from rearkit.data.training_data import TrainingSamples
from rearkit.errors import DataError
from rearkit.recipe.tables import TokensTable
from rearkit.system.devices import derive_seed
from rearkit.tokenization.quality import encode
from rearkit.tokenization.views import draw_view, views

# Unreadable samples in a row after which reading is given up; so many are several whole shards.
TRIES = 10_000


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
        # Before worker processes are forked, since each would import it again.
        import torchvision.transforms.functional  # noqa: F401

        self.num_tokens, self.image_size = tokenizer.num_tokens, square_side(tokenizer)
        self.names, self.starts, self.window = images.index.shards, images.index.starts, table.shuffle_shards
        self.workers = table.workers
        self.tokenizer = tokenizer
        self.table = table
        self.seed = seed
        self.bad = bad
        tokenizer.eval().requires_grad_(False)
        self._reader = images

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(
        self, indices: np.ndarray, places: np.ndarray | None = None, reading: Callable[[int], None] = lambda shard: None
    ) -> TrainingSamples:
        """Read and decode images; any process may call this.

        Args:
            indices: (B,) the images.
            places: (B,) the position of each in the sequence of all samples of the run, which seeds its view; if None,
                the first view is taken.
            reading: called with the number of each shard before it is read.

        Raises:
            DataError: none of many samples in a row can be read.
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
        return TrainingSamples(torch.stack(images), torch.tensor(classes), indices, tuple(skipped))

    @torch.no_grad()
    def to_tokens(self, samples: TrainingSamples, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokenize images; return tokens (B, N) and classes (B,), int64, on a device.

        Raises:
            DataError: more samples were unreadable than the recipe allows.
        """
        # Counted here, in the training process: each worker process would have a counter of its own.
        self.bad.good += len(samples.indices) - len(samples.skipped)
        for where, reason in samples.skipped:
            self.bad.skip(where, reason)
        self.tokenizer.to(device)
        parts = samples.content.to(device, non_blocking=True).split(self.table.batch)
        classes_B = samples.classes_B.to(device, non_blocking=True)
        return torch.cat([encode(self.tokenizer, to_float(part)) for part in parts]), classes_B

    def _readable(
        self, index: int, reading: Callable[[int], None], skipped: list[tuple[str, str]]
    ) -> tuple[Tensor, int]:
        """Decode an image, or the next readable one; add the wanted one to ``skipped`` if it is unreadable."""
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
