"""The LlamaGen plugin as its users have it: pip-installed, recipes shown, digits run; and refused without it."""

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
PROJECT = ROOT / "plugins" / "rearkit-llamagen"
DIGITS = PROJECT / "mnist.toml"
REFERENCE = ROOT / "tests" / "reference"
# Parameters, guidance scale, the block that the decode head reads.
PUBLISHED = {"b": (111e6, 2.0, 9), "l": (343e6, 2.0, 18), "xl": (775e6, 1.75, 27)}
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
    train, sample = recipe.train, recipe.sample
    found[recipe.name] = {
        "backbone": num_parameters(model.backbone),
        "tokenizer": num_parameters(model.tokenizer),
        "space": [model.space.num_tokens, model.space.codebook_size, model.space.num_classes],
        "embedding_dim": model.tokenizer.embedding_dim,
        "layers": model.objective.layers,
        "sample": [sample.guidance_scale, sample.guidance_schedule, sample.temperature, sample.top_k, sample.top_p],
        "head_dim": model.backbone.head_dim,
        "epochs": train.steps * train.global_batch / recipe.data.source.settings.train_images,
        "train": [train.lr, train.end_lr, *train.betas, train.weight_decay, train.clip, train.label_dropout],
    }
print(json.dumps(found))
"""
# Loads a generator's file into a backbone for 36 tokens; prints what else was in it, or why it was refused.
LOAD = """
import json, sys, rearkit
from rearkit.contracts import TokenSpace
from rearkit.errors import WeightsError
from rearkit.registry.plugins import registry
from rearkit.weights import load_weights
component = registry().get("backbone", "llamagen-gpt")
for layers in (3, 2):
    sizes = {"hidden_size": 64, "num_layers": layers, "num_heads": 4}
    backbone = rearkit.make("backbone", "llamagen-gpt", TokenSpace(36, 40, 7), **sizes)
    try:
        print(sorted(load_weights(backbone, sys.argv[1], component)))
    except WeightsError as error:
        print(error)
"""


def test_recipes_have_the_published_sizes_and_training(install: Callable[[Path], Path]) -> None:
    site = install(PROJECT)
    paths = [str(ROOT / "recipes" / f"{kind}_{size}_llamagen.toml") for kind in ("rear", "ar") for size in PUBLISHED]
    done = subprocess.run(
        [sys.executable, "-c", COUNT, *paths], env={"PYTHONPATH": f"{site}:{ROOT}"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for size, (parameters, scale, decode_layer) in PUBLISHED.items():
        for kind, layers in (("rear", [0, decode_layer]), ("ar", [])):
            one = found[f"{kind}_{size}_llamagen"]
            assert one["backbone"] == pytest.approx(parameters, rel=0.01)
            assert one["tokenizer"] == pytest.approx(72e6, rel=0.01)
            assert one["space"] == [16 * 16, 16384, 1000]
            assert one["embedding_dim"] == 8
            assert one["head_dim"] == 64
            assert one["sample"] == [scale, "constant", 1.0, 0, 1.0]
            assert one["epochs"] == pytest.approx(300, abs=0.01)
            assert one["train"] == [1e-4, 1e-4, 0.9, 0.95, 0.05, 1.0, 0.1]
            assert one["layers"] == layers


@pytest.mark.slow
def test_weights_in_the_published_layout_are_told_apart(
    install: Callable[[Path], Path], rearkit: Command, tmp_path: Path
) -> None:
    site = install(PROJECT)
    components = {"tiny_llamagen_ar": "backbone llamagen-gpt", "tiny_llamagen_vq": "tokenizer llamagen-vq"}
    for name, component in components.items():
        source, ours, back = REFERENCE / f"{name}.weights.safetensors", tmp_path / "ours.pt", tmp_path / "back.pt"
        for origin, target, to in ((source, ours, "rearkit"), (ours, back, "published")):
            done = rearkit("convert", str(origin), str(target), "--to", to, path=[site])
            assert done.returncode == 0, done.stderr
            assert f"weights of {component} in the layout of {to}" in done.stdout
        first, last = load_file(source), torch.load(back, weights_only=True)
        assert first.keys() == last.keys()
        assert all(torch.equal(first[key], last[key]) for key in first)


def test_a_trainers_checkpoint_is_loaded_without_its_tables_and_refused_where_sizes_differ(
    install: Callable[[Path], Path], tmp_path: Path
) -> None:
    site, file = install(PROJECT), tmp_path / "c2i.pt"
    state = load_file(REFERENCE / "tiny_llamagen_ar.weights.safetensors")
    # Positions for more tokens than the backbone has.
    tables = {"freqs_cis": torch.zeros(50, 8, 2), "layers.0.attention.kv_cache.k_cache": torch.zeros(2, 4, 50, 16)}
    torch.save({"model": state | tables, "steps": 7}, file)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(file)], env={"PYTHONPATH": f"{site}:{ROOT}"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "['freqs_cis', 'layers.0.attention.kv_cache.k_cache']" in done.stdout
    assert "these weights need hidden_size = 64, num_layers = 3" in done.stdout


@pytest.mark.slow
def test_digits_from_end_to_end(install: Callable[[Path], Path], rearkit: Command, tmp_path: Path) -> None:
    site = install(PROJECT)
    done = rearkit("run", str(DIGITS), "--out", str(tmp_path / "run"), path=[site])
    assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["class_agreement"] > 0.2, scores  # by chance 0.1
    assert (tmp_path / "run" / "report.html").is_file()
    assert rearkit("run", str(DIGITS), "--out", str(tmp_path / "run"), path=[site]).stdout.count("up to date") == 6
