"""torchvision's datasets, on small trees of files written here as torchvision has them; nothing is downloaded."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from rearkit.components.datasets.torchvision_sets import Torchvision, TorchvisionSettings
from rearkit.contracts import ImageSample
from rearkit.data.bad_samples import BadSamples
from rearkit.data.image_shards import read_images, write_shards
from rearkit.errors import DataError, RecipeError
from rearkit.recipe.loading import load_recipe
from rearkit.registry import plugins
from rearkit.stages.data import load_images
from rearkit.testing import check_component

NAMES = ["plane", "car", "bird"]


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's tree of pickles with four images a batch, three classes."""
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    sums = {}
    for number, (name, _) in enumerate(datasets.CIFAR10.train_list + datasets.CIFAR10.test_list):
        pixels = np.arange(4 * 3072, dtype=np.int64).reshape(4, 3072) * (number + 1) % 256
        content = {"data": pixels.astype(np.uint8), "labels": [0, 1, 2, number % 3]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    for name in (path.name for path in folder.iterdir()):
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    for attribute in ("train_list", "test_list"):
        listed = [[name, sums[name]] for name, _ in getattr(datasets.CIFAR10, attribute)]
        monkeypatch.setattr(datasets.CIFAR10, attribute, listed)
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": sums["batches.meta"]})
    return tmp_path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folders of classes, as ImageFolder and Country211 have them, one file of which is damaged."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("valid", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "country211" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (9, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    (tmp_path / "country211" / "train" / "dog" / "3.jpg").write_bytes(b"no image at all")
    return tmp_path


def made(name: str, **settings: Any) -> Torchvision:
    return Torchvision(TorchvisionSettings(dataset=name, **settings))


def test_a_set_with_a_switch_for_its_splits(cifar: Path) -> None:
    settings = TorchvisionSettings(dataset="CIFAR10", root=str(cifar))
    check_component(plugins.find("dataset", "torchvision"), settings)
    made_of_it = Torchvision(settings)
    assert (made_of_it.num_classes, made_of_it.class_names()) == (3, NAMES)
    assert (made_of_it.size("train"), made_of_it.size("held-out")) == (20, 4)
    original = datasets.CIFAR10(str(cifar), train=False)
    for sample in made_of_it.images("held-out"):
        image, label = original[int(sample.key)]
        assert isinstance(sample.image, bytes) and sample.label == label
        assert np.array_equal(Image.open(io.BytesIO(sample.image)), image)


def test_a_recipe_reads_it(cifar: Path, tiny_recipe: Callable[..., dict[str, Any]]) -> None:
    source = {"name": "torchvision", "dataset": "CIFAR10", "root": str(cifar)}
    images = load_images(load_recipe(tiny_recipe(data={"source": source})), "train")
    assert images.images.shape == (20, 3, 8, 8)
    assert Counter(images.labels.tolist()) == Counter([0, 1, 2] * 5 + [0, 1, 2, 0, 1])


def test_a_set_with_named_splits_gives_its_files_as_they_are(photos: Path) -> None:
    countries = made("Country211", root=str(photos), held_out="valid")
    assert countries.by_name and countries.class_names() == ["cat", "dog"]
    assert (countries.size("train"), countries.size("held-out")) == (24, 8)
    samples = list(countries.images("held-out"))
    assert {sample.image for sample in samples} == set((photos / "country211" / "valid").rglob("*.jpg"))
    assert [sample.label for sample in samples] != sorted(sample.label for sample in samples)  # mixed
    with pytest.raises(DataError) as caught:
        made("Country211", root=str(photos)).size("held-out")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"in .*: Unknown value 'vaild' for argument split.*; name its splits by train"):
        made("Country211", root=str(photos), held_out="vaild").size("held-out")


def test_a_set_without_splits_holds_a_share_back(photos: Path) -> None:
    folder = made("ImageFolder", root=str(photos / "country211" / "train"), held_out_share=0.25)
    keys = {split: [sample.key for sample in folder.images(split)] for split in ("train", "held-out")}
    assert (len(keys["train"]), len(keys["held-out"])) == (folder.size("train"), folder.size("held-out")) == (18, 6)
    assert len({*keys["train"], *keys["held-out"]}) == 24
    check_component(plugins.find("dataset", "torchvision"), folder.settings)


