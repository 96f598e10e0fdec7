from __future__ import annotations

import contextlib
import io
import itertools
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as transforms

from rearkit.data import decoding
from rearkit.data.bad_samples import Unusable
from rearkit.data.decoding import LONGEST, Decoding, adm_crop, decoded, square
from rearkit.errors import RearkitError
from rearkit.recipe.tables import Recipe
from rearkit.stages import data as data_stage
from rearkit.stages.data import load_images, open_split
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import stage_key
from rearkit.system.files import read_json

RNG = np.random.default_rng(0)


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colour_of(image: Tensor) -> list[float]:
    return image.flatten(1).float().mean(1).tolist()


@pytest.mark.parametrize("size", [7, 16, 32, 50])
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_ordinary_images_have_the_pixels_they_always_had(size: int, kind: str, mode: str) -> None:
    for width, height in ((32, 32), (40, 32), (31, 77), (size, size)):
        content = encoded(Image.fromarray(noise(width, height)).convert(mode), kind)
        with Image.open(io.BytesIO(content)) as image:  # as version 0.1.0 read it
            old = image.convert("RGB")
        if old.size != (size, size):
            old = transforms.resize(old, size, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True)
            old = transforms.center_crop(old, [size, size])
        assert torch.equal(decoded(content, Decoding(size)), transforms.pil_to_tensor(old))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_grey_is_scaled(kind: str) -> None:
    ramp = np.linspace(0, 65535, 64)[None].repeat(64, 0).astype(np.uint16)
    image = decoded(encoded(Image.fromarray(ramp), kind), Decoding(64))
    assert torch.equal(image, torch.from_numpy(np.round(ramp / 257).astype(np.uint8)).expand(3, -1, -1))
    assert len(image.unique()) == 64 and 127 < image.float().mean() < 129
    assert decoded(encoded(Image.fromarray(ramp), kind), Decoding(32)).float().std() > 60


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_not_guessed(mode: str) -> None:
    content = encoded(Image.fromarray(np.full((8, 8), 70_000.0, np.float32)).convert(mode), "tiff")
    with pytest.raises(Unusable, match="of unknown range"):
        decoded(content, Decoding(8))


@pytest.mark.parametrize(("background", "colour"), [("white", [255, 255, 255]), ("#102030", [16, 32, 48])])
def test_transparent_pixels_show_the_background(background: str, colour: list[int]) -> None:
    how = Decoding(8, background=background)
    clear = np.concatenate([noise(16, 16), np.zeros((16, 16, 1), np.uint8)], -1)
    assert colour_of(decoded(encoded(Image.fromarray(clear)), how)) == colour
    clear[..., 3] = 255
    opaque = encoded(Image.fromarray(clear))
    assert torch.equal(decoded(opaque, how), decoded(encoded(Image.fromarray(clear[..., :3])), how))
    grey = encoded(Image.new("LA", (16, 16), (90, 0)))
    assert colour_of(decoded(grey, how)) == colour
    half = encoded(Image.new("RGBA", (16, 16), (0, 0, 0, 128)))
    assert colour_of(decoded(half, how)) == pytest.approx([c * 127 / 255 for c in colour], abs=1)
    halves = Image.fromarray(np.repeat(np.uint8([[0] * 8 + [1] * 8]), 16, 0), "P")
    halves.putpalette([255, 0, 0, 0, 255, 0])
    for kind in ("gif", "png"):
        found = decoded(encoded(halves, kind, transparency=0), attrs.evolve(how, size=16))
        assert found[:, 0, 0].tolist() == colour and found[:, 0, 15].tolist() == [0, 255, 0]
    grey_key = encoded(Image.new("L", (16, 16), 7), transparency=7)
    assert colour_of(decoded(grey_key, how)) == colour


def test_a_palette_with_too_many_transparencies_is_a_bad_sample() -> None:
    held = io.BytesIO()
    Image.new("P", (8, 8)).save(held, "png")
    before, data, after = held.getvalue().partition(b"IDAT")
    chunk = b"tRNS" + bytes(300)
    # Before the data's length, which is the last four bytes.
    content = before[:-4] + struct.pack(">I", 300) + chunk + struct.pack(">I", zlib.crc32(chunk)) + before[-4:]
    with pytest.raises(Unusable):
        decoded(content + data + after, Decoding(8))


