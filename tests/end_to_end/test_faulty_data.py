"""Shards as they come: each fault gives one clear line, or a counted and logged skip."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from tests.helpers.command import rearkit

COUNT = 40
Run = Callable[..., str]

RECIPE = """
name = "faulty"
device = "cpu"

[data]
max_bad_share = {max_bad_share}

[data.source]
name = "shards"
train = "{shards}"
num_classes = 4

[tokenizer]
name = "maskgit-vqgan"
image_size = 16
hidden_channels = 8
channel_mult = [1, 1]
num_res_blocks = 1
norm_groups = 4
codebook_size = 16
embedding_dim = 8

[tokenizer.fit]
steps = 3
batch = 8
warmup_steps = 1

[backbone]
name = "dit-ar"
hidden_size = 16
num_layers = 2
num_heads = 2

[train]
steps = 2
global_batch = 4

[sample]
num_images = 6
"""


def png(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(index).integers(256, size=(16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(folder: Path, faults: dict[int, dict[str, Any]] | None = None) -> Path:
    """Write a shard; samples at some places are changed, or lose what is None."""
    folder.mkdir()
    path = folder / "000000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for index in range(COUNT):
            sample = {"__key__": f"image-{index:03d}", "png": png(index), "cls": index % 4}
            sample |= (faults or {}).get(index, {})
            writer.write({key: value for key, value in sample.items() if value is not None})
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Commands on the shards, with a largest share of bad samples and the exit code that the last one must have."""

    def call(max_bad_share: float, code: int, *stages: str) -> str:
        recipe = tmp_path / "faulty.toml"
        recipe.write_text(RECIPE.format(shards=tmp_path / "shards", max_bad_share=max_bad_share))
        *before, last = stages or ("run",)
        told = [rearkit(stage, recipe, f"--out={tmp_path / 'run'}") for stage in before]
        return "".join([*told, rearkit(last, recipe, f"--out={tmp_path / 'run'}", code=code)])

    return call


def test_an_empty_folder_of_shards(tmp_path: Path, run: Run) -> None:
    (tmp_path / "shards").mkdir()
    output = run(0.1, 3)
    assert output.count("error:") == 1
    assert f"[data.source] {tmp_path / 'shards'}: no .tar shards in this folder" in output


FAULTS = {
    "an undecodable image": ({"png": b"no picture"}, "cannot be decoded"),
    "a missing label": ({"cls": None}, "label"),
    "a label in words": ({"cls": b"tench"}, "label"),
}


def test_bad_samples_are_skipped_and_logged_up_to_the_limit(tmp_path: Path, run: Run) -> None:
    shard(tmp_path / "shards", {at: change for at, (change, _) in enumerate(FAULTS.values(), start=7)})
    run(0.1, 0, "data", "tokenizer", "tokens")
    lines = [json.loads(line) for line in (tmp_path / "run" / "tokens" / "skipped.jsonl").read_text().splitlines()]
    for at, (line, (_, reason)) in enumerate(zip(lines, FAULTS.values(), strict=True), start=7):
        assert f"image-{at:03d}" in line["where"] and reason in line["reason"] and line["samples"] == 1
    assert json.loads((tmp_path / "run/tokens/stage.json").read_text())["result"]["train_views"] == COUNT - len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_sample_stops_the_run_where_none_is_allowed(fault: str, tmp_path: Path, run: Run) -> None:
    shard(tmp_path / "shards", {7: FAULTS[fault][0]})
    output = run(0, 3)
    assert output.count("error:") == 1 and "image-007" in output and "max_bad_share" in output


def test_a_label_that_is_no_class_stops_the_run_whatever_may_be_skipped(tmp_path: Path, run: Run) -> None:
    shard(tmp_path / "shards", {7: {"cls": 4}})
    output = run(1, 3)
    assert output.count("error:") == 1 and "image-007: label 4 out of range 0 to 3" in output


def test_a_truncated_tar(tmp_path: Path, run: Run) -> None:
    path = shard(tmp_path / "shards")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 + 300])
    output = run(0, 3)
    assert output.count("error:") == 1 and "000000.tar" in output and "truncated" in output
    run(1, 0, "data", "tokenizer", "tokens")
    views = json.loads((tmp_path / "run/tokens/stage.json").read_text())["result"]["train_views"]
    assert COUNT // 2 - 5 < views < COUNT // 2 + 5
