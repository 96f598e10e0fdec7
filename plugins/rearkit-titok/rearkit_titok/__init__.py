"""A plugin for rearkit: the tokenizer ``titok``."""

from __future__ import annotations

from rearkit import Component, hookimpl
from rearkit_titok.settings import TiTokSettings
from rearkit_titok.tokenizer import TiTok
from rearkit_titok.weights import TiTokLayout


@hookimpl
def rearkit_components() -> list[Component]:
    """Return this package's components."""
    return [Component("tokenizer", "titok", TiTokSettings, TiTok, published=TiTokLayout())]
