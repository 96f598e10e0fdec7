"""LlamaGen (https://arxiv.org/abs/2406.06525) for rearkit: tokenizer ``llamagen-vq``, backbone ``llamagen-gpt``."""

from __future__ import annotations

from rearkit import Component, hookimpl
from rearkit_llamagen.backbone import LlamaGenGPT
from rearkit_llamagen.blocks import LlamaGenGPTSettings
from rearkit_llamagen.tokenizer import LlamaGenVQ, LlamaGenVQSettings
from rearkit_llamagen.weights import LlamaGenGPTLayout, LlamaGenVQLayout


@hookimpl
def rearkit_components() -> list[Component]:
    """Return this package's components."""
    return [
        Component("tokenizer", "llamagen-vq", LlamaGenVQSettings, LlamaGenVQ, published=LlamaGenVQLayout()),
        Component("backbone", "llamagen-gpt", LlamaGenGPTSettings, LlamaGenGPT, published=LlamaGenGPTLayout()),
    ]
