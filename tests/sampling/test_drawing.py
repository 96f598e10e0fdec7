"""Draws from logits of which several are equal, as many are in 16 bits; `test_sampler.py` has those that differ."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rearkit.sampling.drawing import draw

EVENLY = torch.arange(0, 1, 1 / 997, dtype=torch.float64)
SOME_EQUAL = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(SOME_EQUAL, st.integers(1, 14))
def test_top_k_keeps_k_codes_where_several_are_as_likely(values: list[int], k: int) -> None:
    row = torch.tensor(values, dtype=torch.float32)
    kept = set(draw(row.expand(len(EVENLY), -1), EVENLY, top_k=k).tolist())
    assert len(kept) == min(k, len(values))
    left = set(range(len(values))) - kept
    assert min(values[code] for code in kept) >= max((values[code] for code in left), default=0)


@given(SOME_EQUAL, st.floats(0, 1, exclude_max=True))
def test_top_k_of_one_is_greedy_where_several_are_as_likely(values: list[int], uniform: float) -> None:
    row = torch.tensor([values], dtype=torch.float32)
    where = torch.tensor([uniform], dtype=torch.float64)
    assert draw(row, where, top_k=1).item() == draw(row, where, temperature=0).item() == row.argmax()


def test_top_p_keeps_the_fewest_codes_where_several_are_as_likely() -> None:
    assert len(draw(torch.zeros(len(EVENLY), 8), EVENLY, top_p=0.375).unique()) == 3


def test_which_of_equals_are_kept_does_not_depend_on_the_batch() -> None:
    rows = torch.randn(64, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    uniforms = torch.rand(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for k in (2, 20, 300):
        alone = [draw(rows[i : i + 1], uniforms[i : i + 1], top_k=k).item() for i in range(64)]
        assert draw(rows, uniforms, top_k=k).tolist() == alone
