"""Sampling a set through the command line: killed, gone on with, on one rank and two, and single images of classes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rearkit import pipeline
from rearkit.cli.main import main
from rearkit.evaluation.image_folders import open_samples
from rearkit.recipe.loading import load_recipe
from rearkit.sampling.manifest import read_manifest
from tests.helpers.command import rearkit

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.toml"
TINY = [
    f"--set={setting}"
    for setting in (
        "train.steps=6", "train.warmup_steps=2", "tokenizer.fit.steps=6", "sample.num_images=64", "sample.batch=8",
        "tokens.min_psnr=0", "tokens.min_codebook_use=0", "tokenizer.fit.min_psnr=0",
    )
]  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rearkit", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def in_ranks(*arguments: str) -> str:
    """Run a command that starts processes of its own."""
    process = start(*arguments)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sampling") / "run"
    recipe = load_recipe(SMOKE, [option.removeprefix("--set=") for option in TINY])
    for stage in ("data", "tokenizer", "tokens"):
        pipeline.run(recipe, out, only=stage)
    rearkit("train", str(SMOKE), *TINY, f"--out={out}")
    return out


def copy(trained: Path, name: str) -> Path:
    out = trained.with_name(name)
    shutil.copytree(trained, out)
    return out


@pytest.fixture(scope="module")
def npz(trained: Path) -> bytes:
    """The samples of one rank, uninterrupted."""
    out = copy(trained, "whole")
    rearkit("sample", str(SMOKE), *TINY, f"--out={out}")
    with np.load(out / "sample" / "samples.npz") as archive:
        assert archive["arr_0"].shape == (64, 32, 32, 3) and archive["arr_0"].dtype == np.uint8
        assert np.bincount(archive["arr_1"]).tolist() == [7] * 4 + [6] * 6
        assert len(np.unique(archive["tokens"], axis=0)) > 32
    return (out / "sample" / "samples.npz").read_bytes()


def arrays(out: Path) -> dict[str, np.ndarray]:
    with np.load(out / "sample" / "samples.npz") as archive:
        return {name: archive[name] for name in ("arr_0", "arr_1", "tokens")}


BATCHES = [pytest.param((f"--set=sample.batch={batch}",), marks=pytest.mark.slow) for batch in (1, 7, 64)]


@pytest.mark.parametrize("options", [("--num-gpus=2",), *BATCHES])
def test_the_same_images_on_two_ranks_and_at_any_batch(options: tuple[str, ...], trained: Path, npz: bytes) -> None:
    out = copy(trained, options[0].strip("-"))
    command = in_ranks if "--num-gpus=2" in options else rearkit
    output = command("sample", str(SMOKE), *TINY, *options, f"--out={out}")
    assert output.count("sample: 64 images") == 1
    found = arrays(out)
    for name, array in arrays(trained.with_name("whole")).items():
        assert np.array_equal(found[name], array), name


def test_killed_and_gone_on_with_none_is_lost_or_made_twice(trained: Path, npz: bytes) -> None:
    out = copy(trained, "killed")
    parts = out / "sample" / "parts"
    process = start("sample", str(SMOKE), *TINY, "--set=sample.batch=1", f"--out={out}")
    deadline = time.monotonic() + 120
    while not len(list(parts.glob("*.safetensors"))) >= 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*.safetensors")}
    assert 5 <= len(kept) < 64
    output = rearkit("sample", str(SMOKE), *TINY, f"--out={out}")
    assert "going on from where it stopped" in output
    found = arrays(out)
    for name, array in arrays(trained.with_name("whole")).items():
        assert np.array_equal(found[name], array), name
    assert not parts.exists()


def pixels(folder: Path) -> np.ndarray:
    """All PNGs of a folder in the order of their names."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def test_a_set_is_written_as_pngs_with_the_same_pixels(trained: Path, npz: bytes, tmp_path: Path) -> None:
    whole, target = trained.with_name("whole"), tmp_path / "pngs"
    expected = arrays(whole)
    assert "up to date" in rearkit("sample", str(SMOKE), *TINY, f"--out={whole}", f"--to-folder={target}")
    assert np.array_equal(pixels(target), expected["arr_0"])
    names = sorted(path.name for path in target.iterdir())
    assert names[:2] == ["000000-class0000.png", "000001-class0001.png"] and names[-1] == "manifest.json"
    found = open_samples(target)
    assert np.array_equal(np.concatenate([part.permute(0, 2, 3, 1) for part in found.batches(7)]), expected["arr_0"])
    assert np.array_equal(found.labels(), expected["arr_1"])  # type: ignore[arg-type]
    assert read_manifest(target) == read_manifest(whole / "sample" / "samples.npz")
    # Cut off, it goes on; a set with other settings is refused.
    kept = {path: path.stat().st_mtime_ns for path in target.glob("*.png")}
    for name in names[10:20]:
        (target / name).unlink()
    rearkit("sample", str(SMOKE), *TINY, f"--out={whole}", f"--to-folder={target}")
    assert np.array_equal(pixels(target), expected["arr_0"])
    assert sum(path.stat().st_mtime_ns == then for path, then in kept.items()) == 54
    model = whole / "train" / "model.safetensors"
    output = rearkit("sample", str(model), "--set=sample.temperature=0.5", f"--to-folder={target}", code=2)
    assert "holds another set of samples" in output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    output = rearkit("sample", str(SMOKE), *TINY, f"--out={whole}", f"--to-folder={tmp_path / 'mine'}", code=2)
    assert "mine: not empty and no folder of samples (it holds thesis.txt)" in output