def test_palettes_are_converted_before_they_are_resized() -> None:
    image = Image.fromarray(noise(100, 100)).convert("P")
    expected = square(image.convert("RGB"), Decoding(20))
    assert torch.equal(decoded(encoded(image), Decoding(20)), expected)
    assert len(expected.unique()) > len(square(image.resize((20, 20)), Decoding(20)).unique()) // 2


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_exif_turns_an_image_where_the_recipe_says_so(kind: str) -> None:
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[:15] = 255  # white above; turned by 90° clockwise, white is on the right
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(pixels), kind, exif=exif)
    stored, turned = (decoded(content, Decoding(16, orientation=name)).float() for name in ("stored", "exif"))
    assert stored[:, 0].mean() > 200 and stored[:, -1].mean() < 50
    assert turned[:, :, -1].mean() > 200 and turned[:, :, 0].mean() < 50


UNUSABLE: dict[str, tuple[bytes, str]] = {
    "cut off": (encoded(Image.fromarray(noise(64, 64)), "jpeg")[:-900], "image is cut off"),
    "not an image": (b"<html>404</html>", "image cannot be decoded"),
    "empty": (b"", "image cannot be decoded"),
    "one pixel": (encoded(Image.new("RGB", (1, 1))), "image is only one pixel wide or high"),
    "very tall": (
        encoded(Image.new("RGB", (100, 10_000))),
        f"image is more than {LONGEST} times as long as it is wide",
    ),
    "a drawing that Ghostscript would render": (
        encoded(Image.new("RGB", (32, 32)), "eps"),
        "image cannot be decoded",
    ),
    "an old format": (encoded(Image.new("RGB", (32, 32)), "icns"), "image cannot be decoded"),
    "one pixel wide": (encoded(Image.new("RGB", (1, 10_000))), "image is only one pixel wide or high"),
    "a bomb": (
        # A header that promises 30,000 × 30,000 pixels.
        (png := encoded(Image.new("L", (2, 2))))[:16] + 2 * (30_000).to_bytes(4, "big") + png[24:],
        "image is too large, a decompression bomb|image cannot be decoded",
    ),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_what_cannot_be_used_has_a_reason(what: str) -> None:
    content, reason = UNUSABLE[what]
    with pytest.raises(Unusable, match=reason):
        decoded(content, Decoding(16))


def test_no_program_is_started_for_a_drawing_called_png(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    for name in ("Popen", "check_call", "run", "call", "check_output"):
        monkeypatch.setattr(subprocess, name, lambda *arguments, **_: started.append(arguments))
    with pytest.raises(Unusable):
        decoded(UNUSABLE["a drawing that Ghostscript would render"][0], Decoding(16))
    assert not started


def test_sides_are_checked_before_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("RGB", (64, 65)))
    monkeypatch.setattr(decoding, "MOST_PIXELS", 64 * 64)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(Unusable, match="image is too large, a decompression bomb"):
        decoded(content, Decoding(16))


def test_pictures_that_are_no_files_have_the_same_limits() -> None:
    with pytest.raises(Unusable, match="only one pixel wide"):
        square(Image.new("RGB", (1, 100)), Decoding(16))
    with pytest.raises(Unusable, match="times as long"):
        square(Image.new("RGB", (2, 100)), Decoding(16))


def test_a_bomb_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Unusable, match="decompression bomb"):
        decoded(encoded(Image.new("RGB", (20, 20))), Decoding(16))


@given(st.binary(max_size=200), st.integers(0, 600))
def test_damage_of_any_kind_is_a_bad_sample_and_nothing_else(junk: bytes, place: int) -> None:
    whole = UNUSABLE["cut off"][0]
    for content in (junk, whole[:place] + junk + whole[place + len(junk) :]):
        with contextlib.suppress(Unusable):
            assert decoded(content, Decoding(16)).shape == (3, 16, 16)


