"""Imports point one way: stages → core ← components, as CONTRIBUTING draws it; nobody imports the built-ins."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rearkit"
COMPONENTS = ("datasets", "tokenizers", "backbones", "noise", "regularizers")
STAGES = ("data", "tokenization", "training", "sampling", "evaluation")
CORE = ("contracts", "registry", "hookspecs", "plugins", "options", "recipe", "structuring", "recipe_files", "model")
CORE += ("train_table", "guard_table", "objective", "errors", "weights", "files", "devices", "distributed")
CORE += ("packed", "cached_attention")
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if "templates" not in path.parts
}


def imported(path: Path) -> set[str]:
    """Names below ``rearkit.`` that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module} if node.module != "rearkit" else {f"rearkit.{alias.name}" for alias in node.names}
    return {name.removeprefix("rearkit.") for name in names if name.startswith("rearkit.")}


def offenders(owner: str, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"rearkit.{module} imports rearkit.{name}"
        for module, path in MODULES.items()
        if module.partition(".")[0] == owner
        for name in sorted(imported(path))
        if name.partition(".")[0] in forbidden
    ]


def test_the_map_is_not_empty() -> None:
    rooms = {module.partition(".")[0] for module in MODULES}
    assert rooms >= {*COMPONENTS, *STAGES, *CORE}
    assert "contracts" in imported(MODULES["model"])


@pytest.mark.parametrize("module", CORE)
def test_the_core_imports_no_component_and_no_stage(module: str) -> None:
    assert offenders(module, (*COMPONENTS, *STAGES, "pipeline", "cli", "commands", "builtins")) == []


@pytest.mark.parametrize("folder", COMPONENTS)
def test_a_component_imports_no_stage_and_no_component_of_another_kind(folder: str) -> None:
    others = tuple(name for name in COMPONENTS if name != folder)
    assert offenders(folder, (*STAGES, *others, "pipeline", "cli", "commands", "builtins", "stages")) == []


@pytest.mark.parametrize("owner", [*STAGES, "planning", "diagnosis", "comparison", "sweeps", "pipeline", "commands"])
def test_a_stage_imports_no_component(owner: str) -> None:
    assert offenders(owner, COMPONENTS) == []


def test_nothing_imports_the_built_ins() -> None:
    assert [module for module, path in MODULES.items() if "builtins" in imported(path)] == []