def test_an_exported_model_is_sampled_into_a_folder(trained: Path, npz: bytes, tmp_path: Path) -> None:
    model = trained.with_name("whole") / "train" / "model.safetensors"
    rearkit("sample", str(model), "--set=sample.num_images=20", f"--to-folder={tmp_path / 'pngs'}")
    assert np.array_equal(pixels(tmp_path / "pngs"), arrays(trained.with_name("whole"))["arr_0"][:20])


@pytest.mark.slow
def test_two_ranks_write_one_folder(trained: Path, npz: bytes, tmp_path: Path) -> None:
    out = copy(trained, "ranks")
    in_ranks("sample", str(SMOKE), *TINY, "--num-gpus=2", f"--out={out}", f"--to-folder={tmp_path / 'pngs'}")
    assert np.array_equal(pixels(tmp_path / "pngs"), arrays(trained.with_name("whole"))["arr_0"])


def test_a_picture_of_a_few_classes(trained: Path, tmp_path: Path) -> None:
    def picture(name: str, classes: str) -> Image.Image:
        path = tmp_path / name
        arguments = ("--classes", classes, "--grid", str(path), "--per-class=2", f"--out={trained}")
        output = rearkit("sample", str(SMOKE), *TINY, *arguments)
        assert f"row 1: class {classes[0]}" in output and "images/s" in output
        return Image.open(path)

    three, one = picture("three.png", "1,7,2"), picture("one.png", "7")
    width, height = one.size
    assert three.size[0] == width and three.size[1] > 2.5 * height
    # Padding of 2 between rows: an image is the same whatever else is asked for.
    row = three.crop((0, height - 2, width, 2 * height - 2))
    assert np.array_equal(np.asarray(row), np.asarray(one))
    assert not list((trained / "sample").glob("*.npz"))


def test_mistakes_in_asking_for_classes_are_told_in_a_line(trained: Path, tmp_path: Path) -> None:
    command = ("sample", str(SMOKE), *TINY)
    assert "go together" in rearkit(*command, "--classes=1", f"--out={trained}", code=2)
    asking = (*command, f"--grid={tmp_path / 'x.png'}")
    assert "no class '12'; there are numbers 0 to 9" in rearkit(*asking, "--classes=1,12", f"--out={trained}", code=2)
    output = rearkit(*asking, "--classes=1", f"--out={tmp_path / 'nowhere'}", code=2)
    assert "has not run to its end; run: python -m rearkit tokenizer" in output
    assert not (tmp_path / "nowhere").exists()


