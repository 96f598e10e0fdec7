"""Lets each package's tests run from the checkout, installed or not."""

from __future__ import annotations

import sys
from pathlib import Path

for project in sorted(Path(__file__).parent.glob("*/pyproject.toml")):
    source = project.parent / "src"
    sys.path.insert(0, str(source if source.is_dir() else project.parent))