def test_warnings_of_libraries_do_not_reach_the_terminal() -> None:
    code = (
        "import io; from PIL import Image; from rearkit.data.decoding import Decoding, decoded\n"
        "Image.MAX_IMAGE_PIXELS = 300; b = io.BytesIO(); Image.new('RGB', (20, 20)).save(b, 'png')\n"
        "decoded(b.getvalue(), Decoding(8))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


# ADM's crop


def adm_reference(image: Image.Image, size: int) -> np.ndarray:
    """What its description says, on arrays: halve by means of 2 × 2 blocks, then bicubic, then the middle."""
    while min(image.size) >= 2 * size:
        width, height = (side // 2 for side in image.size)
        image = image.resize((width, height), resample=Image.Resampling.BOX)
    factor = size / min(image.size)
    image = image.resize(tuple(round(side * factor) for side in image.size), resample=Image.Resampling.BICUBIC)
    pixels = np.array(image)
    top, left = ((side - size) // 2 for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


@given(st.integers(2, 90), st.integers(2, 90), st.integers(1, 24))
def test_adm_s_crop_is_a_square_by_its_description(width: int, height: int, size: int) -> None:
    image = Image.fromarray(noise(width, height))
    assert np.array_equal(adm_crop(image, size).permute(1, 2, 0).numpy(), adm_reference(image, size))


def test_adm_s_crop_averages_whole_blocks_and_keeps_an_image_of_the_size() -> None:
    image = noise(32, 32)
    assert np.array_equal(adm_crop(Image.fromarray(image), 32).permute(1, 2, 0).numpy(), image)
    blocks = image.reshape(16, 2, 16, 2, 3).mean((1, 3))
    found = adm_crop(Image.fromarray(image), 16).permute(1, 2, 0).numpy()
    assert np.abs(found - blocks).max() <= 1  # each direction is rounded
    assert not torch.equal(adm_crop(Image.fromarray(image), 12), square(Image.fromarray(image), Decoding(12)))


@pytest.mark.parametrize("crop", ["center", "adm"])
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 24), st.integers(1, 24))
def test_an_image_is_cut_to_any_height_and_width(crop: str, width: int, height: int, high: int, wide: int) -> None:
    image = Image.new("RGB", (width, height), (10, 20, 30))
    found = square(image, Decoding((high, wide), crop))
    assert found.shape == (3, high, wide)
    # No border where the image would not reach.
    assert found.flatten(1).float().mean(1).tolist() == [10, 20, 30]


@pytest.mark.parametrize("crop", ["center", "adm"])
def test_height_and_width_that_are_the_same_are_a_square(crop: str) -> None:
    image = Image.fromarray(noise(31, 77))
    assert torch.equal(square(image, Decoding((16, 16), crop)), square(image, Decoding(16, crop)))


# Settings


@pytest.fixture
def folder_recipe(tiny: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Recipe]:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(4):
            image = np.concatenate([noise(21, 30), np.full((30, 21, 1), 60 * index, np.uint8)], -1)
            (tmp_path / "images" / name / f"{index}.png").write_bytes(encoded(Image.fromarray(image)))
        (tmp_path / "images" / name / "broken.jpg").write_bytes(b"<html>404</html>")

    def make(**data: Any) -> Recipe:
        images = str(tmp_path / "images")
        return tiny(data={"source": {"name": "folder", "train": images, "held_out": images}, **data})

    return make


SETTINGS: list[dict[str, Any]] = [{}, {"crop": "adm"}, {"background": "#ff0000"}, {"orientation": "exif"}]


def test_load_images_gives_the_pixels_and_the_skips_of_the_stages(
    folder_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    seen = []
    for number, settings in enumerate(SETTINGS[:3]):
        recipe, folder = folder_recipe(max_bad_share=0.5, **settings), RunFolder(tmp_path / f"run{number}")
        folder.stage("data").mkdir(parents=True)
        data_stage.run(recipe, folder)
        staged, loaded = open_split(recipe, folder, "train", 8, "tokens").all(), load_images(recipe)
        assert len(loaded) == 8
        assert torch.equal(staged.images, loaded.images) and torch.equal(staged.labels, loaded.labels)
        seen.append(loaded.images)
        with pytest.raises(RearkitError, match="max_bad_share"):
            load_images(folder_recipe(max_bad_share=0.0, **settings))
    assert not seen[0].equal(seen[1]) and not seen[0].equal(seen[2])


def test_defaults_change_no_key_and_other_values_change_all(
    folder_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.stage("data").mkdir(parents=True)
    keys, listings = set(), []
    for settings in SETTINGS:
        recipe = folder_recipe(**settings)
        keys.add(stage_key(data_stage.STAGE, recipe, folder))
        data_stage.run(recipe, folder)
        listings.append(read_json(folder.images))
    assert len(keys) == len(SETTINGS)
    assert set(listings[0]) == {"shards", "found", "num_classes", "class_names"}  # as version 0.1.0 wrote it
    assert all(a != b for a, b in itertools.pairwise(listings))  # later stages notice by its hash


def test_a_colour_that_is_none_is_an_error(folder_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RearkitError, match="background"):
        folder_recipe(background="no colour")
