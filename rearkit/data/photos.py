"""A photo of the user's own, and a mask of it, cut to a tokenizer's size: a square of R pixels as a rule."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rearkit.contracts import ImageSize, height_width
from rearkit.data.bad_samples import Unusable
from rearkit.data.decoding import Decoding, decoded
from rearkit.errors import DataError, RearkitError

# Halves that can be kept, as (left, top, right, bottom) in halves of width and height.
HALVES = {"left": (0, 0, 1, 2), "right": (1, 0, 2, 2), "top": (0, 0, 2, 1), "bottom": (0, 1, 2, 2)}


def read_photo(path: Path, how: Decoding) -> Tensor:
    """Read an image file as uint8 (3, H, W), upright as viewers show it, whatever ``how`` says of orientation.

    Raises:
        RearkitError: there is no such file.
        DataError: it cannot be used as an image.
    """
    return photo_of(_content(path, "image"), how, path)


def photo_of(content: bytes, how: Decoding, name: str | Path) -> Tensor:
    """Decode the content of an image file as `read_photo` does.

    Raises:
        DataError: it cannot be used as an image; the message begins with ``name``.
    """
    try:
        return decoded(content, attrs.evolve(how, orientation="exif"))
    except Unusable as error:
        raise DataError(f"{name}: {error}; give another file") from None


def read_mask(path: Path, photo: Path, how: Decoding) -> Tensor:
    """Read a mask, white where the photo is to be drawn anew; return bool (H, W), True where it is kept.

    Args:
        path: an image as large as the photo, or already of the tokenizer's size.
        photo: the photo, whose crop the mask shares.
        how: how the photo is cut to that size.

    Raises:
        RearkitError: there is no such file, or the sizes differ.
        DataError: it cannot be used as an image.
    """
    wanted, found = (_size(file) for file in (photo, path))
    if found not in (wanted, how.shape[::-1]):
        raise RearkitError(
            f"{path}: mask of {found[0]} × {found[1]} pixels, and {photo} {wanted[0]} × {wanted[1]}; make them alike"
        )
    return mask_of(_content(path, "image"), how, path)


def mask_of(content: bytes, how: Decoding, name: str | Path) -> Tensor:
    """Decode the content of a mask, as large as its photo or R × R, as `read_mask` does.

    Raises:
        DataError: it cannot be used as an image; the message begins with ``name``.
    """
    # Transparent means the same as black: what nobody painted is kept.
    return photo_of(content, attrs.evolve(how, background="black"), name).float().mean(0) < 128


def keep_part(text: str, size: ImageSize) -> Tensor:
    """Return which pixels ``--keep`` names, bool (H, W).

    Args:
        text: one of `HALVES`, or ``LEFT,TOP,RIGHT,BOTTOM`` in pixels of the image.
        size: of the image.

    Raises:
        RearkitError: it is neither.
    """
    height, width = height_width(size)
    if text in HALVES:
        sides = (width, height, width, height)
        left, top, right, bottom = (side * halves // 2 for side, halves in zip(sides, HALVES[text], strict=True))
    else:
        parts = text.split(",")
        if len(parts) != 4 or not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
            raise RearkitError(
                f"--keep {text}: expected {', '.join(HALVES)}, or LEFT,TOP,RIGHT,BOTTOM in pixels of {width} × {height}"
            )
        left, top, right, bottom = map(int, parts)
    if not (left < right <= width and top < bottom <= height):
        raise RearkitError(
            f"--keep {text}: no part of an image of {width} × {height} pixels; "
            "expected LEFT below RIGHT, TOP below BOTTOM"
        )
    kept = torch.zeros(height, width, dtype=torch.bool)
    kept[top:bottom, left:right] = True
    return kept


def _content(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RearkitError(f"{path}: no such {what}; correct the path") from None
    except OSError as error:
        raise RearkitError(f"{path}: cannot be read ({error.strerror}); give the path of an image file") from None


def _size(path: Path) -> tuple[int, int]:
    _content(path, "image")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).size
    # Whatever Pillow's readers raise on damaged files.
    except Exception:
        raise DataError(f"{path}: image cannot be decoded; give another file") from None
