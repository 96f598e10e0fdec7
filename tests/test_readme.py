"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rearkit.contracts import num_parameters
from rearkit.model import build, build_tokenizer
from rearkit.recipe.loading import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"```\w+\n# (plugins/\S+)\n(.*?)```", README, re.DOTALL)
BLOCKS = re.findall(r"```python\n(?!# plugins/)(.*?)```", README, re.DOTALL)
SCRIPTS = [block for block in BLOCKS if "\nprint(" in block]


def test_the_readme_has_the_two_scripts_and_the_plugin() -> None:
    assert len(BLOCKS) == 3 and len(SCRIPTS) == 2


@pytest.mark.parametrize("script", SCRIPTS, ids=["whole run", "plug and play"])
def test_a_script_of_the_readme_runs(script: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout
    numbers = re.findall(r"-?\d+\.\d+", done.stdout)
    assert len(numbers) >= 3


def test_the_plugin_of_the_readme_is_a_component() -> None:
    (block,) = (block for block in BLOCKS if "hookimpl" in block)
    namespace: dict[str, object] = {}
    exec(block, namespace)
    (component,) = namespace["rearkit_components"]()  # type: ignore[operator]
    schedule = component.build(component.settings(level=0.25))
    import torch

    assert schedule.rates(0.6, 4, torch.Generator()).tolist() == [0.0] * 4
    assert 0 < schedule.rates(0.4, 4, torch.Generator().manual_seed(0)).max() < 0.25


@pytest.mark.parametrize(("path", "code"), QUOTED, ids=[path for path, _ in QUOTED])
def test_quoted_code_is_the_files(path: str, code: str) -> None:
    """Piece by piece: a line of three dots stands for what is left out."""
    content = (ROOT / path).read_text(encoding="utf-8")
    for piece in code.split("...\n"):
        assert piece.strip("\n") in content


def test_bringing_a_tokenizer_is_told_in_under_100_lines() -> None:
    (section,) = re.findall(r"^## Bring your own tokenizer\n.*?(?=^## )", README, re.DOTALL | re.MULTILINE)
    assert len(section.splitlines()) < 100
    assert len(QUOTED) == section.count("```") // 2 == 6


def test_no_figure_of_the_readme_is_left_open() -> None:
    assert "@@" not in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", ["s", "b", "l"])
def test_the_parameter_counts_are_the_recipes(size: str) -> None:
    with torch.device("meta"):
        recipe = load_recipe(ROOT / "recipes" / f"rear_{size}_maskgit.toml")
        model = build(recipe, build_tokenizer(recipe, load=False))
    backbone, heads = num_parameters(model.backbone), num_parameters(model.objective)
    row = f"| `rear_{size}_maskgit` | {backbone:,} | {heads:,} |"
    assert row in (ROOT / "README.md").read_text(encoding="utf-8")
