from __future__ import annotations

from collections.abc import Callable

import pytest
from sharp import sharpened

from rearkit.model import Model, build
from rearkit.recipe.tables import Recipe


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Recipe]) -> Model:
    """The tiny model with random weights everywhere, as if it had learnt something sharp."""
    return sharpened(build(tiny()))
