"""A trained model needs neither the photographs that it was trained on nor the run's folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from PIL import Image

from tests.helpers.command import rearkit

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"
NAMES = ("apple", "pear", "plum")


def write_photographs(folder: Path, per_class: int) -> None:
    generator = np.random.default_rng(0)
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose photographs have moved away, with one more class beside them."""
    home = tmp_path_factory.mktemp("home")
    write_photographs(home / "photos" / "train", 20)
    write_photographs(home / "photos" / "held", 5)
    recipe = {
        "extends": str(SMOKE),
        "name": "fruit",
        "device": "cpu",
        "data": {"source": {"name": "folder", "train": "photos/train", "held_out": "photos/held"}},
        "tokenizer": {"fit": {"steps": 3, "warmup_steps": 1, "min_psnr": 0.0}},
        "tokens": {"check_images": 5, "min_psnr": 0.0, "min_codebook_use": 0.0},
        "train": {"steps": 2, "warmup_steps": 1, "checkpoint_every": 2, "validate_every": 0},
        "sample": {"num_images": 6, "batch": 6},
        "evaluate": {"classifier": {"steps": 2, "min_accuracy": 0.0}},
    }
    (home / "fruit.toml").write_text(tomli_w.dumps(recipe))
    rearkit("run", "fruit.toml", cwd=home)
    (home / "photos" / "train" / "quince").mkdir()
    shutil.move(home / "photos", home / "elsewhere")
    return home


def test_run_again_has_nothing_to_do(run: Path) -> None:
    assert "nothing to do" in rearkit("run", "fruit.toml", cwd=run)


def test_an_extra_folder_of_the_source_changes_nothing(run: Path) -> None:
    shutil.copytree(run / "elsewhere", run / "photos")
    try:
        output = rearkit("sample", "fruit.toml", "--classes", "plum", "--grid", "plum.png", "--per-class=1", cwd=run)
    finally:
        shutil.rmtree(run / "photos")
    assert "row 1: class 2, plum" in output


def test_classes_are_sampled_by_their_names(run: Path) -> None:
    output = rearkit("sample", "fruit.toml", "--classes", "pear", "--grid", "pear.png", "--per-class=1", cwd=run)
    assert "row 1: class 1, pear" in output
    assert (run / "pear.png").is_file()


def test_an_exported_model_is_loaded_in_another_process_and_folder(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "runs" / "fruit" / "train", tmp_path / "moved" / "train")
    shutil.copytree(run / "runs" / "fruit" / "tokenizer", tmp_path / "moved" / "tokenizer")
    script = (
        "import json, rearkit; model = rearkit.load_model('moved/train/model.safetensors');"
        "made = rearkit.sample(model, [0, 2]);"
        "print(json.dumps([model.classes.number, model.classes.names, made.images.shape]))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [3, list(NAMES), [2, 32, 32, 3]]


def test_its_samples_are_evaluated(run: Path) -> None:
    (run / "runs" / "fruit" / "evaluate" / "stage.json").unlink()
    assert "evaluate: FID" in rearkit("evaluate", "fruit.toml", cwd=run)


def test_it_is_diagnosed(run: Path) -> None:
    output = rearkit("diagnose", "runs/fruit", "--images=10", "--page", "page.html", cwd=run)
    assert "cross-entropy" in output
