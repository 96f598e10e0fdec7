"""The class that a sample's label says.

A label that cannot be read makes a bad sample. A number that is no class stops the run: the shards are other than the
recipe says, and to skip it would be to lose a class.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from rearkit.contracts import Classes, ImageSample
from rearkit.data.bad_samples import Unusable
from rearkit.data.shard_members import Fields
from rearkit.errors import DataError

UNLABELLED = "unlabelled"  # name of the only class of images that have none
NAMED = 10  # classes named in a message
NO_NUMBER = "label is not a whole number"


def read_class(content: bytes, member: str, fields: Fields, num_classes: int, where: str) -> int:
    """Return the class in [0, num_classes) that a label's bytes say.

    Args:
        content: of the member.
        member: its name after the key, by which JSON is known.
        fields: what the label's value is called.
        num_classes: C.
        where: shard and key, for messages.

    Raises:
        Unusable: it holds no number.
        DataError: it holds a number that is no class, or something else than a class is meant to be there.
    """
    text = content.decode("utf-8-sig", errors="replace").strip()
    kind = member.lower().rpartition(".")[2]
    value: Any = text
    if kind == "json":
        try:
            value = json.loads(text)
        except ValueError:
            raise Unusable("label is no JSON") from None
        if isinstance(value, dict) and fields.label_name in value:
            value = value[fields.label_name]
        elif isinstance(value, dict):
            if fields.label is not None:
                raise Unusable(f"no {fields.label_name!r} in the label's JSON")
            raise DataError(
                f"{where}: no 'label' in its .{member}, which has {', '.join(map(repr, value)) or 'nothing'}; "
                'say which is the class, such as [data.source] label = "json:NAME"'
            )
    try:
        return checked_class(value, num_classes, where)
    except Unusable:
        if kind == "txt" and fields.label is None:
            raise DataError(
                f"{where}: no class in its .{member}, which begins {text[:40]!r}, and no .cls beside it; say where the "
                'class is, such as [data.source] label = "json:label"'
            ) from None
        raise


def checked_class(value: Any, num_classes: int, where: str) -> int:
    """Return a label as a class.

    Raises:
        Unusable: it is no number.
        DataError: it is a number, and no class.
    """
    number = _number(value)
    if number is None:
        raise Unusable(NO_NUMBER)
    if isinstance(number, float):
        raise DataError(f"{where}: label {value} is not a whole number; correct the shard")
    if not 0 <= number < num_classes:
        raise DataError(
            f"{where}: label {number} out of range 0 to {num_classes - 1}; labels count from 0: correct the shards, or "
            "the num_classes of [data.source]"
        )
    return number


def _number(value: Any) -> int | float | None:
    """A number, or what a text says as one; None for anything else."""
    # Underscores within numbers are Python's alone.
    if isinstance(value, bool) or not isinstance(value, int | float | str) or "_" in str(value):
        return None
    for read in (int, float) if isinstance(value, str) else (type(value),):
        with contextlib.suppress(ValueError):
            number: int | float = read(value)
            return number
    return None


def noting_classes(images: Iterable[ImageSample], seen: set[int]) -> Iterator[ImageSample]:
    """Yield images as they are, and add their classes to ``seen``."""
    for image in images:
        seen.add(image.label)
        yield image


def named_classes(labels: Iterable[int], classes: Classes) -> str:
    """Say how many classes these are, and which, as far as there is room."""
    chosen = sorted(labels)
    more = ", ..." if len(chosen) > NAMED else ""
    return f"{len(chosen)} of {classes.number} classes: {', '.join(classes.titles[i] for i in chosen[:NAMED])}{more}"