def test_a_damaged_file_is_counted_like_any_other(photos: Path, tmp_path: Path) -> None:
    countries = made("Country211", root=str(photos), held_out="valid")
    shards = dict(write_shards(countries.images("train"), tmp_path / "shards", "train", 10))
    bad = BadSamples(0.5, 24)
    assert len(list(read_images(shards, 8, 2, bad))) == 23
    assert dict(bad.reasons) == {"image cannot be decoded": 1}


def test_what_the_set_itself_cannot_read_is_counted_too(cifar: Path, tmp_path: Path) -> None:
    class Damaged:
        classes = NAMES

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            if index == 2:
                raise SyntaxError("broken PNG file")
            return Image.new(["RGB", "L", "", "CMYK"][index], (8, 8)), torch.tensor(index % 3)  # type: ignore[return-value]

    broken = made("CIFAR10", root=str(cifar))
    broken._held = {"train": Damaged()}
    shards = dict(write_shards(broken.images("train"), tmp_path / "shards", "train", 10))
    bad = BadSamples(0.5, 4)
    assert sorted(image.label for image in read_images(shards, 8, 3, bad)) == [0, 0, 1]
    assert dict(bad.reasons) == {"image cannot be decoded": 1}


def test_random_images_need_no_root() -> None:
    fake = made("FakeData", options={"size": 10, "image_size": [3, 8, 8], "num_classes": 4})
    assert (fake.num_classes, fake.class_names(), fake.size("train"), fake.size("held-out")) == (4, None, 9, 1)
    first, second = ([s.image for s in fake.images("train")] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"dataset": "CIFAR"}, "dataset: torchvision.datasets has no 'CIFAR' (did you mean 'CIFAR10'?)"),
        ({"dataset": "os"}, "dataset: torchvision.datasets has no 'os'"),
        ({"dataset": "VisionDataset"}, "dataset: torchvision.datasets has no 'VisionDataset'"),
        ({"dataset": "folder.os.system"}, "dataset: torchvision.datasets has no 'folder.os.system'"),
        ({"dataset": "CIFAR10", "options": {"loader": "os.system"}}, "options: CIFAR10 takes no 'loader'"),
        ({"dataset": "DTD", "options": {"partion": 1}}, "options: DTD takes no 'partion' (did you mean 'partition'?)"),
        ({"dataset": "FER2013", "download": True}, "download: torchvision cannot download FER2013; put it into data"),
    ],
)
def test_what_a_recipe_cannot_name_is_refused(
    settings: dict[str, Any], problem: str, tiny_recipe: Callable[..., dict[str, Any]]
) -> None:
    recipe = load_recipe(tiny_recipe(data={"source": {"name": "torchvision", **settings}}))
    with pytest.raises(RecipeError) as caught:
        load_images(recipe)
    (line,) = caught.value.problems
    assert line.startswith(f"tiny: [data.source] torchvision: {problem}")


def test_what_is_not_there_is_told_in_a_line(tmp_path: Path) -> None:
    missing = made("CIFAR10", root=str(tmp_path))
    with pytest.raises(DataError, match=r"^\[data.source\] CIFAR10 in .*; correct root, or set download = true$"):
        _ = missing.num_classes
    with pytest.raises(DataError, match=r"EMNIST in .*'split'; give what it needs under options$"):
        _ = made("EMNIST", root=str(tmp_path)).num_classes


def test_a_download_that_fails_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    with pytest.raises(DataError, match=rf"not known.*it could not be downloaded, .* put its files into {tmp_path}$"):
        _ = made("CIFAR10", root=str(tmp_path), download=True).num_classes


def test_a_set_without_classes_is_refused() -> None:
    class Captions:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[Image.Image, str]:
            return Image.new("RGB", (8, 8)), "a cat"

    captions = made("FakeData")
    captions._held = {"train": Captions()}
    with pytest.raises(DataError, match=r"not an image and a whole number but \('Image', 'str'\); options may say"):
        next(iter(captions.images("train")))
    with pytest.raises(DataError, match="does not say how many classes it has; give num_classes"):
        _ = captions.num_classes
    assert made("FakeData", num_classes=7).num_classes == 7


def test_arguments_that_a_class_hands_on_are_known() -> None:
    assert {"split", "train"} <= made("EMNIST", options={"split": "letters"}).takes
    assert "loader" in made("ImageNet").takes and made("ImageNet").by_name
    assert not made("QMNIST").by_name


def test_torchvision_is_imported_when_it_is_used() -> None:
    code = "import sys, rearkit.components.builtins; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_samples_are_image_samples(cifar: Path) -> None:
    assert isinstance(next(iter(made("CIFAR10", root=str(cifar)).images("train"))), ImageSample)
