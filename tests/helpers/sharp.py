"""A model with random weights everywhere, as if it had learnt something sharp."""

from __future__ import annotations

import torch

from rearkit.model import Model


def sharpened(model: Model) -> Model:
    """Give a tiny model such weights, the same each time, and return it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        codebook = model.tokenizer.codebook()
        codebook.copy_(torch.randn(codebook.shape, generator=generator))
    model.backbone.eval()
    return model
