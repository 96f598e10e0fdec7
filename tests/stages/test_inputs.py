"""What a run needs is checked before it begins; the rest of these checks is in tests/test_model.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rearkit.errors import RearkitError
from rearkit.pipeline import run
from rearkit.recipe.tables import Recipe
from rearkit.stages.inputs import check_inputs
from rearkit.sweeps.sharing import prepare_common

FIT = {"fit": {"steps": 1, "warmup_steps": 0}}
TOO_FEW = r"^\[sample\] num_images: scores need more than 4 images, and there are 4; give more, or lower \[evaluate\] "


def test_too_few_samples_to_score_are_refused_before_hours_of_training(
    tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = tiny(tokenizer=FIT, evaluate={"features": "classifier"})
    with pytest.raises(RearkitError, match=TOO_FEW):
        run(recipe, tmp_path / "run")
    with pytest.raises(RearkitError, match=TOO_FEW):
        prepare_common([recipe], tmp_path / "sweep")
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob("sweep/shared/*/*/stage.json"))


def test_a_single_stage_draws_as_few_as_one_likes(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(RearkitError, match=r"^sample: needs stage '\w+'"):
        run(tiny(tokenizer=FIT, evaluate={"features": "classifier"}), tmp_path / "run", only="sample")


def test_one_more_or_fewer_neighbours_do(tiny: Callable[..., Recipe]) -> None:
    check_inputs(tiny(tokenizer=FIT, evaluate={"features": "classifier"}, sample={"num_images": 5}), scored=True)
    check_inputs(tiny(tokenizer=FIT, evaluate={"features": "classifier", "nearest_k": 2}), scored=True)
