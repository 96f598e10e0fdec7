from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rearkit.analysis.groups import Group
from rearkit.reports.comparison_page import mixed
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import save_resolved_recipe


@pytest.fixture
def seeds(tmp_path: Path, tiny: Any) -> list[RunFolder]:
    folders = [RunFolder(tmp_path / f"a-s{seed}") for seed in range(2)]
    for seed, folder in enumerate(folders):
        folder.path.mkdir()
        save_resolved_recipe(tiny(name=f"sw-{seed}", train={"seed": seed}, sample={"seed": seed}), folder)
    return folders


def test_runs_that_differ_by_their_seeds_alone_have_a_mean(seeds: list[RunFolder]) -> None:
    assert mixed([Group("a", seeds), Group("b", seeds[:1]), Group("c", [])]) == []


def test_a_mean_over_runs_of_different_recipes_is_told_with_the_keys(seeds: list[RunFolder], tiny: Any) -> None:
    """As a sweep leaves them that was edited, run again and cut off."""
    save_resolved_recipe(tiny(train={"seed": 1, "steps": 40, "lr": 0.5}), seeds[1])
    steps = tiny().train.steps
    (note,) = mixed([Group("a", seeds), Group("b", seeds[:1])])
    assert note.startswith("a: its mean is over runs of different recipes: ")
    assert f"train.steps is {steps} (a-s0), 40 (a-s1)" in note and "train.lr is " in note and "seed" not in note
