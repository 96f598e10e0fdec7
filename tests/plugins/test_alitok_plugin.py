"""The AliTok plugin as its users have it: pip-installed, its recipes shown, its digits run; and refused without it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

Command = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "plugins" / "rearkit-alitok"
DIGITS = PROJECT / "mnist.toml"
REFERENCE = ROOT / "tests" / "reference"
PUBLISHED_TOKENIZER = """
name = "published"
[data.source]
name = "mnist-5k"
image_size = 256
train_per_class = 1
held_out_per_class = 1
[tokenizer]
name = "alitok"
weights = "WEIGHTS"
codebook_size = 48
embedding_dim = 8
encoder_width = 32
encoder_layers = 2
encoder_heads = 2
decoder_width = 32
decoder_layers = 2
decoder_heads = 4
[backbone]
name = "alitok-ar"
hidden_size = 64
num_layers = 1
[train]
steps = 1
global_batch = 2
[sample]
num_images = 2
"""
PUBLISHED = {"b": (177e6, 16.0, 1.8), "l": (318e6, 6.0, 0.7), "xl": (662e6, 13.0, 1.4)}
# Counted without memory for the weights, which are several gigabytes.
COUNT = """
import json, sys, torch, rearkit
from rearkit.contracts import num_parameters
from rearkit.model import build_tokenizer
found = {}
for path in sys.argv[1:]:
    recipe = rearkit.load_recipe(path)
    with torch.device("meta"):
        model = rearkit.build(recipe, build_tokenizer(recipe, load=False))
    found[recipe.name] = {
        "backbone": num_parameters(model.backbone),
        "space": [model.space.num_tokens, model.space.codebook_size, model.space.num_classes],
        "embedding_dim": model.tokenizer.embedding_dim,
        "layers": model.objective.layers,
        "guidance": [recipe.sample.guidance_scale, recipe.sample.guidance_power],
        "heads": model.backbone.num_heads,
    }
print(json.dumps(found))
"""


def test_recipes_have_the_published_sizes(install: Callable[[Path], Path]) -> None:
    site = install(PROJECT)
    paths = [str(ROOT / "recipes" / f"{kind}_{size}_alitok.toml") for kind in ("rear", "ar") for size in PUBLISHED]
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *paths], env={"PYTHONPATH": f"{site}:{ROOT}"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for size, (parameters, scale, power) in PUBLISHED.items():
        for kind, layers in (("rear", [0, 24 if size == "xl" else 18]), ("ar", [])):
            one = found[f"{kind}_{size}_alitok"]
            assert one["backbone"] == pytest.approx(parameters, rel=0.01)
            assert one["space"] == [17 + 16 * 16, 4096, 1000]
            assert one["embedding_dim"] == 32
            assert one["heads"] == 16
            assert one["guidance"] == [scale, power]
            assert one["layers"] == layers


@pytest.mark.slow
def test_weights_in_the_published_layout_are_told_apart(
    install: Callable[[Path], Path], rearkit: Command, tmp_path: Path
) -> None:
    site = install(PROJECT)
    for name, component in (("tiny_alitok_ar", "backbone alitok-ar"), ("tiny_alitok_tokenizer", "tokenizer alitok")):
        source, ours, back = REFERENCE / f"{name}.weights.safetensors", tmp_path / "ours.pt", tmp_path / "back.pt"
        for origin, target, to in ((source, ours, "rearkit"), (ours, back, "published")):
            done = rearkit("convert", str(origin), str(target), "--to", to, path=[site])
            assert done.returncode == 0, done.stderr
            assert f"weights of {component} in the layout of {to}" in done.stdout
        first, last = load_file(source), torch.load(back, weights_only=True)
        assert first.keys() == last.keys()
        assert all(torch.equal(first[key], last[key]) for key in first)


@pytest.mark.slow
def test_published_weights_are_loaded_by_name_and_others_refused_with_the_sizes_that_they_need(
    install: Callable[[Path], Path], rearkit: Command, tmp_path: Path
) -> None:
    site = install(PROJECT)
    recipe, run = tmp_path / "published.toml", str(tmp_path / "run")
    weights = REFERENCE / "tiny_alitok_tokenizer.weights.safetensors"
    recipe.write_text(PUBLISHED_TOKENIZER.replace("WEIGHTS", str(weights)), encoding="utf-8")
    for stage in ("data", "tokenizer", "tokens"):
        done = rearkit(stage, str(recipe), "--out", run, path=[site])
        assert done.returncode == 0, done.stdout + done.stderr
    saved, published = load_file(Path(run, "tokenizer", "tokenizer.safetensors")), load_file(weights)
    assert all(torch.equal(saved[key], published[key]) for key in published)

    other = f"backbone.weights={REFERENCE / 'tiny_alitok_ar.weights.safetensors'}"  # of 24 codes, not 48
    refused = rearkit("train", str(recipe), "--out", run, "--set", other, path=[site])
    assert refused.returncode != 0
    assert "of another shape" in refused.stderr
    assert "these weights need hidden_size = 32, num_layers = 2, num_heads = 2" in refused.stderr


@pytest.mark.slow
def test_digits_from_end_to_end(install: Callable[[Path], Path], rearkit: Command, tmp_path: Path) -> None:
    site = install(PROJECT)
    done = rearkit("run", str(DIGITS), "--out", str(tmp_path / "run"), path=[site])
    assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["class_agreement"] > 0.2, scores  # by chance 0.1
    assert (tmp_path / "run" / "report.html").is_file()
    assert rearkit("run", str(DIGITS), "--out", str(tmp_path / "run"), path=[site]).stdout.count("up to date") == 6
