"""Names of ImageNet's classes, for people."""

from __future__ import annotations

import re
from collections.abc import Sequence

WORDNET_ID = re.compile(r"n\d{8}")
CLASSES = 1000


def readable(names: Sequence[str]) -> list[str]:
    """Put words in the place of the WordNet ids of ImageNet-1k's thousand folders; leave other names as they are.

    Sorted, those ids are the classes 0 to 999 of every pretrained classifier, so torchvision's list of names fits them.
    """
    if len(names) != CLASSES or not all(WORDNET_ID.fullmatch(name) for name in names):
        return list(names)
    from torchvision.models import ResNet18_Weights  # here, since it takes seconds to import

    words: list[str] = ResNet18_Weights.DEFAULT.meta["categories"]
    return words
