"""Decoding of sampled tokens to pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rearkit.contracts import ImageSize, Tokenizer, height_width
from rearkit.data.pixels import to_uint8
from rearkit.registry.contract import blaming

# Pixels that a GPU decodes at a time: 8 images of 256 × 256, for which `plan` counts 1.3 GiB with maskgit-vqgan. More
# would take more memory for hardly more speed: on an H100 (docs/gpu.md) one image alone takes 6.2 ms, most of it
# launches, and one of 32 takes 1.65 ms, so that the arithmetic of 8, 13 ms, hides the launches.
PIXELS = 8 * 256**2


def images_at_once(image_size: ImageSize, cuda: bool) -> int:
    """Return how many images are decoded at a time, at most."""
    height, width = height_width(image_size)
    # One by one on a CPU, since the rounding of a convolution depends on the number of images in its batch.
    return max(1, PIXELS // (height * width)) if cuda else 1


class PixelDecoder:
    """Decodes tokens with a tokenizer, on a GPU beside the work of other threads.

    Args:
        tokenizer: in eval mode, on the device.
        device: where it is.
        exact: whether a GPU's convolutions and products round to float32, as on a CPU, instead of to 10 bits of
            mantissa (TF32), which is four times as fast. To be set where other threads multiply in float32.
    """

    def __init__(self, tokenizer: Tokenizer, device: torch.device, exact: bool) -> None:
        self.tokenizer, self.device, self.exact = tokenizer, device, exact
        on_gpu = device.type == "cuda"
        # On the default stream, an image would wait for the next batch, which is generated there meanwhile.
        self.stream = torch.cuda.Stream(device) if on_gpu else None
        self.at_once = images_at_once(tokenizer.image_size, on_gpu)

    @torch.no_grad()
    def __call__(self, tokens_BN: Tensor) -> np.ndarray:
        """Decode tokens (B, N), on the CPU, to images (B, H, W, 3) uint8."""
        stream = torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()
        with stream, _tf32(not self.exact), blaming(self.tokenizer):
            images = [
                to_uint8(self.tokenizer.decode(part.to(self.device))).permute(0, 2, 3, 1).cpu()
                for part in tokens_BN.split(self.at_once)
            ]
        return torch.cat(images).numpy()


@contextlib.contextmanager
def _tf32(on: bool) -> Iterator[None]:
    """Within this context, a GPU may take TF32; in any thread, but the one that draws tokens has bf16 meanwhile."""
    # Decoders that are transformers consist of matrix products.
    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = on
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
