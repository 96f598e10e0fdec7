"""AliTok (https://arxiv.org/abs/2506.05289) as a plugin for rearkit: tokenizer ``alitok``, backbone ``alitok-ar``."""

from __future__ import annotations

from rearkit import Component, hookimpl
from rearkit_alitok.backbone import AliTokAR
from rearkit_alitok.blocks import AliTokARSettings
from rearkit_alitok.tokenizer import AliTok, AliTokSettings
from rearkit_alitok.weights import AliTokARLayout, AliTokLayout


@hookimpl
def rearkit_components() -> list[Component]:
    """Return this package's components."""
    return [
        Component("tokenizer", "alitok", AliTokSettings, AliTok, published=AliTokLayout()),
        Component("backbone", "alitok-ar", AliTokARSettings, AliTokAR, published=AliTokARLayout()),
    ]
