"""Recipes that come with rearkit: found by name, described by their own first lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from rearkit.errors import RecipeError
from rearkit.recipe.loading import load_recipe
from rearkit.recipe.recipe_files import FOLDER, find_file, own_files, own_recipes, takes
from rearkit.sweeps.sweep import load_sweep

ROOT = Path(__file__).parents[2]


def test_they_are_those_of_the_checkout() -> None:
    assert ROOT / "recipes" == FOLDER
    assert set(own_files().values()) == set((ROOT / "recipes").rglob("*.toml"))
    assert len(own_files()) == len(set((ROOT / "recipes").rglob("*.toml")))  # no name stands for two


def test_a_name_without_a_folder_finds_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("mnist_ar") == load_recipe(ROOT / "recipes" / "mnist_ar.toml")
    Path("mnist").mkdir()  # such as a run's folder
    assert find_file("mnist") == ROOT / "recipes" / "mnist.toml"
    (sweep,) = {run.recipe.tokenizer.name for run in load_sweep(Path("components")).runs}
    assert sweep == "maskgit-vqgan"


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mnist").write_text('extends = "mnist.toml"\n', encoding="utf-8")
    assert find_file("mnist") == Path("mnist")
    with pytest.raises(RecipeError, match=r"mnist\.toml: no such recipe file \(did you mean 'mnist', without"):
        load_recipe("mnist")


def test_a_file_extends_one_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "smoke"\nname = "mine"\n', encoding="utf-8")
    assert load_recipe(file) == load_recipe("smoke", ["name=mine"])
    file.write_text('extends = "smok"\n', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine\.toml: smok: no such recipe \(did you mean 'smoke'\?\)"):
        load_recipe(file)


@pytest.mark.parametrize("source", ["recipes/mnist.toml", "mnist.toml", "./x/mnist"])
def test_a_path_stays_a_path(source: str) -> None:
    assert find_file(source) == Path(source)


def test_a_misspelt_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as error:
        load_recipe("mnsit")
    assert error.value.problems == [
        "mnsit: no such recipe (did you mean 'mnist'?); python -m rearkit recipes lists those that come with rearkit"
    ]
    Path("mine.toml").touch()
    with pytest.raises(RecipeError, match=r"did you mean 'mine\.toml'"):
        load_recipe("mine")


def test_each_says_what_it_is_and_takes() -> None:
    recipes = {recipe.name: recipe for recipe in own_recipes()}
    for recipe in recipes.values():
        assert recipe.what.endswith((".", "?")) and len(recipe.what) < 120, recipe.name
        assert " on " in recipe.takes and recipe.needs, recipe.name
    assert {name for name, recipe in recipes.items() if recipe.sweep} == {
        path.stem for path in (FOLDER / "ablations").glob("*.toml") if not path.stem.startswith("base")
    }
    assert recipes["mnist_ar"].takes == recipes["mnist"].takes == takes(FOLDER / "mnist.toml")
    assert recipes["rear_b_titok_b64"].needs[-1] == "the plugin rearkit-titok"
    assert recipes["ar_b_maskgit"].needs[0] == "ImageNet-1k training shards (138 GB)"
    assert recipes["smoke"].what == "All stages, for tests: too small to make good images."


def test_a_device_without_end_is_no_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "/dev/zero"\n', encoding="utf-8")
    with pytest.raises(RecipeError, match="/dev/zero: larger than 16 MiB, so no recipe"):
        load_recipe(file)
