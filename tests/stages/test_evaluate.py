"""The stage ``evaluate`` in Inception's space, as the ImageNet recipes have it, at the size of a few digits."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch_fidelity.metric_fid import KEY_METRIC_FID

from rearkit.evaluation import fidelity
from rearkit.model import build_tokenizer
from rearkit.recipe.loading import load_recipe
from rearkit.recipe.tables import Recipe
from rearkit.sampling.manifest import MEMBER, read_manifest
from rearkit.stages import data
from rearkit.stages import evaluate as stage
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import run_stage
from rearkit.weights import write_state_dict

NPZ = "samples.npz"
WEIGHTS = "tokenizer.safetensors"

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"
MANIFEST = {"format": 1, "num_images": 10, "recipe": {"name": "mine"}}


@pytest.fixture(scope="module")
def recipe(inception: Path) -> Callable[..., Recipe]:
    """The smoke recipe with few images and Inception's features; more changes may be given."""
    changes = [
        "data.source.train_per_class=2", "data.source.held_out_per_class=1", "evaluate.max_reference=10",
        "evaluate.features='inception'", f"evaluate.feature_weights='{inception}'",
    ]  # fmt: skip
    return lambda *more: load_recipe(SMOKE, [*changes, *more])


@pytest.fixture(scope="module")
def folder(recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with data, an untrained tokenizer, and noise for samples."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "smoke")
    run_stage(data.STAGE, recipe(), folder)
    tokenizer = build_tokenizer(recipe(), load=False)
    write_state_dict(folder.stage("tokenizer") / WEIGHTS, tokenizer.state_dict())
    npz = folder.stage("sample") / NPZ
    npz.parent.mkdir()
    np.savez(npz, noise(32), arr_1=np.arange(10))
    with zipfile.ZipFile(npz, "a") as archive:
        archive.writestr(MEMBER, json.dumps(MANIFEST))
    return folder


@pytest.fixture(autouse=True)
def quick(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eigenvalues of 2048 × 2048 take most of the time, and are tested elsewhere; features are kept for all tests."""
    monkeypatch.setenv("REARKIT_CACHE", str(tmp_path_factory.getbasetemp() / "features"))
    means = lambda a, b, verbose: {KEY_METRIC_FID: float(((a["mu"] - b["mu"]) ** 2).sum())}  # noqa: E731
    monkeypatch.setattr(fidelity, "fid_statistics_to_metric", means)


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10, side, side, 3), dtype=np.uint8)


def test_samples_are_scored_against_training_images(
    recipe: Callable[..., Recipe], folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = stage.run(recipe(), folder)
    assert outcome.outputs == ("scores.json", "nearest.png")
    assert all((folder.stage("evaluate") / name).is_file() for name in outcome.outputs)
    scores = outcome.result
    assert scores == json.loads(folder.scores.read_text())
    assert scores["feature_space"].startswith("Inception-v3")
    assert (scores["num_samples"], scores["num_held_out"], scores["reference"]) == (10, 10, "10 training images")
    assert scores["fid"] > scores["fid_floor"] > 0
    assert (scores["tokenizer"]["num_images"], scores["tokenizer"]["images"]) == (10, "held-out")
    assert scores["nearest"]["among"] == "training images"
    said = capsys.readouterr().out
    assert "evaluate: samples: recipe mine" in said and "evaluate: FID" in said


def test_a_reference_of_another_size_is_warned_of(
    recipe: Callable[..., Recipe], folder: RunFolder, tmp_path: Path
) -> None:
    np.savez(tmp_path / "reference.npz", noise(16))
    outcome = stage.run(recipe(f"evaluate.reference='{tmp_path / 'reference.npz'}'"), folder)
    assert "samples are of 32 pixels a side, the reference's images of 16" in outcome.result["warnings"]
    assert outcome.result["nearest"]["among"] == "the images of reference.npz"


def test_the_tokenizer_alone_is_scored_on_held_out_images(recipe: Callable[..., Recipe], folder: RunFolder) -> None:
    found = stage.score_tokenizer(recipe(), folder)
    assert (found.num_images, found.images) == (10, "held-out")
    assert found.rfid > 0 and 0 < found.codebook_use <= 1


def test_a_reference_of_the_training_images_gives_the_runs_own_fid(
    recipe: Callable[..., Recipe], folder: RunFolder, tmp_path: Path
) -> None:
    own = stage.run(recipe(), folder).result
    assert stage.training_reference(recipe(), folder, tmp_path / "made.npz") == 10
    found = stage.run(recipe(f"evaluate.reference='{tmp_path / 'made.npz'}'"), folder).result
    assert {key: found[key] for key in ("fid", "sfid", "precision", "recall")} == {
        key: own[key] for key in ("fid", "sfid", "precision", "recall")
    }
    manifest = read_manifest(tmp_path / "made.npz")
    assert manifest is not None and manifest["recipe"]["data"]["source"]["name"] == "mnist-5k"
    assert found["warnings"] == own["warnings"]
