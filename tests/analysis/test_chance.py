from __future__ import annotations

import numpy as np
import pytest

from rearkit.analysis.chance import order
from rearkit.errors import RearkitError

S, D = 4, 50


def drawn(fids_VS: np.ndarray, spread: float = 0.1) -> np.ndarray:
    """FIDs of draws around those of the runs, a little higher, as FIDs of resampled samples are."""
    noise = np.random.default_rng(0).normal(size=(*fids_VS.shape, D)) * spread
    return fids_VS[..., None] + 0.5 + noise


def test_a_difference_beyond_all_noise_is_no_chance() -> None:
    fids = np.array([[10.0, 10.1, 9.9, 10.2], [8.0, 8.1, 7.9, 8.0]])
    found = order(["plain", "both"], fids, drawn(fids))
    (both,) = found.others
    assert (found.seeds, found.base, found.best_first) == (S, "plain", ("both", "plain"))
    assert both.difference == pytest.approx(-2.05)
    assert both.low < both.difference < both.high < -1.5
    assert (both.not_better, found.same) == (0.0, 1.0)


def test_equal_variants_are_better_half_of_the_time() -> None:
    fids = np.full((2, S), 10.0)
    noise = np.random.default_rng(1).normal(size=(2, S, 400))
    found = order(["a", "b"], fids, fids[..., None] + noise)
    assert found.others[0].not_better == pytest.approx(0.5, abs=0.06)
    assert found.others[0].low < 0 < found.others[0].high


def test_what_seeds_have_in_common_is_not_held_against_a_variant() -> None:
    seeds = np.array([5.0, 20.0, 60.0, 90.0])  # whatever the variant
    fids = np.stack([seeds, seeds - 1])
    found = order(["a", "b"], fids, drawn(fids))
    assert found.others[0].not_better == 0.0
    assert found.others[0].high < -0.5


def test_one_seed_that_disagrees_shows() -> None:
    fids = np.array([[10.0, 10.0, 10.0, 10.0], [9.0, 9.0, 9.0, 13.5]])
    found = order(["a", "b"], fids, drawn(fids, 0.01))
    # Worse where the seed is drawn at least once: all but (3/4)^4 of the resamples.
    assert found.others[0].not_better == pytest.approx(1 - 0.75**4, abs=0.02)


def test_the_whole_order_is_surer_of_its_ends_than_of_its_middle() -> None:
    fids = np.array([[10.0] * S, [9.0] * S, [8.95] * S, [5.0] * S])
    found = order(["a", "b", "c", "d"], fids, drawn(fids, 0.2))
    assert found.best_first == ("d", "c", "b", "a")
    assert 0.5 < found.same < 0.9
    assert [one.not_better for one in found.others] == [0.0, 0.0, 0.0]


def test_the_same_numbers_give_the_same_answer() -> None:
    fids = np.random.default_rng(2).normal(size=(3, S)) + 10
    assert order("abc", fids, drawn(fids, 1.0)) == order("abc", fids, drawn(fids, 1.0))


def test_a_tie_counts_half() -> None:
    fids = np.array([[8.0] * S, [8.0] * S, [9.0] * S])
    found = order("abc", fids, np.repeat(fids[..., None], D, -1))
    assert (found.lower["a"]["b"], found.lower["b"]["a"], found.lower["a"]["c"]) == (0.5, 0.5, 1.0)
    assert ([one.not_better for one in found.others], found.same) == ([0.5, 1.0], 0.5)


@pytest.mark.parametrize("shape", [(1, S), (2, 1)])
def test_one_variant_or_one_seed_has_no_order(shape: tuple[int, int]) -> None:
    with pytest.raises(RearkitError, match="two variants and two seeds"):
        order("ab"[: shape[0]], np.zeros(shape), np.zeros((*shape, D)))
