"""Hugging Face's datasets, on parquet files and folders written here; the package datasets is needed for most of it."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rearkit.components.datasets.hugging_face import HuggingFace, HuggingFaceSettings
from rearkit.data.bad_samples import BadSamples
from rearkit.data.image_shards import read_images, write_shards
from rearkit.errors import DataError, RecipeError
from rearkit.recipe.loading import load_recipe
from rearkit.registry import plugins
from rearkit.stages.data import load_images
from rearkit.testing import check_component

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="the package datasets is not installed (rearkit[huggingface])"
)
NAMES = ["cat", "dog", "owl"]
Make = Callable[..., HuggingFace]


def picture(number: int, form: str = "jpeg") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    return buffer.getvalue()


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write two splits of parquet files as the Hub has them, into a folder."""
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(damaged: bool = False, classes: bool = True, labels: list[Any] | None = None) -> Path:
        folder = tmp_path / "pets"
        folder.mkdir()
        for split, count in (("train", 12), ("test", 6)):
            images: list[Any] = [{"bytes": picture(n), "path": f"{n}.jpg"} for n in range(count)]
            if damaged and split == "train":
                images[3] = {"bytes": b"no image", "path": "3.jpg"}
                images[5] = None
            label = datasets.ClassLabel(names=NAMES) if classes else datasets.Value("int64")
            given = labels or [n % 3 for n in range(count)]
            if labels is not None and isinstance(labels[0], str):
                label = datasets.Value("string")
            table = datasets.Dataset.from_dict(
                {"picture": images, "kind": given[:count], "more": list(range(count))},
                features=datasets.Features(
                    {"picture": datasets.Image(), "kind": label, "more": datasets.Value("int64")}
                ),
            )
            table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
        return folder

    return write


def made(path: Path | str, **settings: Any) -> HuggingFace:
    return HuggingFace(HuggingFaceSettings(path=str(path), image="picture", label="kind", **settings))


@needs_datasets
@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_parquet_files(streaming: bool, parquet: Callable[..., Path]) -> None:
    pets = made(parquet(), streaming=streaming)
    check_component(plugins.find("dataset", "huggingface"), pets.settings)
    assert (pets.num_classes, pets.class_names()) == (3, NAMES)
    assert pets.size("train") == (None if streaming else 12)
    samples = list(pets.images("held-out"))  # files as they are
    assert {sample.image: sample.label for sample in samples} == {picture(number): number % 3 for number in range(6)}
    labels = [sample.label for sample in pets.images("train")]
    assert sorted(labels) == [0] * 4 + [1] * 4 + [2] * 4
    assert labels != [n % 3 for n in range(12)]


@needs_datasets
def test_files_are_named_by_a_recipe(parquet: Callable[..., Path], tiny_recipe: Callable[..., dict[str, Any]]) -> None:
    folder = parquet(classes=False)
    source = {
        "name": "huggingface",
        "path": "parquet",
        "train_files": str(folder / "train-*.parquet"),
        "held_out_files": [str(folder / "test-00000-of-00001.parquet")],
        "image": "picture",
        "label": "kind",
    }
    with pytest.raises(DataError, match="the column kind names no classes; give num_classes"):
        load_images(load_recipe(tiny_recipe(data={"source": source})))
    recipe = load_recipe(tiny_recipe(data={"source": source | {"num_classes": 3}}))
    images = load_images(recipe, "held-out")
    assert images.images.shape == (6, 3, 8, 8) and sorted(images.labels.tolist()) == [0, 0, 1, 1, 2, 2]


@needs_datasets
def test_a_part_of_a_split_is_one_too(parquet: Callable[..., Path]) -> None:
    pets = made(parquet(), train="train[:75%]", held_out="train[75%:]")
    assert (pets.size("train"), pets.size("held-out")) == (9, 3)


@needs_datasets
@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_image_is_counted_like_any_other(
    streaming: bool, parquet: Callable[..., Path], tmp_path: Path
) -> None:
    pets = made(parquet(damaged=True), streaming=streaming)
    shards = dict(write_shards(pets.images("train"), tmp_path / "shards", "train", 5))
    bad = BadSamples(0.5, 12)
    assert len(list(read_images(shards, 8, 3, bad))) == 10
    assert dict(bad.reasons) == {"image cannot be decoded": 2}


@needs_datasets
def test_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, count in (("train", 3), ("test", 2)):
        for name in NAMES:
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "photos" / split / name / f"{number}.png").write_bytes(picture(number, "png"))
    photos = HuggingFace(HuggingFaceSettings(path=str(tmp_path / "photos")))
    assert (photos.num_classes, photos.class_names(), photos.size("held-out")) == (3, NAMES, 6)
    check_component(plugins.find("dataset", "huggingface"), photos.settings)


@needs_datasets
def test_what_is_not_there_is_told_in_a_line(parquet: Callable[..., Path], tmp_path: Path) -> None:
    folder = parquet(labels=["cat"] * 12)
    for path, settings, message in (
        (tmp_path / "nowhere", {}, r"^\[data.source\] huggingface .*nowhere, split 'train': "),
        (folder, {"held_out": "validation"}, r"split 'validation': .*validation"),
        (folder, {"image": "picure"}, r"no column 'picure'; name one by image: picture, kind, more$"),
        (folder, {"num_classes": 3}, r"the column kind has 'cat' in row 0 of held-out, no whole number; name another"),
    ):
        wrong = HuggingFace(HuggingFaceSettings(**{"path": str(path), "image": "picture", "label": "kind", **settings}))
        with pytest.raises(DataError, match=message) as caught:
            next(iter(wrong.images("held-out" if path == folder else "train")))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["pandas", "sql", "mine/script.py", "table.pkl"])
def test_what_would_run_code_is_refused(path: str, tiny_recipe: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(RecipeError, match=r"\[data.source\] path: '.*' would run code; give a name on the Hub"):
        load_recipe(tiny_recipe(data={"source": {"name": "huggingface", "path": path}}))


def test_without_the_package_it_says_what_to_install(
    tiny_recipe: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    hidden = lambda name, *more: None if name == "datasets" else find(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    recipe = load_recipe(tiny_recipe(data={"source": {"name": "huggingface", "path": "owner/pets"}}))
    with pytest.raises(DataError, match=r"needs the package datasets; run: pip install 'rearkit\[huggingface\]'$"):
        load_images(recipe)


def test_the_package_is_imported_when_it_is_used() -> None:
    code = "import sys, rearkit.components.builtins; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
