"""Readable names of ImageNet's classes."""

from __future__ import annotations

import re
from collections.abc import Sequence

WORDNET_ID = re.compile(r"n\d{8}")
CLASSES = 1000


def readable(names: Sequence[str]) -> list[str]:
    """Replace the WordNet ids of ImageNet-1k's thousand folders by words; return other names unchanged.

    Sorted, those ids are the classes 0 to 999 of every pretrained classifier, so torchvision's list of names fits them.
    """
    if len(names) != CLASSES or not all(WORDNET_ID.fullmatch(name) for name in names):
        return list(names)
    # Imported here, since it takes seconds.
    from torchvision.models import ResNet18_Weights

    words: list[str] = ResNet18_Weights.DEFAULT.meta["categories"]
    return words