def test_a_part_of_a_photo_is_drawn_anew(trained: Path, tmp_path: Path) -> None:
    photo, mask, grid = (tmp_path / name for name in ("photo.png", "mask.png", "grid.png"))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photo)
    Image.fromarray(np.where(np.arange(32)[:, None] < 16, 0, 255).astype(np.uint8).repeat(32, 1)).save(mask)
    model = trained / "train" / "model.safetensors"
    asking = ("--image", str(photo), "--grid", str(grid), "--class=7,1", "-k3", "--temperature=2", "--fade=0")
    output = rearkit("sample", str(SMOKE), *TINY, *asking, "--mask", str(mask), f"--out={trained}")
    assert "8 of 16 tokens are kept, 8 drawn after them" in output
    assert "the photo, what is kept, 3 alternatives; a row for 7, 1" in output
    picture = np.asarray(Image.open(grid))
    side, scale = 32 * 3 + 2, 3
    assert picture.shape == (2 * side + 2, 5 * side + 2, 3)
    cells = [
        picture[2 + row * side :, 2 + column * side :][: 32 * scale : scale, : 32 * scale : scale]
        for row in range(2)
        for column in range(5)
    ]
    assert all(np.array_equal(cell[:16], pixels[:16]) for cell in cells)
    # Alternatives differ; classes hardly do after six steps.
    assert len({cell[16:].tobytes() for cell in cells[2:5]}) == 3
    # An exported model does the same, and --keep is a mask.
    rearkit("sample", str(model), *asking, "--keep=top")
    assert np.array_equal(np.asarray(Image.open(grid)), picture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mask=x.png",), "--mask, --keep and --fade say what to do with --image"),
        (("--image=x.png", "--grid=y.png"), "--image needs --mask FILE or --keep PART"),
        (("--image=x.png", "--keep=top"), "--image needs --grid FILE"),
        (("--temperature=1",), "--set sample.temperature=VALUE"),
    ],
)
def test_mistakes_in_asking_for_a_part_are_told_in_a_line(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["sample", str(SMOKE), *options])
    assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_photos_are_reconstructed_by_the_tokenizer_of_a_run_or_a_model(trained: Path, tmp_path: Path) -> None:
    photo, target, grid = tmp_path / "photo.png", tmp_path / "rebuilt", tmp_path / "grid.png"
    original = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(original).save(photo)
    command = ("reconstruct", str(SMOKE), str(photo), str(photo), *TINY)
    output = rearkit(*command, f"--out={trained}", f"--to-folder={target}")
    assert output.count("photo.png: PSNR ") == 2 and "SSIM" in output
    kinds = ("difference", "original", "reconstruction", "tokens")
    names = [f"{number:03d}-photo-{kind}.png" for number in range(2) for kind in kinds]
    assert sorted(path.name for path in target.iterdir()) == [*names, "scores.json"]
    assert np.array_equal(np.asarray(Image.open(target / names[1])), original)
    scores = json.loads((target / "scores.json").read_text())
    assert f"PSNR {scores['000-photo']['psnr']:.2f} dB" in output and len(scores["000-photo"]["tokens"]) == 16
    assert "rebuilt: not empty" in rearkit(*command, f"--out={trained}", f"--to-folder={target}", code=2)
    model = trained / "train" / "model.safetensors"
    again = rearkit("reconstruct", str(model), str(photo), f"--grid={grid}")
    assert again.splitlines()[0] == output.splitlines()[0] and Image.open(grid).size == (4 * 98 + 2, 100)
    output = rearkit(*command, f"--out={tmp_path / 'nowhere'}", code=2)
    assert "reconstruct: needs stage 'tokenizer', which has not run to its end; run: python -m rearkit" in output
