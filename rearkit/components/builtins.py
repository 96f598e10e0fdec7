"""The built-in components, registered through the same hook as a plugin's."""

from __future__ import annotations

from typing import TypeVar

from rearkit.components.backbones import dit_ar, dit_ar_blocks
from rearkit.components.backbones.dit_ar_weights import DiTARLayout
from rearkit.components.datasets import folder, hugging_face, mnist, torchvision_sets
from rearkit.components.datasets import shards as existing_shards
from rearkit.components.noise import schedules
from rearkit.components.regularizers import codebook_embedding
from rearkit.components.tokenizers import maskgit_vqgan
from rearkit.components.tokenizers.maskgit_vqgan_weights import MaskGITVQGANLayout
from rearkit.context_noise import NoNoise
from rearkit.registry.component import Component
from rearkit.registry.hookspecs import hookimpl

T = TypeVar("T")


@hookimpl
def rearkit_components() -> list[Component]:
    """Return all built-in components."""
    return [
        Component("dataset", "mnist-5k", mnist.MNIST5K, _itself),
        Component("dataset", "folder", folder.FolderSettings, folder.Folder),
        Component("dataset", "shards", existing_shards.Shards, _itself),
        Component("dataset", "torchvision", torchvision_sets.TorchvisionSettings, torchvision_sets.Torchvision),
        Component("dataset", "huggingface", hugging_face.HuggingFaceSettings, hugging_face.HuggingFace),
        Component(
            "tokenizer",
            "maskgit-vqgan",
            maskgit_vqgan.MaskGITVQGANSettings,
            maskgit_vqgan.MaskGITVQGAN,
            published=MaskGITVQGANLayout(),
        ),
        Component("backbone", "dit-ar", dit_ar_blocks.DiTARSettings, dit_ar.DiTAR, published=DiTARLayout()),
        Component("noise", "none", NoNoise, _itself),
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


def _itself(settings: T) -> T:
    """Return the settings of what has no state besides: they are the component."""
    return settings
