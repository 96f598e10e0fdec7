"""``--size``: an exported model drawn, shown, planned at other sizes than it was trained at, squares or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image

from rearkit.cli.main import main
from rearkit.components.backbones.dit_ar import DiTAR
from rearkit.contracts import Backbone
from rearkit.errors import RearkitError, RecipeError, WeightsError
from rearkit.recipe.settings import setting, settings
from rearkit.recipe.tables import Recipe
from rearkit.registry.component import Component
from rearkit.sampling.manifest import manifest_lines, read_manifest
from rearkit.sampling.sampler import sample
from rearkit.serving.served import Served
from rearkit.stages.data import load_images
from rearkit.stages.resizing import resized
from rearkit.stages.train import load_model

Line = Callable[..., str]


@pytest.fixture
def line(capsys: pytest.CaptureFixture[str]) -> Line:
    """Run a command line that ends with an exit code; return what it said, in one line."""

    def run(*arguments: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        told = capsys.readouterr()
        assert ended.value.code == code, told
        return " ".join((told.out + told.err).split())

    return run


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def test_a_picture_of_images_that_are_no_squares(line: Line, exported: Path, tmp_path: Path) -> None:
    grid = tmp_path / "tall.png"
    told = line("sample", exported, "--classes", "cat,cow", "-k", "3", "--size", "16x8", "--grid", grid)
    assert "sample: 16 × 8 pixels: interpolated: pos_embed, from 4 × 4 to 8 × 4 tokens" in told
    # 16 × 8 pixels, six times as large, with a margin of two; two rows of three.
    assert Image.open(grid).size == (3 * (48 + 2) + 2, 2 * (96 + 2) + 2)
    assert "drawn" not in line("sample", exported, "--classes", "cat", "--grid", grid)


@pytest.mark.parametrize("options", [("--classes", "cat", "--grid"), ("--to-folder",)])
def test_a_size_is_not_set_as_a_key(line: Line, exported: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    arguments = ("sample", exported, *options, tmp_path / "out.png")
    assert "another size is --size" in line(*arguments, "--set", "tokenizer.image_size=16", code=2)
    assert "--set backbone" in line(*arguments, "--set", "backbone.num_heads=1", code=2)
    assert not (tmp_path / "out.png").exists()
    line(*arguments, "--set", "sample.top_k=3", "--set", "sample.num_images=3")


def test_a_folder_of_them_says_how_it_was_drawn_and_can_be_drawn_again(
    line: Line, exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pngs"
    line("sample", exported, "--size", "8x12", "--to-folder", folder, "--set", "sample.num_images=5")
    found, manifest = pixels(folder), read_manifest(folder)
    assert found.shape == (5, 8, 12, 3)
    assert manifest is not None and manifest["recipe"]["tokenizer"]["image_size"] == [8, 12]
    assert manifest["size"]["trained"] == [8, 8] and manifest["size"]["drawn"] == [8, 12]
    assert "interpolated: pos_embed, from 4 × 4 to 4 × 6 tokens" in manifest["size"]["changed"]
    assert "drawn at 8 × 12 pixels, trained at 8 × 8; interpolated: pos_embed" in manifest_lines(manifest)[-1]
    again = load_model(exported, image_size=manifest["recipe"]["tokenizer"]["image_size"])
    assert np.array_equal(sample(again, [0, 1, 2, 0, 1], seed=manifest["seeds"]["seed"]).images, found)
    # A server's manifests say the same.
    files = {"backbone": exported / "model.safetensors", "tokenizer": exported / "tokenizer.safetensors"}
    assert Served.of(again, files, size=(8, 12)).manifest["size"] == manifest["size"]
    # It goes on at that size alone.
    (folder / "000003-class0000.png").unlink()
    told = line("sample", exported, "--to-folder", folder, "--set", "sample.num_images=5", code=2)
    assert "holds another set of samples" in told
    line("sample", exported, "--size", "8x12", "--to-folder", folder, "--set", "sample.num_images=5")
    assert np.array_equal(pixels(folder), found)
    # Of squares as they were trained, nothing more is said than before.
    line("sample", exported, "--size", "8x8", "--to-folder", tmp_path / "same", "--set", "sample.num_images=2")
    line("sample", exported, "--to-folder", tmp_path / "plain", "--set", "sample.num_images=2")
    assert read_manifest(tmp_path / "same") == read_manifest(tmp_path / "plain")
    assert "size" not in (read_manifest(tmp_path / "plain") or {})


def test_a_photo_is_edited_and_reconstructed_at_such_a_size(line: Line, exported: Path, tmp_path: Path) -> None:
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    shades = np.random.default_rng(0).integers(0, 256, (32, 16, 3), np.uint8)
    Image.fromarray(shades).save(photo)
    Image.fromarray(np.repeat(np.uint8([[0], [255]]), 16, 0).repeat(16, 1)).save(mask)
    asking = ("--image", photo, "--class", "dog", "-k", "2", "--size", "16x8", "--grid", tmp_path / "out.png")
    for part in (("--mask", mask), ("--keep", "top")):
        assert "16 of 32 tokens are kept, 16 drawn after them" in line("sample", exported, *asking, *part)
        assert Image.open(tmp_path / "out.png").size == (4 * 50 + 2, 98 + 2)
    line("reconstruct", exported, photo, "--size", "16x8", "--to-folder", tmp_path / "rebuilt")
    assert pixels(tmp_path / "rebuilt").shape == (4, 16, 8, 3)
    assert len(json.loads((tmp_path / "rebuilt" / "scores.json").read_text())["000-photo"]["tokens"]) == 32


def test_show_and_plan_know_such_sizes(line: Line, exported: Path) -> None:
    shown, planned = line("show", exported, "--size", "16x8"), line("plan", exported, "--size", "16x8")
    for told in (shown, planned):
        assert "16 × 8 pixels (height × width)" in told and "32 of 12 codes, in 8 rows of 4" in told
    assert "image_size = [ 16, 8, ]" in shown and "image tokens seen" not in shown
    assert "key-value cache" in planned and "training time" not in planned
    assert "64 of 12 codes" in line("show", exported, "--size", "16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--size 16x", "expected a side in pixels such as 64, or HEIGHTxWIDTH such as 64x32"),
        ("--size 0", "expected a side in pixels"),
        ("--size 16x8x8", "expected a side in pixels"),
        ("--size 15x8", "[tokenizer] maskgit-vqgan: image_size (15 × 8) must be a multiple of 2"),
    ],
)
def test_sizes_that_are_none_are_told_in_a_line(options: str, message: str, line: Line, exported: Path) -> None:
    told = line("sample", exported, "--classes", "cat", "--grid", "out.png", *options.split(), code=2)
    assert message in told and "Traceback" not in told


def test_what_needs_squares_says_so(line: Line, exported: Path, tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    for command in ("run", "tokens", "train", "evaluate"):
        told = line(command, "mnist", "--set", "tokenizer.image_size=[32,64]", f"--out={tmp_path}", code=2)
        assert "mnist: [tokenizer] image_size: 32 × 64 pixels are no square, and a run reads, trains on and" in told
        assert "sample RUN/train/model.safetensors --size 32x64" in told and "Traceback" not in told
    told = line("sample", "mnist", "--size", "32x64", "--to-folder", tmp_path / "pngs", code=2)
    assert "--size: give the model instead, RUN/train/model.safetensors" in told
    with pytest.raises(RearkitError, match=r"image_size: 8 × 16 pixels are no square, and only sampling and"):
        load_images(tiny(tokenizer={"image_size": [8, 16]}))


def test_a_backbone_that_knows_squares_alone_says_so(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiTAR, "any_grid", False)
    with pytest.raises(RecipeError, match=r"\[backbone\] dit-ar: knows square grids alone, .* has 8 × 4 tokens"):
        load_model(exported, image_size=(16, 8))
    assert load_model(exported, image_size=16).space.grid == (8, 8)
    # One that says so, and has tables of positions all the same.
    monkeypatch.setattr(DiTAR, "any_grid", True)
    monkeypatch.setattr(DiTAR, "adapted", Backbone.adapted)
    with pytest.raises(WeightsError, match=r"cannot take its pos_embed.* over to 16 × 8 pixels; choose a size"):
        load_model(exported, image_size=(16, 8))


@settings
class Squares:
    """Has one side."""

    image_size: int = setting("side", default=8)


def test_a_tokenizer_of_squares_says_so(tiny: Callable[..., Recipe]) -> None:
    Component("tokenizer", "squares", Squares, lambda made: None)  # which reads the types
    table = attrs.evolve(tiny().tokenizer, name="squares", settings=Squares())
    recipe = attrs.evolve(tiny(), tokenizer=table)
    assert resized(recipe, (16, 16)).tokenizer.settings.image_size == 16
    with pytest.raises(WeightsError, match=r"\[tokenizer\] squares: has squares alone, and 16 × 8 pixels are none"):
        resized(recipe, (16, 8))
