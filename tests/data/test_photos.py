from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rearkit.data.decoding import Decoding
from rearkit.data.photos import keep_part, read_mask, read_photo
from rearkit.errors import DataError, RearkitError

HOW = Decoding(8)


def saved(path: Path, pixels: np.ndarray, **how: object) -> Path:
    Image.fromarray(pixels).save(path, **how)  # type: ignore[arg-type]
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """24 × 16 pixels: the square is cut out of the middle of the longer side."""
    return saved(tmp_path / "photo.png", np.arange(16 * 24 * 3, dtype=np.uint16).astype(np.uint8).reshape(16, 24, 3))


def test_a_photo_is_a_square_and_upright(photo: Path, tmp_path: Path) -> None:
    assert read_photo(photo, HOW).shape == (3, 8, 8)
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = read_photo(saved(tmp_path / "turned.png", pixels, exif=exif), HOW)
    assert turned[:, 4:].min() == 255 and turned[:, :4].max() == 0


def test_white_is_drawn_and_the_mask_is_cut_as_the_photo_is(photo: Path, tmp_path: Path) -> None:
    pixels = np.zeros((16, 24), np.uint8)
    pixels[:, 12:] = 255
    kept = read_mask(saved(tmp_path / "mask.png", pixels), photo, HOW)
    assert kept.dtype == torch.bool and kept.shape == (8, 8)
    assert kept[:, :3].all() and not kept[:, 5:].any()
    # Already a square of the model's size; transparent is not painted.
    painted = np.zeros((8, 8, 4), np.uint8)
    painted[2:4, 2:4] = 255
    kept = read_mask(saved(tmp_path / "small.png", painted), photo, HOW)
    assert int((~kept).sum()) == 4 and not kept[2:4, 2:4].any()


@pytest.mark.parametrize(
    ("text", "box"),
    [("left", (0, 0, 4, 8)), ("right", (4, 0, 8, 8)), ("top", (0, 0, 8, 4)), ("bottom", (0, 4, 8, 8)),
     ("1, 2,5,8", (1, 2, 5, 8))],
)  # fmt: skip
def test_a_part_is_a_half_or_a_box(text: str, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[top:bottom, left:right] = True
    assert torch.equal(keep_part(text, 8), expected)


@pytest.mark.parametrize(("text", "box"), [("left", (0, 0, 3, 8)), ("bottom", (0, 4, 6, 8)), ("1,2,6,8", (1, 2, 6, 8))])
def test_a_part_of_an_image_that_is_no_square(text: str, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    expected = torch.zeros(8, 6, dtype=torch.bool)
    expected[top:bottom, left:right] = True
    assert torch.equal(keep_part(text, (8, 6)), expected)
    with pytest.raises(RearkitError, match="no part of an image of 6 × 8 pixels"):
        keep_part("0,0,8,6", (8, 6))


def test_a_photo_and_its_mask_are_cut_to_height_and_width(photo: Path, tmp_path: Path) -> None:
    how = Decoding((8, 4))
    found = read_photo(photo, how)
    assert found.shape == (3, 8, 4)
    # Its height fits, and of its 12 columns the middle is left.
    assert torch.equal(found, read_photo(photo, Decoding((8, 12)))[:, :, 4:8])
    pixels = np.zeros((16, 24), np.uint8)
    pixels[8:] = 255
    assert read_mask(saved(tmp_path / "mask.png", pixels), photo, how).shape == (8, 4)
    assert read_mask(saved(tmp_path / "own.png", pixels[:8, :4]), photo, how).all()
    with pytest.raises(RearkitError, match="mask of 8 × 4 pixels"):
        read_mask(saved(tmp_path / "turned.png", pixels[:4, :8]), photo, how)


@pytest.mark.parametrize(
    "text", ["middle", "1,2,3", "4,0,4,8", "0,0,9,8", "5,0,4,8", "-1,0,4,8", "0.5,0,4,8", "", f"0,0,4,{'9' * 5000}"]
)
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(RearkitError, match=r"expected .*(LEFT,TOP,RIGHT,BOTTOM|LEFT below RIGHT)"):
        keep_part(text, 8)


def test_files_that_cannot_be_used_are_told_in_a_line(photo: Path, tmp_path: Path) -> None:
    with pytest.raises(RearkitError, match=r"gone\.png: no such image"):
        read_photo(tmp_path / "gone.png", HOW)
    with pytest.raises(RearkitError, match="cannot be read"):
        read_photo(tmp_path, HOW)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png: image cannot be decoded; give another"):
        read_photo(tmp_path / "text.png", HOW)
    with pytest.raises(DataError, match=r"text\.png: image cannot be decoded; give another"):
        read_mask(tmp_path / "text.png", photo, HOW)
    small = saved(tmp_path / "small.png", np.zeros((5, 9), np.uint8))
    with pytest.raises(RearkitError, match=r"mask of 9 × 5 pixels, and .* 24 × 16; make them alike"):
        read_mask(small, photo, HOW)
