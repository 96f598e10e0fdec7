"""From an image file to uint8 pixels, a square as a rule: one way for shards, folders, on the fly, `load_images`."""

from __future__ import annotations

import io
import warnings

import attrs
import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from rearkit.contracts import ImageSize, height_width
from rearkit.data.bad_samples import Unusable
from rearkit.data.class_folders import FORMATS

CROPS = ("center", "adm")
ORIENTATIONS = ("stored", "exif")
BACKGROUND = "white"
LONGEST = 32  # times its width that an image may be high, or the other way round; resized, longer ones fill the memory
MOST_PIXELS = 2**27  # of one image: 400 MB as RGB, and with its copies some times that
UNREADABLE, CUT_OFF = "image cannot be decoded", "image is cut off"

# Pillow warns of odd files in the middle of a progress bar. What cannot be used is counted with its reason instead.
warnings.filterwarnings("ignore", module=r"PIL\.")


@attrs.frozen
class Decoding:
    """How an image file becomes pixels.

    Attributes:
        size: R, side of the square; or height and width.
        crop: one of `CROPS`: resized until it covers the size, and the middle cut out; or ADM's way to the same.
        background: colour under transparent pixels.
        orientation: one of `ORIENTATIONS`: pixels as they are stored, or turned as the EXIF data say.
    """

    size: ImageSize
    crop: str = CROPS[0]
    background: str = BACKGROUND
    orientation: str = ORIENTATIONS[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return height_width(self.size)

    def larger(self, factor: float) -> Decoding:
        """The same square larger, for views to be cut out of: rounded, or rounded down as with ADM's crop."""
        size = self.shape[0] * factor
        return attrs.evolve(self, size=int(size) if self.crop == "adm" else round(size))


def decoded(content: bytes, how: Decoding) -> Tensor:
    """Decode an image file and cut it to the size; uint8 (3, R, R).

    Raises:
        Unusable: that cannot be done.
    """
    try:
        # Whatever Pillow's readers raise on damaged files: they do not agree on one error.
        with opened(content) as image:
            _check_sides(image)
            image.load()
            if how.orientation == "exif":
                ImageOps.exif_transpose(image, in_place=True)
            return square(image, how)
    except Unusable:
        raise
    except Image.DecompressionBombError:
        raise Unusable("image is too large, a decompression bomb") from None
    except Exception as error:
        raise Unusable(CUT_OFF if "truncated" in str(error).lower() else UNREADABLE) from None


def opened(content: bytes) -> Image.Image:
    """Open an image file by the readers that are meant for it, and no others; its pixels are not decoded yet.

    Raises:
        Exception: whatever Pillow raises where that cannot be done.
    """
    return Image.open(io.BytesIO(content), formats=FORMATS)


def square(image: Image.Image, how: Decoding) -> Tensor:
    """Make a picture RGB and of the size, a square as a rule; uint8 (3, R, R).

    Raises:
        Unusable: its pixels have no known range, or there are too many for its shape.
    """
    _check_sides(image)
    crop = adm_crop if how.crop == "adm" else center_crop
    return crop(to_rgb(image, how.background), how.size)


def to_rgb(image: Image.Image, background: str = BACKGROUND) -> Image.Image:
    """Convert a picture of any mode to RGB: 16-bit grey is scaled, transparent pixels show the background.

    Raises:
        Unusable: its pixels have no known range.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise Unusable("image has 32-bit pixels, of unknown range")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise Unusable("image has floating-point pixels, of unknown range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, background), clear).convert("RGB")
    return image.convert("RGB")


def center_crop(image: Image.Image, size: ImageSize) -> Tensor:
    """Resize until both sides are covered and crop the middle, as torchvision does; uint8 (3, height, width)."""
    from torchvision.transforms import functional as transforms  # here, since it takes seconds to import

    height, width = height_width(size)
    if image.size != (width, height):
        # One side fits, and the other one is rounded down, as torchvision does for the shorter side of a square.
        if image.width * height <= image.height * width:
            resized = [int(width * image.height / image.width), width]
        else:
            resized = [height, int(height * image.width / image.height)]
        image = transforms.resize(image, resized, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True)
        image = transforms.center_crop(image, [height, width])
    return transforms.pil_to_tensor(image.convert("RGB"))


def adm_crop(image: Image.Image, size: ImageSize) -> Tensor:
    """The same as ADM does (published code, image_datasets.py): halved by boxes to under twice the size at first."""
    from torchvision.transforms import functional as transforms  # here, since it takes seconds to import

    height, width = height_width(size)
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return transforms.pil_to_tensor(image.crop((left, top, left + width, top + height)).convert("RGB"))


def _check_sides(image: Image.Image) -> None:
    shorter, longer = sorted(image.size)
    if shorter < 2:
        raise Unusable("image is only one pixel wide or high")
    if shorter * longer > MOST_PIXELS:
        raise Unusable("image is too large, a decompression bomb")
    if longer > LONGEST * shorter:
        raise Unusable(f"image is more than {LONGEST} times as long as it is wide")
