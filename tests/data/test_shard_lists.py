from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rearkit.data.shard_lists import count_shards, expand_shards

letters = st.text("ab/", max_size=3)
ranges = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda ends: f"{{{ends[0]}..{ends[1]:02d}}}")
lists = st.lists(letters, min_size=2, max_size=4).map(lambda items: "{" + ",".join(items) + "}")
parts = st.one_of(letters, ranges, lists)


@given(st.lists(parts, max_size=3).map("".join), st.lists(parts, max_size=2).map("".join))
def test_shards_are_counted_as_they_are_expanded(text: str, inner: str) -> None:
    for written in (text, f"{text}{{x,{inner}}}", f"{text}::{inner}"):
        if (count := count_shards(written)) < 20_000:
            assert count == len(expand_shards(written))


@pytest.mark.parametrize("text", ["pipe:cat a.tar | awk '{print $1}'", "https://x/{000..002}.tar", "plain.tar"])
def test_commands_and_addresses_stay(text: str) -> None:
    assert len(expand_shards(text)) == (3 if "000" in text else 1)
