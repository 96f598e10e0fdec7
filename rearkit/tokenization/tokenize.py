"""Tokenizing images: a set in memory, or an image shard into a token shard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rearkit.contracts import Tokenizer, height_width, size_text, square_side
from rearkit.data.bad_samples import BadSamples
from rearkit.data.image_sets import ImageSet, Split
from rearkit.data.pixels import to_float
from rearkit.data.token_shards import TokenData
from rearkit.data.token_writing import write_token_shard
from rearkit.errors import DataError
from rearkit.system.checksums import note_checksum
from rearkit.tokenization.quality import encode, module_device
from rearkit.tokenization.views import views


@torch.no_grad()
def tokenize(tokenizer: Tokenizer, images: ImageSet, batch: int = 64) -> TokenData:
    """Tokenize images that are in memory.

    Args:
        tokenizer: a frozen tokenizer in eval mode.
        images: images of the tokenizer's size.
        batch: images tokenized at once.

    Raises:
        DataError: the images are of another size.
    """
    check_size(tokenizer, images)
    device = module_device(tokenizer)
    tokens = [encode(tokenizer, to_float(part.to(device))).cpu() for part in images.images.split(batch)]
    return TokenData.from_arrays(torch.cat(tokens), images.labels)


def check_size(tokenizer: Tokenizer, images: ImageSet) -> None:
    """Check that images are of a tokenizer's size: convolutions take others, and give another number of tokens.

    Raises:
        DataError: they are not.
    """
    height, width = images.images.shape[2:]
    if (height, width) != height_width(tokenizer.image_size):
        raise DataError(
            f"the tokenizer takes images of {size_text(tokenizer.image_size)} pixels; found {height} × {width}: resize "
            "or crop them first, for instance by torchvision.transforms.v2.functional.resize"
        )


@torch.no_grad()
def tokenize_shard(tokenizer: Tokenizer, images: Split, augment: str, batch: int, path: Path, bad: BadSamples) -> None:
    """Write the token shard of an image shard.

    Args:
        tokenizer: frozen, in eval mode.
        images: a split with that one shard, read at `read_at`.
        augment: which views of an image are tokenized; see `views`.
        batch: views tokenized at once.
        path: file for the token shard.
        bad: counts images that have to be skipped.
    """
    device, size = module_device(tokenizer), square_side(tokenizer)
    tokens: list[np.ndarray] = []
    classes: list[int] = []
    held: list[Tensor] = []

    def flush() -> None:
        if held:
            # As bytes, which are a quarter of the floats that the device makes of them.
            tokens.append(encode(tokenizer, to_float(torch.stack(held).to(device))).cpu().numpy())
            held.clear()

    # The counter goes on over all shards of a split, so this shard's part is the difference.
    before = bad.reasons.copy()
    for read in images.read(bad=bad):
        for view in views(read.image, augment, size):
            held.append(view)
            classes.append(read.label)
            if len(held) >= batch:
                flush()
    flush()
    # Empty if all images are unreadable: each image shard has its token shard.
    array = np.concatenate(tokens) if tokens else np.empty((0, tokenizer.num_tokens))
    (source,) = images.shards
    meta = {"source": Path(source).name, "augment": augment, "skipped": dict(bad.reasons - before)}
    write_token_shard(path, array, np.array(classes), meta)
    note_checksum(path)
