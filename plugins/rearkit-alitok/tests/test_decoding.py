from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rearkit_alitok.backbone import AliTokAR, AliTokARSettings
from torch import Tensor

from rearkit import PackedLinear
from rearkit.contracts import TokenSpace

SPACE = TokenSpace(num_tokens=11, codebook_size=24, num_classes=5)


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def stirred(settings: AliTokARSettings, space: TokenSpace, seed: int = 0) -> AliTokAR:
    """A backbone with all weights random; a fresh one has its output at zero."""
    module, generator = AliTokAR(settings, space).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def decode(module: AliTokAR, tokens: Tensor, classes: Tensor) -> Tensor:
    """Logits of all tokens and of the one past the last, (B, N+1, V), along given tokens."""
    logits, cache = module.start(classes)
    found = [logits]
    for i in range(tokens.shape[1]):
        found.append(module.step(tokens[:, i], cache))
    return torch.stack(found, dim=1)


@given(
    grid=st.integers(0, 3),
    prefix_tokens=st.integers(1, 4),
    num_layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    width=st.integers(1, 4),
    batch=st.integers(1, 7),
    seed=st.integers(0, 2**31),
)
@hypothesis_settings(max_examples=15, deadline=None, derandomize=True)
@torch.no_grad()
def test_cached_decoding_equals_full_recomputation_at_any_size(
    grid: int, prefix_tokens: int, num_layers: int, heads: int, width: int, batch: int, seed: int
) -> None:
    settings = AliTokARSettings(
        hidden_size=4 * width * heads, num_layers=num_layers, num_heads=heads, prefix_tokens=prefix_tokens
    )
    space = TokenSpace(prefix_tokens + grid**2, 7, 3)
    module = stirred(settings, space, seed)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(7, (batch, space.num_tokens), generator=generator)
    classes = torch.randint(4, (batch,), generator=generator)
    expected, _ = module(tokens, classes)
    torch.testing.assert_close(decode(module, tokens, classes), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.skipif(
    not PackedLinear(torch.nn.Linear(2, 2), 2).packed, reason="this torch or this machine has no oneDNN"
)
@torch.no_grad()
def test_a_rows_logits_have_the_same_bits_in_any_batch_and_on_any_number_of_threads(restored_threads: None) -> None:
    module = stirred(AliTokARSettings(hidden_size=64, num_layers=2, num_heads=4, prefix_tokens=2), SPACE)
    tokens, classes = torch.randint(24, (64, 11)), torch.arange(64) % 6
    expected = decode(module, tokens, classes)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for first, rows in ((5, 1), (3, 7), (0, 64)):
            part = slice(first, first + rows)
            assert torch.equal(decode(module, tokens[part], classes[part]), expected[part]), (threads, first, rows)


@torch.no_grad()
def test_weights_changed_between_two_starts_are_seen() -> None:
    module = stirred(AliTokARSettings(hidden_size=16, num_layers=1, num_heads=2, prefix_tokens=2), SPACE)
    classes = torch.tensor([1, 2])
    before, _ = module.start(classes)
    module.blocks[0].mlp.w3.weight.mul_(2)
    module.blocks[0].attn.q_norm.weight.mul_(2)
    after, _ = module.start(classes)
    assert not torch.allclose(before, after)
    expected, _ = module(torch.zeros(2, 11, dtype=torch.int64), classes)
    torch.testing.assert_close(after, expected[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_decoding_equals_full_recomputation_on_a_gpu() -> None:
    module = stirred(AliTokARSettings(hidden_size=64, num_layers=2, num_heads=4, prefix_tokens=2), SPACE).cuda()
    tokens, classes = torch.randint(24, (5, 11)).cuda(), torch.arange(5).cuda()
    expected, _ = module(tokens, classes)
    torch.testing.assert_close(decode(module, tokens, classes), expected, rtol=1e-4, atol=1e-4)
