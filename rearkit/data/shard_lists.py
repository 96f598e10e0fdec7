"""Lists of shards: those of a folder, and those written with braces, which are counted before they are expanded."""

from __future__ import annotations

import re
from pathlib import Path

from webdataset.shardlists import expand_urls

CLASSES = "classes.json"
"""Beside shards: the names of their classes 0, 1, …, as a list."""

MOST_SHARDS = 1_000_000
RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?")
# What `count_shards` gives where a range has more digits than any number of files.
TOO_MANY = 10**18


def tars_in(folder: Path) -> list[Path]:
    """Return the tars right in a folder, sorted; those that begin with a dot hold what macOS adds to others."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def expand_shards(text: str) -> list[str]:
    """Return the paths or URLs that a text with braces means.

    Raises:
        ValueError: its braces do not pair, or mean more than `MOST_SHARDS`; the message says which.
    """
    if (count := count_shards(text)) > MOST_SHARDS:
        named = f"{count:,}" if count < TOO_MANY else "endlessly many"
        raise ValueError(f"its braces mean {named} shards, more than {MOST_SHARDS:,}; correct the numbers")
    try:
        return [str(url) for url in expand_urls(text)]
    except ValueError:
        raise ValueError("its braces do not pair; write such as in/{0000..1023}.tar") from None


def count_shards(text: str) -> int:
    """Return how many shards a text with braces means at most, without making their list."""
    return sum(_count(part) for part in text.split("::"))


def _count(text: str) -> int:
    # For each brace that is open: what its alternatives before this one mean in all, and this one so far.
    open_braces: list[tuple[int, int]] = []
    total, product, begin = 0, 1, 0
    for place, letter in enumerate(text):
        if letter == "{":
            open_braces.append((total, product))
            total, product, begin = 0, 1, place + 1
        elif letter == "," and open_braces:
            total, product = total + product, 1
        elif letter == "}" and open_braces:
            inside = max(total + product, _numbers(text[begin:place]))
            total, product = open_braces.pop()
            product = min(product * inside, TOO_MANY)
    return total + product


def _numbers(text: str) -> int:
    """Return how many numbers a range means; 1 of anything else."""
    found = RANGE.fullmatch(text)
    if found is None:
        return TOO_MANY if re.fullmatch(r"-?\d+\.\.-?\d+(\.\.-?\d+)?", text) else 1
    first, last, step = int(found[1]), int(found[2]), abs(int(found[3] or 1)) or 1
    return abs(last - first) // step + 1
