"""The built-in components, registered through the hook that third parties use."""

from __future__ import annotations

from rearkit.backbones import dit_ar
from rearkit.backbones.weights import DiTARLayout
from rearkit.datasets import existing_shards, folder, mnist
from rearkit.hookspecs import hookimpl
from rearkit.noise import schedules
from rearkit.registry import Component
from rearkit.regularizers import codebook_embedding
from rearkit.tokenizers import maskgit_vqgan
from rearkit.tokenizers.weights import MaskGITVQGANLayout


@hookimpl
def rearkit_components() -> list[Component]:
    """Return everything that comes with rearkit."""
    return [
        Component("dataset", "mnist-5k", mnist.MNIST5K, mnist.MNIST5K.checked),
        Component("dataset", "folder", folder.FolderSettings, folder.Folder),
        Component("dataset", "shards", existing_shards.Shards, existing_shards.Shards.checked),
        Component(
            "tokenizer",
            "maskgit-vqgan",
            maskgit_vqgan.MaskGITVQGANSettings,
            maskgit_vqgan.MaskGITVQGAN,
            published=MaskGITVQGANLayout(),
        ),
        Component("backbone", "dit-ar", dit_ar.DiTARSettings, dit_ar.DiTAR, published=DiTARLayout()),
        Component("noise", "none", schedules.NoNoise, _itself),
        Component("noise", "fixed", schedules.FixedNoise, _itself),
        Component("noise", "random", schedules.RandomNoise, _itself),
        Component("noise", "linear", schedules.LinearNoise, _itself),
        Component(
            "regularizer",
            "codebook-embedding",
            codebook_embedding.CodebookEmbeddingSettings,
            codebook_embedding.CodebookEmbedding,
        ),
    ]


def _itself(schedule: schedules.Schedule) -> schedules.Schedule:
    """A noise schedule has no state, so its settings are the schedule."""
    return schedule
