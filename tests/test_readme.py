"""What README.md and the pages of docs/ say is run, loaded or compared as it stands there."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rearkit.cli.new_plugin import write_plugin
from rearkit.contracts import num_parameters
from rearkit.model import build, build_tokenizer
from rearkit.recipe.loading import load_recipe, recipe_to_dict
from rearkit.registry.component import KINDS

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
# Pages of the kinds quote the package that their first line writes, by its folder.
NEW = "rearkit-mine"
QUOTED = [
    pytest.param(page, path, code, id=f"{page}-{number}-{path}")
    for page, text in PAGES.items()
    for number, (path, code) in enumerate(re.findall(rf"```\w+\n# ((?:plugins|{NEW})/\S+)\n(.*?)```", text, re.DOTALL))
]
SCRIPTS = [
    pytest.param(block, id=page)
    for page, text in PAGES.items()
    for block in re.findall(rf"```python\n(?!# (?:plugins|{NEW})/)(.*?)```", text, re.DOTALL)
]
RECIPES = [
    pytest.param(block, id=f"{page}-{number}")
    for page in ("README.md", "docs/recipes.md", "docs/clusters.md", "docs/data.md")
    for number, block in enumerate(re.findall(r"```toml\n(.*?)```", PAGES[page], re.DOTALL))
]


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 200


def test_every_block_of_python_is_run_or_compared() -> None:
    assert len(SCRIPTS) == 2
    assert len({page for page, path, _ in (param.values for param in QUOTED) if str(path).startswith(NEW)}) == 5


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs(script: str, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # threads that wait for one another stall on a busy machine
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout
    numbers = re.findall(r"-?\d+\.\d+", done.stdout)
    assert len(numbers) >= 3


@pytest.mark.parametrize(("page", "path", "code"), QUOTED)
def test_quoted_code_is_the_files(page: str, path: str, code: str, tmp_path: Path) -> None:
    """Piece by piece, in the file's order: a line of three dots stands for what is left out."""
    root = ROOT
    if path.startswith(NEW):
        root = write_plugin(NEW, tmp_path, Path(page).stem).parent
    content, position = (root / path).read_text(encoding="utf-8"), 0
    for piece in code.split("...\n"):
        position = content.find(piece.strip("\n"), position)
        assert position >= 0, piece


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_a_kind_begins_with_what_writes_a_package(kind: str) -> None:
    heading, _, *block = PAGES[f"docs/plugins/{kind}.md"].splitlines()[:7]
    assert heading.startswith("# A")
    assert block == [
        "```",
        f"python -m rearkit new-plugin mine --kind {kind}",
        f"pip install -e {NEW}",
        f"python -m pytest {NEW}",
        f"python -m rearkit run {NEW}/example.toml",
    ]


@pytest.mark.parametrize("block", RECIPES)
def test_a_recipe_can_be_read(block: str, tmp_path: Path) -> None:
    file, base = tmp_path / "recipe.toml", "" if block.startswith("extends = ") else 'extends = "mnist"\n'
    file.write_text(base + block, encoding="utf-8")
    assert load_recipe(file)


@pytest.mark.parametrize("kind", KINDS)
def test_adding_a_component_takes_under_100_lines(kind: str) -> None:
    page = PAGES[f"docs/plugins/{kind}.md"]
    assert len(page.splitlines()) < 110
    assert sum(len(block.splitlines()) for block in re.findall(r"```\w*\n(.*?)```", page, re.DOTALL)) < 100


def test_no_figure_is_left_open() -> None:
    assert not [page for page, text in PAGES.items() if "@@" in text]


@pytest.mark.parametrize("size", ["s", "b", "l"])
def test_the_parameter_counts_are_the_recipes(size: str) -> None:
    with torch.device("meta"):
        recipe = load_recipe(ROOT / "recipes" / f"rear_{size}_maskgit.toml")
        model = build(recipe, build_tokenizer(recipe, load=False))
    backbone, heads = num_parameters(model.backbone), num_parameters(model.objective)
    assert f"| `rear_{size}_maskgit` | {backbone:,} | {heads:,} |" in PAGES["docs/imagenet.md"]


def test_the_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", PAGES["README.md"])
    assert len(targets) > 20
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_files_that_are_named_exist() -> None:
    lost = []
    for page, text in PAGES.items():
        for name in re.findall(r"(?<![(\w/])(?:rearkit|tests|recipes|plugins|benchmarks|docs)/[\w./{},-]+\b/?", text):
            for path in _unbraced(name):
                if not (ROOT / path).exists():
                    lost.append(f"{page}: {path}")
    assert lost == []


def test_the_commands_that_are_named_exist() -> None:
    from rearkit.cli.main import cli

    named = {
        (page, command)
        for page, text in PAGES.items()
        for command in re.findall(r"python -m rearkit ([a-z][a-z-]*)", text)
    }
    assert {command for _, command in named} >= {"run", "plan", "sweep", "diagnose"}
    assert [(page, command) for page, command in sorted(named) if command not in cli.commands] == []


def test_the_messages_that_are_explained_are_those_of_the_code() -> None:
    messages = [message for path in sorted((ROOT / "rearkit").rglob("*.py")) for message in _messages(path)]
    explained = re.findall(r"^### `(.*)`$", PAGES["docs/troubleshooting.md"], re.MULTILINE)
    assert len(explained) > 30
    assert [text for text in explained if not any(_matches(text, message) for message in messages)] == []


def test_the_reference_names_every_key_and_component() -> None:
    generate = _generate()
    page, recipe = generate.recipe_page(), load_recipe(ROOT / "recipes" / "mnist.toml")
    for table in ("train", "sample", "evaluate", "tokens"):
        (section,) = re.findall(rf"^## `\[{table}\]`\n(.*?)(?=^## )", page, re.DOTALL | re.MULTILINE)
        assert all(f"| `{key}`" in section for key in recipe_to_dict(recipe)[table])
    assert "| `lr` | number | `0.0004` | > 0 | peak learning rate |" in page
    assert '| `augment` | string | `"none"` | one of "none", "flip", "ten-crop", "random-crop" |' in page
    components = generate.components_page()
    for name in ("dataset `mnist-5k`", "noise `linear`", "tokenizer `titok`", "backbone `alitok-ar`", "noise `cosine`"):
        assert f"### {name}\n" in components


def test_the_reference_has_every_command() -> None:
    from rearkit.cli.main import cli

    page = _generate().commands_page()
    assert [name for name in cli.commands if f"## {name}\n" not in page] == []
    assert "--num-gpus INTEGER RANGE" in page


def _generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _unbraced(path: str) -> Iterator[str]:
    """``a/{b,c}_d`` to ``a/b_d`` and ``a/c_d``."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    return map("".join, itertools.product(*parts))


def _messages(path: Path) -> Iterator[str]:
    """Every string of a file; what an f-string fills in is three dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = node.values
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = [node]
        else:
            continue
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def _matches(explained: str, message: str) -> bool:
    """Tell whether the words of a message occur in it in their order."""
    position = 0
    for words in filter(None, (words.strip() for words in explained.split("…"))):
        position = message.find(words, position)
        if position < 0:
            return False
        position += len(words)
    return True
