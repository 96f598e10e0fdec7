"""Sizes of images in pixels: one number for a square, height and width for any other."""

from __future__ import annotations

ImageSize = int | tuple[int, int]
"""The side of a square, or height and width."""


def height_width(size: ImageSize) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


def is_square(size: ImageSize) -> bool:
    """Return whether height and width are the same."""
    height, width = height_width(size)
    return height == width


def size_argument(size: ImageSize) -> str:
    """Return a size as ``--size`` takes it: ``64``, or ``64x32``."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def size_text(size: ImageSize) -> str:
    """Return a size for people: ``64``, or ``64 × 32`` with the height first."""
    return size_argument(size).replace("x", " × ")
