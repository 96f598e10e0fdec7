"""A plugin for rearkit: the noise schedule ``cosine`` and the regularizer ``next-embedding``."""

from __future__ import annotations

from rearkit import Component, hookimpl
from rearkit_example.noise import CosineNoise
from rearkit_example.regularizer import NextEmbedding, NextEmbeddingSettings


@hookimpl
def rearkit_components() -> list[Component]:
    """Return this package's components."""
    return [
        # The schedule is its own settings, so there is nothing to build.
        Component("noise", "cosine", CosineNoise, lambda schedule: schedule),
        Component("regularizer", "next-embedding", NextEmbeddingSettings, NextEmbedding),
    ]
