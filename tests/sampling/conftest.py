from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rearkit.model import Model, build
from rearkit.recipe.tables import Recipe


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Recipe]) -> Model:
    """The tiny model with random weights everywhere, as if it had learnt something sharp."""
    made = build(tiny())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.backbone.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        made.tokenizer.codebook().copy_(torch.randn(12, 6, generator=generator))
    made.backbone.eval()
    return made
