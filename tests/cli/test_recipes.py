"""``recipes``: the list, and copies to edit."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from rearkit.cli.main import main
from rearkit.recipe.loading import load_recipe
from rearkit.recipe.recipe_files import own_recipes
from rearkit.sweeps.sweep import load_sweep


def rearkit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    code = exit_.value.code
    assert isinstance(code, int)
    return code


def test_each_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert rearkit("recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    for recipe in own_recipes():
        (line,) = (line for line in lines if line.startswith(f"  {recipe.name} "))
        assert recipe.what in line and f"Takes {recipe.takes}." in line
    assert any(line.startswith("python -m rearkit run NAME; needs the package mlxtend") for line in lines)


@pytest.mark.parametrize("name", [recipe.name for recipe in own_recipes() if not recipe.needs[-1].startswith("the pl")])
def test_a_copy_means_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert rearkit("recipes", "--copy", name, "--to", "below/mine.toml") == 0
    copy = Path("below/mine.toml")
    if 'recipe = "' in copy.read_text(encoding="utf-8"):
        copied, original = load_sweep(copy), load_sweep(Path(name))
        assert copied.name == "mine" and copied.variants == original.variants
    else:
        assert load_recipe(copy) == attrs.evolve(load_recipe(name), name="mine")


def test_a_copy_is_written_here_and_never_over_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert rearkit("recipes", "--copy", "smoke") == 0
    said = capsys.readouterr().out
    assert said == "smoke.toml: a copy of smoke; edit it, then: python -m rearkit run smoke.toml\n"
    assert load_recipe("smoke.toml") == load_recipe("smoke")
    assert rearkit("recipes", "--copy", "smoke") == 2
    assert capsys.readouterr().err == "error: smoke.toml: exists already; choose another file with --to\n"


@pytest.mark.parametrize("stem", ['a"b', "a b", "ä'b", "a.b", "1"])
def test_a_copy_is_named_after_any_file(stem: str, tmp_path: Path) -> None:
    assert rearkit("recipes", "--copy", "smoke", "--to", str(tmp_path / f"{stem}.toml")) == 0
    assert load_recipe(tmp_path / f"{stem}.toml") == attrs.evolve(load_recipe("smoke"), name=stem)


@pytest.mark.parametrize("stem", ["a\\1b", "a\\g<0>b", "a\nb"])
def test_a_file_whose_name_no_run_may_have_is_refused(
    stem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rearkit("recipes", "--copy", "smoke", "--to", str(tmp_path / f"{stem}.toml")) == 2
    assert "expected the name of one folder in runs/" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_misspelt_name_and_a_lone_target_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert rearkit("recipes", "--copy", "smokee") == 2
    assert "did you mean 'smoke'?" in capsys.readouterr().err
    assert rearkit("recipes", "--to", "mine.toml") == 2
    assert "--to FILE needs --copy NAME" in capsys.readouterr().err
