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
