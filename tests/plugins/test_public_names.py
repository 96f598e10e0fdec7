"""The packages here use what any other could: rearkit's public names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECTS = sorted(path.parent for path in Path(__file__).parents[2].glob("plugins/*/pyproject.toml"))


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_a_plugin_uses_public_names_only(project: Path) -> None:
    imports = r"^ *(?:from|import) (rearkit(?:\.\w+)*)\b"
    for path in project.rglob("*.py"):
        for module in re.findall(imports, path.read_text(encoding="utf-8"), re.M):
            assert module in {"rearkit", "rearkit.contracts", "rearkit.testing"}, f"{path} imports {module}"


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_each_component_of_a_plugin_is_checked_by_its_own_tests(project: Path) -> None:
    hooks = "".join(path.read_text(encoding="utf-8") for path in project.glob("rearkit_*/__init__.py"))
    tests = [path.read_text(encoding="utf-8") for path in project.glob("tests/test_*.py")]
    # One call may check all components of a package.
    calls = sum(text.count("check_component(") for text in tests)
    assert calls >= 1
    assert calls >= hooks.count("Component(") or 'parametrize("component"' in "".join(tests)
    assert sum(text.count("check_published(") for text in tests) >= hooks.count("published=")
