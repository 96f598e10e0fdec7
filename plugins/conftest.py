"""Lets each package's tests run from the checkout, installed or not; and reference cases, computed with published code.

What the cases are is in tests/reference/README.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

for project in sorted(Path(__file__).parent.glob("*/pyproject.toml")):
    source = project.parent / "src"
    sys.path.insert(0, str(source if source.is_dir() else project.parent))

REFERENCE = Path(__file__).parents[1] / "tests" / "reference"
torch.set_num_threads(1)  # at these sizes, threads cost more than they bring


@attrs.frozen(eq=False)
class Case:
    """One reference case: its sizes, weights, and inputs and outputs."""

    sizes: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Case]:
    """Return what loads a case by its name."""

    def load(name: str) -> Case:
        sizes = json.loads((REFERENCE / f"{name}.json").read_text(encoding="utf-8"))
        weights, tensors = (load_file(REFERENCE / f"{name}.{part}.safetensors") for part in ("weights", "cases"))
        return Case(sizes, weights, tensors)

    return load
