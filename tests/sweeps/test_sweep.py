from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rearkit.errors import RecipeError
from rearkit.sweeps import sweep as plan
from rearkit.sweeps.sweep import Sweep, load_sweep

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a sweep over the smoke recipe."""

    def file(text: str) -> Path:
        path = tmp_path / "sweep.toml"
        path.write_text(f'name = "s"\nrecipe = "{RECIPES / "smoke.toml"}"\n{text}', encoding="utf-8")
        return path

    return file


def names(sweep: Sweep) -> list[str]:
    return [run.name for run in sweep.runs]


def test_variants_set_several_keys_over_the_recipe(write: Callable[[str], Path]) -> None:
    sweep = load_sweep(
        write('[variants.plain]\nnoise.name = "none"\nregularizers = []\n[variants.wide]\nbackbone.hidden_size = 64\n')
    )
    plain, wide = (run.recipe for run in sweep.runs)
    assert sweep.variants == ("plain", "wide")
    assert plain.noise is not None
    assert (plain.noise.name, plain.regularizers, plain.backbone.settings.hidden_size) == ("none", (), 32)
    assert wide.noise is not None
    assert (wide.noise.name, len(wide.regularizers), wide.backbone.settings.hidden_size) == ("linear", 1, 64)


def test_a_grid_is_every_combination_and_each_has_every_seed(write: Callable[[str], Path]) -> None:
    sweep = load_sweep(write('seeds = [3, 4]\n[grid]\ntrain.lr = [1e-3, 0.01]\n"regularizers.0.weight" = [1, 2.5]\n'))
    assert sweep.variants == (
        "lr=0.001, weight=1",
        "lr=0.001, weight=2.5",
        "lr=0.01, weight=1",
        "lr=0.01, weight=2.5",
    )
    assert names(sweep)[:2] == ["lr=0.001_weight=1-s3", "lr=0.001_weight=2.5-s3"]
    assert len(sweep.runs) == 8
    last = sweep.runs[-1].recipe
    assert (last.train.lr, last.regularizers[0].settings.weight) == (0.01, 2.5)
    assert (last.train_seed, last.sample_seed, last.seed) == (4, 4, 0)


def test_variants_are_combined_with_the_grid_and_lie_over_the_changes_for_all(write: Callable[[str], Path]) -> None:
    sweep = load_sweep(
        write("[variants.a]\ntrain.clip = 0.5\n[variants.b]\n[grid]\ntrain.steps = [10, 20]\n"),
        ["train.clip=2.0", "train.steps=7"],
    )
    assert sweep.variants == ("a, steps=10", "a, steps=20", "b, steps=10", "b, steps=20")
    assert [(run.recipe.train.clip, run.recipe.train.steps) for run in sweep.runs] == [
        (0.5, 10),
        (0.5, 20),
        (2.0, 10),
        (2.0, 20),
    ]


def test_values_that_look_alike_in_short_are_runs_of_their_own(write: Callable[[str], Path]) -> None:
    sweep = load_sweep(write("[grid]\ntrain.lr = [0.0010000001, 0.0010000002, 1e-3]\n"))
    assert sweep.variants == ("lr=0.0010000001", "lr=0.0010000002", "lr=0.001")
    assert [run.recipe.train.lr for run in sweep.runs] == [0.0010000001, 0.0010000002, 0.001]


def test_keys_that_end_alike_are_told_apart(write: Callable[[str], Path]) -> None:
    sweep = load_sweep(write("[grid]\ntokens.batch = [1]\nsample.batch = [2]\n"))
    assert sweep.variants == ("tokens.batch=1, sample.batch=2",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[grid]\ntrain.lr = 0.1\n", r"\[grid\] train.lr: expected a list of values, got 0.1"),
        ("[grid]\ntrain.lr = []\n", "expected a list of values"),
        ("[variants]\na = 1\n", r"\[variants\] a: expected a table of keys, got 1"),
        ("[variants.a]\ntrain.stepz = 1\n", r"run a-s0: \[train\] stepz: unknown key \(did you mean 'steps'"),
        ('[variants."a/b"]\n', r"a name is made of letters"),
        ("seeds = [1, 1]\n", "a value is listed twice"),
        ("[grid]\ntrain.lr = [0.1, 0.1]\n", "a value is listed twice"),
        ("seeds = [-1]\n", "seeds: expected ≥ 0"),
        ("seed = [1]\n", r"seed: unknown key \(did you mean 'seeds'"),
        (
            "[grid]\nsample.seed = [1, 2]\n",
            r"\[grid\]: sample.seed: not here; the seeds of .* are the sweep's `seeds`$",
        ),
        ("[grid]\ntrain = [{seed = 1}, {seed = 2}]\n", r"\[grid\]: train.seed: not here"),
        ("[variants.a]\ntrain.seed = 7\n", r"\[variants\] a: train.seed: not here"),
        ('[variants.a]\nname = "b"\n', r"\[variants\] a: name: not here; each run is named after its variant"),
        ("[variants.a]\n[published]\nb = 1.0\n", r"\[published\] b: expected a number for one of the variants: a"),
    ],
)
def test_a_mistake_is_told_with_file_and_key(write: Callable[[str], Path], text: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected) as caught:
        load_sweep(write(text))
    assert "sweep.toml" in str(caught.value)


@pytest.mark.parametrize("change", ["train.seed=7", "sample.seed=7", "name=other", "train={seed=7}"])
def test_a_seed_or_name_for_all_runs_is_refused(write: Callable[[str], Path], change: str) -> None:
    with pytest.raises(RecipeError, match=r"--set .*: (train\.seed|sample\.seed|name): not here"):
        load_sweep(write("[variants.a]\n"), [change])
    # That of data, tokenizer and classifier is the recipe's.
    assert load_sweep(write("[variants.a]\n"), ["seed=3"]).runs[0].recipe.seed == 3


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such sweep file"):
        load_sweep(tmp_path / "sweep.toml")


PAGE = (RECIPES.parent / "docs" / "sweeps.md").read_text(encoding="utf-8")
(PAGE_EXAMPLE,) = re.findall(r"```toml\n([^`]*\[grid\].*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", [plan.__doc__.split("\n\n", 1)[1], PAGE_EXAMPLE], ids=["module", "page"])
def test_the_examples_can_be_read(example: str, tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(f'extends = "{RECIPES / "smoke.toml"}"\n', encoding="utf-8")
    (tmp_path / "sweep.toml").write_text(example, encoding="utf-8")
    assert "plain, weight=0.1" in load_sweep(tmp_path / "sweep.toml").variants


@pytest.mark.parametrize("path", sorted((RECIPES / "ablations").glob("*.toml")), ids=lambda path: path.stem)
def test_the_ablations_can_be_read(path: Path) -> None:
    # What needs a package is read in the tests of that package.
    if path.stem.startswith("base") or "requires = " in path.read_text(encoding="utf-8"):
        return
    sweep = load_sweep(path)
    assert sweep.name == path.stem
    assert len(sweep.runs) / len(sweep.variants) in (1, 2, 3, 5)  # seeds
