"""What ``show`` says of a recipe's data: of tokens made elsewhere, what they themselves hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rearkit.data.token_writing import write_token_shard
from rearkit.errors import RecipeError
from rearkit.model import check_parts
from rearkit.planning.sizes import recipe_sizes, train_size
from rearkit.recipe.tables import Recipe

SHARDS = {"name": "shards", "train": "images", "num_classes": 10}


def sizes(tiny: Callable[..., Recipe], folder: Path, counts: list[int], **source: Any) -> dict[str, str]:
    for index, count in enumerate(counts):
        write_token_shard(folder / f"{index}.tar", np.zeros((count, 16)), np.zeros(count), {})
    # What `augment` says is of images that are tokenized here.
    tables = {"tokens": {"pretokenized": str(folder), "augment": "flip"}, "data": {"source": {**SHARDS, **source}}}
    return recipe_sizes(tiny(**tables))


@pytest.mark.parametrize(
    ("counts", "each"), [([12], "1"), ([60, 60], "10"), ([20, 4], "2"), ([15], "1.25"), ([3], "0.25")]
)
def test_the_views_of_tokens_made_elsewhere_are_counted(
    tiny: Callable[..., Recipe], counts: list[int], each: str, tmp_path: Path
) -> None:
    rows = sizes(tiny, tmp_path / "theirs", counts, train_images=12)
    assert rows["training views"] == f"{sum(counts)} in {tmp_path / 'theirs'}, {each} of each training image"
    assert rows["epochs"].endswith(" of 12 training images")


def test_without_a_number_of_images_the_views_alone_are_told(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    rows = sizes(tiny, tmp_path / "theirs", [1200, 34])
    assert rows["training views"] == f"1,234 in {tmp_path / 'theirs'}"
    assert "epochs" not in rows


def test_tokens_that_are_not_there_yet_or_damaged_are_told(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    assert sizes(tiny, tmp_path / "none", [])["training views"] == f"no token shards in {tmp_path / 'none'} yet"
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "0.tar").write_bytes(b"half")
    assert "token shard is damaged" in sizes(tiny, tmp_path / "cut", [])["training views"]


@pytest.mark.parametrize(("augment", "told"), [("none", ""), ("flip", ", 2 views of each")])
def test_views_that_are_made_here_follow_augment(tiny: Callable[..., Recipe], augment: str, told: str) -> None:
    recipe = tiny(tokens={"augment": augment})
    rows = recipe_sizes(recipe)
    assert rows["epochs"].endswith(f" of {train_size(recipe):,} training images{told}")
    assert "training views" not in rows


def test_a_model_too_large_for_this_machine_is_counted_and_cannot_be_run(tiny: Callable[..., Recipe]) -> None:
    source = {"name": "shards", "train": "nowhere/{0..1}.tar", "num_classes": 10}
    recipe = tiny(data={"source": source}, backbone={"hidden_size": 2_000_000})
    assert int(recipe_sizes(recipe)["backbone parameters"].replace(",", "")) > 10**13
    with pytest.raises(RecipeError, match=r"tiny: the weights alone take .* GiB, and this machine has"):
        check_parts(recipe)
    with pytest.raises(RecipeError, match="tiny: the model is too large for any machine"):
        check_parts(tiny(data={"source": source}, backbone={"hidden_size": 10**12}))
