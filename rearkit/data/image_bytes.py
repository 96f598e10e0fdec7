"""Image files as bytes: what a dataset's picture becomes, and the suffix under which a shard holds it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from rearkit.system.files import replacing

# What files begin with. Readers go by content too, so the suffix is for people.
BEGINNINGS = {b"\xff\xd8": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}
# Pixels that PNG can hold as they are; others are converted, as they would be when they are read.
IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
UNREADABLE = b""
"""Stands for an image that cannot be read, so that it is counted and logged where bad samples are: in its shard."""


def suffix_of_bytes(content: bytes) -> str:
    """Return the suffix of an image file with this content, without the dot; png where it cannot be told."""
    return next((suffix for start, suffix in BEGINNINGS.items() if content.startswith(start)), "png")


def png_of(image: Image.Image) -> bytes:
    """Return a picture as a PNG file; `UNREADABLE` where that cannot be done."""
    try:
        return _png(image if image.mode in IN_PNG else image.convert("RGB"))
    # Pillow's readers raise whatever they meet in a damaged file, which many datasets open only here.
    except Exception:
        return UNREADABLE


def png_bytes(pixels: np.ndarray) -> bytes:
    """Return pixels (H, W, 3) uint8 as a PNG file."""
    return _png(Image.fromarray(pixels))


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (H, W, 3) uint8 to a PNG file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(png_bytes(pixels))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return buffer.getvalue()
