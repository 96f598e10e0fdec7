"""Images without classes, from a flat folder and from shards without labels, to an unconditional model's scores."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner, Result
from PIL import Image
from torch_fidelity.metric_fid import KEY_METRIC_FID

from rearkit.cli.main import cli
from rearkit.components.datasets.folder import Folder, FolderSettings
from rearkit.components.datasets.shards import Shards
from rearkit.data.image_shards import read_headers
from rearkit.data.shard_members import Fields
from rearkit.errors import DataError, RearkitError
from rearkit.evaluation import fidelity

COUNT = 40

RECIPE = """
name = "unlabelled"
device = "cpu"

[data.source]
{source}
unlabelled = true

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

[evaluate]
feature_weights = "{weights}"
"""


def jpeg(index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(index).integers(256, size=(20, 16, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def flat(place: Path) -> str:
    for split in ("train", "val"):
        (place / split / "deeper.one").mkdir(parents=True)
        for index in range(COUNT):
            below = "deeper.one" if index % 4 == 0 else ""
            (place / split / below / f"DSC.{index:03d}.JPG").write_bytes(jpeg(index))
    return f'name = "folder"\ntrain = "{place / "train"}"\nheld_out = "{place / "val"}"'


def shards(place: Path) -> str:
    for split in ("train", "val"):
        (place / split).mkdir(parents=True)
        with webdataset.TarWriter(str(place / split / "0.tar")) as writer:
            for index in range(COUNT):
                writer.write({"__key__": f"{index:03d}", "jpg": jpeg(index), "txt": "a caption"})
    return f'name = "shards"\ntrain = "{place / "train"}"\nheld_out = "{place / "val"}"'


def rearkit(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def told(result: Result) -> str:
    """What a refused command says."""
    assert isinstance(result.exception, RearkitError), result.exception
    return str(result.exception)


@pytest.mark.slow
def test_a_flat_folder_to_scores(tmp_path: Path, inception: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Eigenvalues of 2048 × 2048 take most of the time, and are tested elsewhere.
    means = lambda a, b, verbose: {KEY_METRIC_FID: float(((a["mu"] - b["mu"]) ** 2).sum())}  # noqa: E731
    monkeypatch.setattr(fidelity, "fid_statistics_to_metric", means)
    monkeypatch.setenv("REARKIT_CACHE", str(tmp_path / "features"))
    recipe = tmp_path / "unlabelled.toml"
    recipe.write_text(RECIPE.format(source=flat(tmp_path / "photos"), weights=inception))
    done = rearkit("run", str(recipe), f"--out={tmp_path / 'run'}")
    assert done.exit_code == 0, done.output
    assert f"{COUNT} training and {COUNT} held-out images" in done.output
    listing = json.loads((tmp_path / "run/data/shards.json").read_text())
    assert listing["num_classes"] == 1 and listing["class_names"] == ["unlabelled"]
    scores = json.loads((tmp_path / "run/scores.json").read_text())
    assert scores["class_agreement"] is None and scores["num_samples"] == 6
    assert not any("class" in warning for warning in scores["warnings"]), scores["warnings"]


@pytest.mark.slow
def test_shards_without_labels_to_tokens(tmp_path: Path, inception: Path) -> None:
    recipe = tmp_path / "unlabelled.toml"
    recipe.write_text(RECIPE.format(source=shards(tmp_path / "photos"), weights=inception))
    for stage in ("data", "tokenizer", "tokens"):
        done = rearkit(stage, str(recipe), f"--out={tmp_path / 'run'}")
        assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "run/tokens/stage.json").read_text())["result"]
    assert result["train_views"] == COUNT and result["skipped"] == {}


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("sample.guidance_scale=2", "[sample] guidance_scale: images are unlabelled, so there is no class to guide to"),
        ('evaluate.features="classifier"', "[evaluate] features: images are unlabelled, and a classifier needs"),
        ("data.source.num_classes=10", "unlabelled = true leaves no use for num_classes = 10"),
        ('data.source.label="json:x"', "unlabelled = true leaves no use for label = 'json:x'"),
    ],
)
def test_what_needs_classes_is_refused_with_a_reason(setting: str, reason: str, tmp_path: Path) -> None:
    recipe = tmp_path / "unlabelled.toml"
    recipe.write_text(RECIPE.format(source='name = "shards"\ntrain = "nowhere"', weights="none"))
    message = told(rearkit("show", str(recipe), "--set", setting))
    assert reason in message and "\n" not in message.strip()


def test_images_without_classes_are_refused_with_the_remedy_where_nothing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_classes is missing; unlabelled = true takes images without classes"):
        Shards(train="x")
    place = tmp_path / "photos"
    shards(place)
    with tarfile.open(place / "bare.tar", "w") as bare:
        for index in range(3):
            (place / f"{index}.jpg").write_bytes(jpeg(index))
            bare.add(place / f"{index}.jpg", f"{index}.jpg")
    with pytest.raises(DataError, match=r"no sample has an image and a label.*unlabelled = true takes images without"):
        read_headers(str(place / "bare.tar"))
    assert read_headers(str(place / "bare.tar"), Fields(unlabelled=True)).samples == 3
    for index in range(3):
        (place / f"{index}.jpg").rename(place / "train" / f"{index}.jpg")
    with pytest.raises(DataError, match=r"no class folders in this folder, and images right in it; unlabelled = true"):
        Folder(FolderSettings(train=str(place / "train"), held_out=str(place / "train")))


def test_a_flat_folder_becomes_shards_without_labels(tmp_path: Path) -> None:
    flat(tmp_path)
    done = rearkit("data", f"--from-folder={tmp_path / 'train'}", f"--to={tmp_path / 'out'}", "--unlabelled")
    assert done.exit_code == 0, done.output
    with tarfile.open(tmp_path / "out" / "000000.tar") as archive:
        assert {Path(name).suffix for name in archive.getnames()} == {".jpg"} and len(archive.getnames()) == COUNT
    assert not (tmp_path / "out" / "classes.json").exists()
    found = Shards(train=str(tmp_path / "out"), unlabelled=True)
    assert found.num_classes == 1 and found.class_names() == ["unlabelled"]
