from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rearkit.contracts import ImageSample
from rearkit.data.bad_samples import BadSamples
from rearkit.data.image_shards import read_images, write_shards
from rearkit.data.sample_keys import with_checked_keys
from rearkit.errors import DataError


def sample(key: str) -> ImageSample:
    return ImageSample(key, np.zeros((4, 4, 3), dtype=np.uint8), 0)


@pytest.mark.parametrize(
    ("key", "trouble"),
    [
        ("", "is no name"),
        (3, "is no name"),
        ("/etc/x", "is not a path within a folder"),
        ("a/../../x", "is not a path within a folder"),
        ("..", "is not a path within a folder"),
        ("a//b", "is not a path within a folder"),
        ("a/", "is not a path within a folder"),
        ("cat.jpg", "has a dot in its last part"),
        ("a/.hidden", "has a dot in its last part"),
        ("a\0b", "has a NUL character"),
        (".cache/a", "has a part that readers of shards pass over"),
        ("__background__/a", "has a part that readers of shards pass over"),
    ],
)
def test_a_key_that_no_shard_can_have_is_refused(key: str, trouble: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(write_shards([sample("fine"), sample(key)], tmp_path, "train", 10))
    assert str(caught.value).startswith(f"[data.source] train: the key {key!r} {trouble}")
    assert not list(tmp_path.iterdir())


def test_a_key_that_comes_twice_is_refused_in_another_shard_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train: the key 'a/b' comes twice; keys are unique in a split"):
        list(write_shards([sample("a/b"), sample("b"), sample("c"), sample("a/b")], tmp_path, "train", 2))


part = st.text(st.characters(exclude_characters="/.", categories=["L", "N", "P", "S", "Z"]), min_size=1, max_size=5)


@given(st.lists(st.lists(part, min_size=1, max_size=3).map("/".join), unique=True, min_size=1, max_size=6))
def test_all_other_keys_come_back_from_a_shard(tmp_path_factory: pytest.TempPathFactory, keys: list[str]) -> None:
    samples = [sample(key) for key in keys]
    assert [found.key for found in with_checked_keys(samples, "train")] == keys
    shards = dict(write_shards(samples, tmp_path_factory.mktemp("shards"), "train", 10))
    assert [image.key for image in read_images(shards, 4, 1, BadSamples(0, len(keys)))] == keys
