"""What decoding promises beyond the contract, which test_backbone.py checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rearkit_llamagen.backbone import LlamaGenGPT
from rearkit_llamagen.blocks import LlamaGenGPTSettings
from torch import Tensor

from rearkit import PackedLinear
from rearkit.contracts import TokenSpace


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def drawn(num_tokens: int) -> LlamaGenGPT:
    settings = LlamaGenGPTSettings(hidden_size=64, num_layers=2, num_heads=4)
    module = LlamaGenGPT(settings, TokenSpace(num_tokens, codebook_size=24, num_classes=5)).eval()
    for parameter in module.parameters():  # a fresh one has its output at zero
        parameter.normal_(std=0.3)
    return module


def decode(module: Any, tokens_BN: Tensor, classes_B: Tensor) -> Tensor:
    logits, cache = module.start(classes_B)
    return torch.stack([logits, *(module.step(tokens_B, cache) for tokens_B in tokens_BN.unbind(1))], dim=1)


@pytest.mark.skipif(
    not PackedLinear(torch.nn.Linear(2, 2), 2).packed, reason="this torch or this machine has no oneDNN"
)
@torch.no_grad()
def test_a_rows_logits_have_the_same_bits_in_any_batch_and_on_any_number_of_threads(restored_threads: None) -> None:
    module = drawn(num_tokens=11)
    tokens, classes = torch.randint(24, (64, 11)), torch.arange(64) % 6
    expected = decode(module, tokens, classes)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for first, rows in ((5, 1), (3, 7), (0, 64)):
            part = slice(first, first + rows)
            assert torch.equal(decode(module, tokens[part], classes[part]), expected[part]), (threads, first, rows)


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 36])
@torch.no_grad()
def test_it_is_the_forward_up_to_the_last_position_at_any_length(num_tokens: int) -> None:
    module = drawn(num_tokens)
    tokens, classes = torch.randint(24, (3, num_tokens)), torch.tensor([0, 4, 5])
    torch.testing.assert_close(decode(module, tokens, classes), module(tokens, classes)[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_in_bfloat16_it_stays_near_the_forward() -> None:
    module = drawn(num_tokens=9).bfloat16()
    tokens, classes = torch.randint(24, (2, 9)), torch.tensor([1, 5])
    expected = module(tokens, classes)[0]
    found = decode(module, tokens, classes)
    assert found.dtype == torch.bfloat16
    assert (found - expected).float().square().mean() < 1e-3 * expected.float().square().mean()
