from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rearkit.components.backbones import dit_ar_decoding
from rearkit.components.backbones.dit_ar import DiTAR
from rearkit.components.backbones.dit_ar_blocks import DiTARSettings
from rearkit.contracts import TokenSpace
from rearkit.layers import packed_linear as packed

SPACE = TokenSpace(num_tokens=18, codebook_size=24, num_classes=5)


def stirred(settings: DiTARSettings, space: TokenSpace, seed: int = 0) -> DiTAR:
    """A backbone with all weights random; fresh ones have their blocks shut."""
    module, generator = DiTAR(settings, space).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def decode(module: DiTAR, tokens: Tensor, classes: Tensor) -> Tensor:
    """Logits of all tokens and of the one past the last, (B, N+1, V), along given tokens."""
    logits, cache = module.start(classes)
    found = [logits]
    for i in range(tokens.shape[1]):
        found.append(module.step(tokens[:, i], cache))
    return torch.stack(found, dim=1)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[DiTAR, Tensor, Tensor, int, bool]:
    """A small backbone and a batch for it, the rows of modulations made at once, and whether layers are packed."""
    heads = draw(st.integers(1, 3))
    settings = DiTARSettings(
        hidden_size=heads * draw(st.integers(1, 9)), num_layers=draw(st.integers(1, 3)), num_heads=heads
    )
    space = TokenSpace(draw(st.integers(1, 18)), draw(st.integers(2, 12)), draw(st.integers(1, 4)))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    batch = draw(st.integers(1, 9))
    tokens = torch.randint(space.codebook_size, (batch, space.num_tokens), generator=generator)
    classes = torch.randint(space.num_classes + 1, (batch,), generator=generator)
    return stirred(settings, space, seed), tokens, classes, draw(st.integers(1, 60)), draw(st.booleans())


@given(layouts())
@torch.no_grad()
def test_cached_decoding_equals_full_recomputation_in_every_layout(
    drawn: tuple[DiTAR, Tensor, Tensor, int, bool],
) -> None:
    module, tokens, classes, rows, pack = drawn
    expected, _ = module(tokens, classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dit_ar_decoding, "MODULATION_ROWS", rows)
        if not pack:
            patch.setattr(packed, "can_pack", lambda weight: False)
        found = decode(module, tokens, classes)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not packed.can_pack(torch.empty(2, 2)), reason="this torch or this machine has no oneDNN")
@pytest.mark.parametrize(("width", "heads"), [(16, 2), (192, 4)])
@torch.no_grad()
def test_a_rows_logits_have_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    width: int, heads: int, restored_threads: None
) -> None:
    module = stirred(DiTARSettings(hidden_size=width, num_layers=2, num_heads=heads), SPACE)
    tokens, classes = torch.randint(24, (64, 18)), torch.arange(64) % 6
    expected = decode(module, tokens, classes)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for first, rows in ((5, 1), (3, 7), (0, 64)):
            part = slice(first, first + rows)
            assert torch.equal(decode(module, tokens[part], classes[part]), expected[part]), (threads, first, rows)


@torch.no_grad()
def test_modulations_are_computed_once_a_class_and_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    module = stirred(DiTARSettings(hidden_size=16, num_layers=2, num_heads=2), SPACE)
    monkeypatch.setattr(dit_ar_decoding, "MODULATION_ROWS", 16)
    _, cache = module.start(torch.tensor([0, 0, 0, 0, 5, 5, 5, 5]))
    assert [tuple(m.shape) for m in cache.modulations.of_layer] == [(8, 2, 96), (8, 2, 96), (8, 2, 32)]
