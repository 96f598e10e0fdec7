"""Keys of samples: what a dataset may call its images, so that shards of them can be read again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rearkit.contracts import ImageSample
from rearkit.data.class_folders import is_foreign
from rearkit.errors import DataError


def with_checked_keys(samples: Iterable[ImageSample], split: str) -> Iterator[ImageSample]:
    """Yield samples after checking each one's key.

    Raises:
        DataError: a key cannot be the name of a shard's member, or comes twice.
    """
    seen: set[str] = set()
    for sample in samples:
        key = sample.key
        if trouble := _trouble(key) or ("comes twice; keys are unique in a split" if key in seen else ""):
            raise DataError(f"[data.source] {split}: the key {key!r} {trouble}")
        seen.add(key)
        yield sample


def _trouble(key: str) -> str:
    """Return what is wrong with a key; empty if nothing is."""
    if not isinstance(key, str) or not key:
        return "is no name; give each image a text that is not empty"
    parts = key.split("/")
    # Absolute paths, and those that lead out of the folder that a shard is unpacked to.
    if any(part in ("", ".", "..") for part in parts):
        return "is not a path within a folder; leave out what leads to the top or upwards"
    if "." in parts[-1]:
        return "has a dot in its last part, where a shard's reader ends it; replace the dot"
    if is_foreign(key):
        return "has a part that readers of shards pass over (.…, __MACOSX, or first __…__); call it otherwise"
    # Other characters that are not printed stand in many a photograph's name.
    if "\0" in key:
        return "has a NUL character, where a tar ends a name; replace it"
    return ""
