from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rearkit.layers.hashed_dropout import MOST, hashed_dropout, kept

SHAPE = torch.Size((128, 2048))
SEEDS = st.lists(st.integers(-MOST, MOST - 1), min_size=2, max_size=2)


def deviations(mask: torch.Tensor, rate: float) -> torch.Tensor:
    """Each entry's distance from its expected value, with variance 1."""
    return (mask.double() - (1 - rate)) / math.sqrt(rate * (1 - rate))


@given(SEEDS, st.sampled_from([0.05, 0.1, 0.5]))
def test_entries_are_kept_at_the_rate_and_independently_of_their_neighbours(seeds: list[int], rate: float) -> None:
    found = deviations(kept(SHAPE, torch.tensor(seeds).int(), rate), rate).flatten()
    # Sums of n independent values of variance 1: below 5.5 √n but in one of 10^7 cases.
    limit = 5.5 * math.sqrt(len(found))
    assert abs(found.sum()) < limit
    for lag in (1, 2, 3, 4, 16, 64, 2048):
        assert abs((found[:-lag] * found[lag:]).sum()) < limit


@given(SEEDS, SEEDS)
def test_other_seeds_give_independent_masks(one: list[int], other: list[int]) -> None:
    masks = [deviations(kept(SHAPE, torch.tensor(seeds).int(), 0.1), 0.1).flatten() for seeds in (one, other)]
    if one == other:
        assert torch.equal(*masks)
    else:
        assert abs((masks[0] * masks[1]).sum()) < 5.5 * math.sqrt(len(masks[0]))


def test_rows_and_columns_lose_as_many_entries_as_by_chance() -> None:
    torch.manual_seed(0)
    found = deviations(kept(SHAPE, torch.tensor([1, 2]).int(), 0.1), 0.1)
    for dim in (0, 1):
        sums = found.sum(dim) / math.sqrt(SHAPE[dim])
        assert sums.var().item() == pytest.approx(1, abs=5.5 * math.sqrt(2 / len(sums)))


def test_what_is_kept_is_scaled_and_gradients_follow_the_mask() -> None:
    torch.manual_seed(0)
    x = torch.ones(SHAPE, requires_grad=True)
    out = hashed_dropout(x, 0.25)
    torch.testing.assert_close(out.detach().unique(), torch.tensor([0, 4 / 3]))
    out.sum().backward()
    assert torch.equal(x.grad, out)
    assert not torch.equal(hashed_dropout(x, 0.25), out)
    torch.manual_seed(0)
    assert torch.equal(hashed_dropout(x, 0.25), out)
