"""``hf://…`` wherever a file of weights, a reference or a token file is named, against a stand-in of the hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_stand_in
import numpy as np
import pytest
import tomli_w
import torch

from rearkit.contracts import Classes
from rearkit.evaluation.classifier import Classifier, save_classifier
from rearkit.model import build, build_tokenizer
from rearkit.recipe.loading import load_recipe, recipe_to_dict
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.train import export
from rearkit.weights import write_state_dict

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"
TOKENIZER = "hf://me/repo/tokenizer.safetensors"


def with_weights() -> dict[str, Any]:
    """The smoke recipe with a tokenizer from the hub."""
    content = recipe_to_dict(load_recipe(SMOKE))
    del content["tokenizer"]["fit"]
    content["tokenizer"]["weights"] = TOKENIZER
    return content


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub_stand_in.Hub]:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    save_classifier(Classifier(3, 4, 6), folder / "classifier.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "reference.npz", images)
    recipe = load_recipe(with_weights())
    tokenizer = build_tokenizer(recipe, load=False)
    write_state_dict(folder / "tokenizer.safetensors", tokenizer.state_dict())
    run = RunFolder(tmp_path_factory.mktemp("run"))
    export(build(recipe, tokenizer, Classes(10)), 0, run)
    (folder / "model.safetensors").write_bytes(run.model.read_bytes())
    # As `export` writes it: the tokenizer lies beside the model.
    alone = RunFolder(tmp_path_factory.mktemp("alone"))
    export(build(load_recipe(SMOKE), tokenizer, Classes(10)), 0, alone)
    lines = "".join(json.dumps({"class_id": k % 4, "tokens": [k, 1, 2, 3]}) + "\n" for k in range(40))
    with hub_stand_in.serving() as server:
        for path in folder.iterdir():
            server.files["me/repo", path.name] = path.read_bytes()
        server.files["me/alone", "model.safetensors"] = alone.model.read_bytes()
        server.files["me/alone", "tokenizer.safetensors"] = (folder / "tokenizer.safetensors").read_bytes()
        server.files["datasets/me/set", "tokens.jsonl"] = lines.encode()
        yield server


@pytest.fixture
def rearkit(hub: hub_stand_in.Hub, tmp_path: Path) -> Callable[..., str]:
    def run(*arguments: object, code: int = 0, **environment: str) -> str:
        plain = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        ours = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint, "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-m", "rearkit", *map(str, arguments)],
            env=plain | ours | {"OMP_NUM_THREADS": "1", "REARKIT_CACHE": str(tmp_path / "cache")} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_a_token_file_is_converted(rearkit: Callable[..., str], tmp_path: Path) -> None:
    told = rearkit("tokens", "--from-jsonl", "hf://datasets/me/set/tokens.jsonl", "--to", tmp_path / "tokens")
    assert "1 token shards" in told and (tmp_path / "tokens" / "train-000000.tar").is_file()


def test_samples_are_scored_by_files_of_the_hub(rearkit: Callable[..., str], tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images)
    told = rearkit("evaluate", "--samples", tmp_path / "x.npz", "--reference", "hf://me/repo@v1/reference.npz",
                   "--feature-weights", "hf://me/repo/classifier.safetensors")  # fmt: skip
    assert "12 samples against reference.npz" in told


@pytest.mark.slow
def test_a_recipe_names_weights_and_its_record_says_which(
    rearkit: Callable[..., str], hub: hub_stand_in.Hub, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(tomli_w.dumps(with_weights()))
    for stage in ("data", "tokenizer"):
        rearkit(stage, recipe, f"--out={tmp_path / 'run'}")
    record: dict[str, Any] = json.loads((tmp_path / "run" / "tokenizer" / "stage.json").read_text())
    digest = hashlib.sha256(hub.files["me/repo", "tokenizer.safetensors"]).hexdigest()
    assert record["result"]["hub"] == {TOKENIZER: {"revision": hub_stand_in.COMMIT, "sha256": digest, "etag": digest}}
    assert "tokenizer: up to date" in rearkit("tokenizer", recipe, f"--out={tmp_path / 'run'}", HF_HUB_OFFLINE="1")
    # A name that is wrong stops the run before its first stage.
    recipe.write_text(recipe.read_text().replace(TOKENIZER, "hf://me/repo/gone.safetensors"))
    told = rearkit("run", recipe, f"--out={tmp_path / 'other'}", code=2)
    assert "[tokenizer] weights: hf://me/repo/gone.safetensors: no such file in the repository" in told
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_model_is_sampled_with_the_tokenizer_that_it_names(rearkit: Callable[..., str], tmp_path: Path) -> None:
    model = ("hf://me/repo/model.safetensors", "--trust")
    rearkit("sample", *model, "--set=sample.num_images=4", "--to-folder", tmp_path / "pngs")
    assert len(list((tmp_path / "pngs").glob("*.png"))) == 4
    manifest = json.loads((tmp_path / "pngs" / "manifest.json").read_text())
    assert manifest["hub"][TOKENIZER]["revision"] == hub_stand_in.COMMIT


@pytest.mark.slow
def test_a_model_is_sampled_with_the_tokenizer_beside_it(rearkit: Callable[..., str], tmp_path: Path) -> None:
    rearkit("sample", "hf://me/alone/model.safetensors", "--set=sample.num_images=4", "--to-folder", tmp_path / "pngs")
    assert len(list((tmp_path / "pngs").glob("*.png"))) == 4


def test_token_shards_are_no_file_of_the_hub(rearkit: Callable[..., str], tmp_path: Path) -> None:
    told = rearkit("run", SMOKE, "--set", "tokens.pretokenized=hf://datasets/me/set/train-000000.tar",
                   f"--out={tmp_path / 'run'}", code=2)  # fmt: skip
    assert "[tokens] pretokenized: " in told and "tokens --from-jsonl hf://" in told
