"""rearkit: train visual autoregressive image models that agree with their tokenizer.

The names below are the public API. They are imported on first use, so that ``import rearkit`` is quick, and a plugin
that uses it loads only what it needs.
"""

from __future__ import annotations

import importlib

# As typing's, which takes milliseconds to import, in which a signal could not be handled yet.
TYPE_CHECKING = False

__version__ = "0.1.0"

# The module of each public name, within rearkit.
_HOME = {
    "Component": "registry.component",
    "hookimpl": "registry.hookspecs",
    "setting": "recipe.settings",
    "settings": "recipe.settings",
    "RearkitError": "errors",
    "Recipe": "recipe.tables",
    "load_recipe": "recipe.loading",
    "Model": "model",
    "build": "model",
    "make": "recipe.by_name",
    "TokenData": "data.token_shards",
    "ImageSet": "data.image_sets",
    "load_images": "stages.data",
    "fit_tokenizer": "stages.tokenizer",
    "tokenize": "tokenization.tokenize",
    "train": "training.loop",
    "load_model": "stages.train",
    "sample": "sampling.sampler",
    "Sampler": "sampling.sampler",
    "evaluate": "evaluation.scores",
    "reconstruct": "evaluation.rebuilt",
    "run": "pipeline",
    "Objective": "objective",
    "corrupt": "context_noise",
    "capture": "objective",
    "VectorQuantizer": "components.tokenizers.quantizer",
    "MaskGITVQGANDecoder": "components.tokenizers.maskgit_vqgan",
    "PackedLinear": "layers.packed_linear",
    "beside": "layers.packed_linear",
    "attend_to_cache": "layers.cached_attention",
    "cache_length": "layers.cached_attention",
    "fusable": "layers.fusing",
    "joined": "system.distributed",
}

# The same names once more, since type checkers and editors do not follow `__getattr__`.
if TYPE_CHECKING:
    from typing import Any

    from rearkit.components.tokenizers.maskgit_vqgan import MaskGITVQGANDecoder
    from rearkit.components.tokenizers.quantizer import VectorQuantizer
    from rearkit.context_noise import corrupt
    from rearkit.data.image_sets import ImageSet
    from rearkit.data.token_shards import TokenData
    from rearkit.errors import RearkitError
    from rearkit.evaluation.rebuilt import reconstruct
    from rearkit.evaluation.scores import evaluate
    from rearkit.layers.cached_attention import attend_to_cache, cache_length
    from rearkit.layers.fusing import fusable
    from rearkit.layers.packed_linear import PackedLinear, beside
    from rearkit.model import Model, build
    from rearkit.objective import Objective, capture
    from rearkit.pipeline import run
    from rearkit.recipe.by_name import make
    from rearkit.recipe.loading import load_recipe
    from rearkit.recipe.settings import setting, settings
    from rearkit.recipe.tables import Recipe
    from rearkit.registry.component import Component
    from rearkit.registry.hookspecs import hookimpl
    from rearkit.sampling.sampler import Sampler, sample
    from rearkit.stages.data import load_images
    from rearkit.stages.tokenizer import fit_tokenizer
    from rearkit.stages.train import load_model
    from rearkit.system.distributed import joined
    from rearkit.tokenization.tokenize import tokenize
    from rearkit.training.loop import train

__all__ = [
    "Component",
    "ImageSet",
    "MaskGITVQGANDecoder",
    "Model",
    "Objective",
    "PackedLinear",
    "RearkitError",
    "Recipe",
    "Sampler",
    "TokenData",
    "VectorQuantizer",
    "attend_to_cache",
    "beside",
    "build",
    "cache_length",
    "capture",
    "corrupt",
    "evaluate",
    "fit_tokenizer",
    "fusable",
    "hookimpl",
    "joined",
    "load_images",
    "load_model",
    "load_recipe",
    "make",
    "reconstruct",
    "run",
    "sample",
    "setting",
    "settings",
    "tokenize",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"rearkit.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rearkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
