"""Checks of single values in a recipe's tables, as validators of attrs."""

from __future__ import annotations

from typing import Any

# Bytes that a folder's name may have, less what a sweep and a temporary file add to it.
LONGEST_NAME = 160


def folder_name(instance: Any, attribute: Any, value: str) -> None:
    """Check that a recipe's name is a single folder's, so that nothing is written outside ``runs/``; for attrs."""
    wrong = (
        "is empty or begins or ends with a space"
        if not value or value != value.strip()
        else "has a character that cannot be printed, such as a line break"
        if not value.isprintable()
        else "is a path"
        if set(value) & set("/\\") or value in (".", "..")
        else f"is longer than {LONGEST_NAME} bytes"
        if len(value.encode()) > LONGEST_NAME
        else ""
    )
    if wrong:
        shown = repr(value if len(value) <= 40 else f"{value[:40]}…")
        raise ValueError(f"expected the name of one folder in runs/, got {shown}, which {wrong}")


def colour(instance: Any, attribute: Any, value: str) -> None:
    """Check that Pillow knows a colour."""
    from PIL import ImageColor

    ImageColor.getrgb(value)  # its ValueError says what is wrong
