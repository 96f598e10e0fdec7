from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rearkit.sampling.pixel_decoder import PixelDecoder

SWITCHES = (torch.backends.cudnn, torch.backends.cuda.matmul)


class Tokenizer:
    """Notes what a GPU may round to 10 bits of mantissa while it decodes."""

    image_size = 4

    def __init__(self) -> None:
        self.seen: list[list[bool]] = []

    def decode(self, tokens_BN: Tensor) -> Tensor:
        self.seen.append([switch.allow_tf32 for switch in SWITCHES])
        return torch.zeros(len(tokens_BN), 3, 4, 4)


@pytest.mark.parametrize("exact", [False, True])
def test_convolutions_and_products_may_round_unless_they_are_to_be_exact(exact: bool) -> None:
    before = [switch.allow_tf32 for switch in SWITCHES]
    tokenizer: Any = Tokenizer()
    images = PixelDecoder(tokenizer, torch.device("cpu"), exact)(torch.zeros(1, 4, dtype=torch.int64))
    assert images.shape == (1, 4, 4, 3)
    assert tokenizer.seen == [[not exact, not exact]]
    assert [switch.allow_tf32 for switch in SWITCHES] == before
