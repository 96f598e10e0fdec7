"""What is kept of each batch of images: features, logits, hashes, and the range of the pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from rearkit.evaluation.feature_spaces import FeatureSpace
from rearkit.evaluation.image_streams import Images
from rearkit.evaluation.shares import WHOLE, Rows, Share
from rearkit.system.console import progress_bar

SPATIAL_CHANNELS = 7  # of the convolution for sFID (ADM's evaluator)

Look = Callable[[Tensor], Rows]
"""Takes uint8 images (B, 3, R, R), on any device; returns their rows, on the CPU."""


@contextmanager
def looking(space: FeatureSpace, device: torch.device) -> Iterator[Look]:
    """Load the network of a feature space on a device; give what looks at a batch of images with it.

    Its rows are ``features`` (B, F), ``spatial`` (B, h·w·7), ``logits`` (B, classes), ``hashes`` (B, 2) int64, and
    ``pixels``: the smallest and the largest pixel value, and the side R.

    Raises:
        RearkitError: the network's weights can't be had.
    """
    extractor = space.load(device.type == "cuda")
    # torch-fidelity cannot return the spatial layer, so a hook catches its output.
    held: list[Tensor] = []
    handle = extractor.get_submodule(space.spatial).register_forward_hook(lambda _m, _i, output: held.append(output))

    @torch.no_grad()
    def look(images: Tensor) -> Rows:
        features_BF, logits_BC = extractor(images.to(device))
        images = images.cpu()
        hashes = b"".join(hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in _pixels(images))
        return {
            "features": features_BF.cpu(),
            "spatial": _flat(held.pop()).cpu(),
            "logits": logits_BC.cpu(),
            # Bytes are read-only, so hashes are copied.
            "hashes": torch.from_numpy(np.frombuffer(hashes, np.int64).reshape(-1, 2).copy()),
            "pixels": torch.tensor([int(images.min()), int(images.max()), images.shape[-1]]),
        }

    try:
        yield look
    finally:
        handle.remove()


def rows_of(
    images: Images, space: FeatureSpace, batch: int, device: torch.device, label: str, share: Share = WHOLE
) -> Iterator[Rows]:
    """Look at the images of a share, batch by batch; ``label`` says what they are, for the progress bar.

    Raises:
        RearkitError: the network's weights can't be had, or the images can't be read.
    """
    with looking(space, device) as look, progress_bar(f"evaluate: {label}", len(images) // share.of) as bar:
        for part in images.batches(batch, share):
            yield look(part)
            bar.advance(len(part))


def _flat(maps: Tensor) -> Tensor:
    """Flatten the first 7 channels of maps (B, channels, h, w) to (B, h·w·7), channels last as in TensorFlow."""
    return maps[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def _pixels(images: Tensor) -> np.ndarray:
    """Return images (B, R, R, 3), the layout of an ``.npz``, so that hashes do not depend on where images come from."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
