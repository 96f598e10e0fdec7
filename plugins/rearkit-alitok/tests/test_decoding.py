"""What decoding promises beyond the contract, which test_backbone.py checks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from rearkit_alitok.backbone import AliTokAR
from rearkit_alitok.blocks import AliTokARSettings
from torch import Tensor

from rearkit import PackedLinear
from rearkit.contracts import TokenSpace


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(
    not PackedLinear(torch.nn.Linear(2, 2), 2).packed, reason="this torch or this machine has no oneDNN"
)
@torch.no_grad()
def test_a_rows_logits_have_the_same_bits_in_any_batch_and_on_any_number_of_threads(restored_threads: None) -> None:
    settings = AliTokARSettings(hidden_size=64, num_layers=2, num_heads=4, prefix_tokens=2)
    module = AliTokAR(settings, TokenSpace(num_tokens=11, codebook_size=24, num_classes=5)).eval()
    for parameter in module.parameters():  # a fresh one has its output at zero
        parameter.normal_(std=0.3)
    tokens, classes = torch.randint(24, (64, 11)), torch.arange(64) % 6

    def decode(part: slice) -> Tensor:
        logits, cache = module.start(classes[part])
        return torch.stack([logits, *(module.step(tokens_B, cache) for tokens_B in tokens[part].unbind(1))], dim=1)

    expected = decode(slice(0, 64))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for first, rows in ((5, 1), (3, 7), (0, 64)):
            part = slice(first, first + rows)
            assert torch.equal(decode(part), expected[part]), (threads, first, rows)
