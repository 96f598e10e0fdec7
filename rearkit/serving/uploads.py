"""Photos that people upload: checked before they are decoded, cut to the model's size, kept for a while by content."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import threading
from collections import OrderedDict

import attrs
import numpy as np
from PIL import Image
from torch import Tensor

from rearkit.data.decoding import Decoding, opened
from rearkit.data.photos import mask_of, photo_of
from rearkit.errors import DataError, RearkitError
from rearkit.serving.limits import Limits

# One picture at a time, since a large one fills some hundred megabytes while it is decoded.
_one_at_a_time = threading.Lock()


def jpeg(pixels: np.ndarray) -> bytes:
    """Return an image (H, W, 3) uint8 as a small JPEG file, good enough for a look."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="jpeg", quality=70)
    return buffer.getvalue()


def check_picture(content: bytes, limits: Limits, name: str) -> tuple[int, int]:
    """Return the size of a picture by its header, before a pixel of it is decoded.

    Raises:
        DataError: it is no image of a kind that is read, or has too many pixels.
    """
    try:
        with opened(content) as image:
            width, height = image.size
    # Whatever Pillow's readers raise on damaged files, and on what they take for a decompression bomb.
    except Exception:
        raise DataError(f"{name}: image cannot be decoded; give a PNG, JPEG or WebP file") from None
    if width * height > limits.upload_pixels:
        most = f"{limits.upload_pixels / 1e6:.0f} million"
        raise DataError(f"{name}: image of {width:,} × {height:,} pixels; at most {most} are taken")
    return width, height


class Photos:
    """The photos of a server, the last used ones.

    Args:
        how: how they are cut to the model's size.
        limits: of the server.
    """

    def __init__(self, how: Decoding, limits: Limits) -> None:
        self.how, self.limits = how, limits
        self._photos: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, content: bytes) -> tuple[str, Tensor]:
        """Decode a file; return its id and the photo (3, H, W) uint8.

        Raises:
            DataError: it cannot be used as an image.
        """
        check_picture(content, self.limits, "photo")
        with _one_at_a_time:
            photo = photo_of(content, self.how, "photo")
        # By its pixels, so that a link to an edit works again once the photo is uploaded again.
        name = hashlib.sha256(photo.numpy().tobytes()).hexdigest()[:32]
        with self._lock:
            self._photos[name] = photo
            self._photos.move_to_end(name)
            while len(self._photos) > self.limits.photos:
                self._photos.popitem(last=False)
        return name, photo

    def find(self, name: str) -> Tensor:
        """Return a photo.

        Raises:
            RearkitError: it is not kept, or not any more.
        """
        with self._lock:
            photo = self._photos.get(name)
            if photo is None:
                raise RearkitError("photo: not kept here, or not any more; upload it again")
            self._photos.move_to_end(name)
            return photo


@attrs.frozen
class Mask:
    """Which pixels of a photo are kept: (H, W) bool, and as a PNG in base64 that is white where they are not."""

    kept_HW: Tensor
    text: str

    @classmethod
    def of(cls, kept_HW: Tensor) -> Mask:
        """Write a mask as text, short enough for a link."""
        buffer = io.BytesIO()
        Image.fromarray((~kept_HW).numpy()).save(buffer, format="png", optimize=True)
        return cls(kept_HW, base64.urlsafe_b64encode(buffer.getvalue()).decode().rstrip("="))

    @classmethod
    def read(cls, text: str, how: Decoding, limits: Limits) -> Mask:
        """Read a mask; a data URL is as good.

        Raises:
            DataError: it is not an image of the model's size in base64.
        """
        text = text.rpartition(",")[2].translate(str.maketrans("-_", "+/"))
        try:
            content = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise DataError("mask: not base64 of an image file") from None
        size = check_picture(content, limits, "mask")
        wanted = how.shape[::-1]
        if size != wanted:
            told = "{} × {} pixels; expected the model's {} × {}".format(*size, *wanted)
            raise DataError(f"mask: {told}, width and height")
        return cls.of(mask_of(content, how, "mask"))
