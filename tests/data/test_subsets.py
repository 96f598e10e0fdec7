from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rearkit.data.subsets import drawn, drawn_of, far_apart


@given(st.integers(0, 3000), st.integers(1, 300))
def test_a_draw_has_one_of_each_stretch(size: int, most: int) -> None:
    chosen = drawn(size, most)
    assert len(chosen) == min(size, most) and len(set(chosen.tolist())) == len(chosen)
    if size > most:
        assert (np.abs(chosen - np.arange(most) * size / most) <= size / most).all()
        assert chosen.min() >= 0 and chosen.max() < size and (np.diff(chosen) > 0).all()


def test_a_draw_is_the_same_each_time_and_keeps_no_step_with_classes_in_turn() -> None:
    assert np.array_equal(drawn(1000, 100), drawn(1000, 100))
    assert len(set((drawn(991, 100) % 10).tolist())) == 10


def test_sorted_by_class_it_has_all_classes() -> None:
    assert set((drawn(1000, 100) // 100).tolist()) == set(range(10))


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 200))
def test_the_draw_of_shards_is_the_draw_of_all(counts: list[int], most: int) -> None:
    starts = np.cumsum([0, *counts])
    found = [start + place for start, places in zip(starts, drawn_of(counts, most), strict=False) for place in places]
    assert found == drawn(sum(counts), most).tolist()


@given(st.integers(0, 200))
def test_an_order_far_apart_has_each_once(size: int) -> None:
    assert sorted(far_apart(size)) == list(range(size))


def test_its_beginnings_are_spread() -> None:
    assert far_apart(8) == [0, 4, 2, 6, 1, 5, 3, 7]
