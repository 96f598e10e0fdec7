"""The stage ``data`` on a folder that changes: its shards are of one listing, and made again when that changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
from PIL import Image

from rearkit.data.bad_samples import BadSamples
from rearkit.data.image_shards import read_images
from rearkit.model import build
from rearkit.pipeline import run
from rearkit.recipe.tables import Recipe
from rearkit.stages import data
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import up_to_date
from rearkit.stages.train import export
from rearkit.system.files import read_json, write_json

# Runs the stage and kills it, for real, once it has written a shard.
KILLED = """
import os, signal, sys
from rearkit.data import image_shards
from rearkit.stages import data
from rearkit.pipeline import run
from rearkit.recipe.loading import load_recipe
write = image_shards.write_shards
def dying(*arguments):
    for found in write(*arguments):
        yield found
        os.kill(os.getpid(), signal.SIGKILL)
data.write_shards = dying
run(load_recipe(sys.argv[1]), sys.argv[2], only="data")
"""


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path, "bmp")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split in ("train", "held"):
        for label in range(2):
            for index in range(6):
                write(tmp_path / "photos" / split / f"class{label}" / f"{index}.bmp", 100 * label + index)
    return tmp_path / "photos"


@pytest.fixture
def recipe(photos: Path, tiny: Callable[..., Recipe]) -> Recipe:
    source = {"name": "folder", "train": str(photos / "train"), "held_out": str(photos / "held")}
    return tiny(data={"source": source, "shard_size": 4}, tokenizer={"fit": {"steps": 1, "warmup_steps": 0}})


def values(folder: RunFolder) -> list[int]:
    """The grey values of the training images in the shards that the stage lists."""
    shards = read_json(folder.images)["shards"]["train"]
    found = read_images({str(folder.stage("data") / s): n for s, n in shards.items()}, 8, 2, BadSamples(0, 0))
    return sorted(int(image.image[0, 0, 0]) for image in found)


ALL = [*range(6), *range(100, 106)]
CHANGES: dict[str, tuple[Callable[[Path], object], list[int]]] = {
    "a new file": (lambda p: write(p / "class1/new.bmp", 150), [*ALL, 150]),
    "a file less": (lambda p: (p / "class0/0.bmp").unlink(), ALL[1:]),
    "another file of the same size": (lambda p: write(p / "class0/0.bmp", 50), [*ALL[1:6], 50, *ALL[6:]]),
    "a file of another name": (lambda p: (p / "class0/0.bmp").rename(p / "class0/00.bmp"), ALL),
}


@pytest.mark.parametrize(("change", "wanted"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_the_folder_makes_all_shards_again(
    change: Callable[[Path], object], wanted: list[int], photos: Path, recipe: Recipe, tmp_path: Path
) -> None:
    folder = run(recipe, tmp_path / "run", only="data")
    before = read_json(folder.record("data"))
    assert values(folder) == ALL
    run(recipe, tmp_path / "run", only="data")
    assert read_json(folder.record("data")) == before
    change(photos / "train")
    run(recipe, tmp_path / "run", only="data")
    assert read_json(folder.record("data"))["key"] != before["key"]
    assert values(folder) == wanted
    assert values(folder) == wanted and (folder.previous("data") / "stage.json").is_file()


def test_a_set_that_was_cut_off_is_not_mixed_with_a_new_listing(photos: Path, recipe: Recipe, tmp_path: Path) -> None:
    from rearkit.recipe.loading import recipe_to_dict

    (tmp_path / "recipe.json").write_text(json.dumps(recipe_to_dict(recipe)))
    script = KILLED.replace("load_recipe(sys.argv[1])", "load_recipe(__import__('json').load(open(sys.argv[1])))")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "recipe.json"), str(tmp_path / "run")])
    assert done.returncode == -signal.SIGKILL
    folder = RunFolder(tmp_path / "run")
    (half,) = folder.stage("data").glob("train-*.tar")
    held = half.read_bytes()
    # By its name, the new one moves every image to another place in the order.
    write(photos / "train" / "class0" / "00.bmp", 60)
    run(recipe, tmp_path / "run", only="data")
    assert half.read_bytes() != held
    assert values(folder) == sorted([*ALL, 60])


def test_a_set_that_was_cut_off_goes_on_where_nothing_changed(photos: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = run(recipe, tmp_path / "run", only="data")
    folder.record("data").unlink()
    (folder.stage("data") / "train-000001.tar").unlink()
    kept = (folder.stage("data") / "train-000000.tar").stat().st_mtime_ns
    run(recipe, tmp_path / "run", only="data")
    assert (folder.stage("data") / "train-000000.tar").stat().st_mtime_ns == kept
    assert values(folder) == ALL


def test_shards_of_a_version_that_noted_no_listing_stay_up_to_date_while_they_are_whole(
    photos: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rearkit.components.datasets.folder import Folder

    with monkeypatch.context() as patch:
        patch.delattr(Folder, "stamp")
        folder = run(recipe, tmp_path / "run", only="data")
    record = folder.done("data")
    assert record is not None
    del record["result"]["stamp"]
    write_json(folder.record("data"), record)
    times = folder.record("data").stat().st_mtime_ns
    run(recipe, tmp_path / "run", only="data")
    assert folder.record("data").stat().st_mtime_ns == times
    (folder.stage("data") / "train-000001.tar").unlink()
    write(photos / "train" / "class0" / "00.bmp", 60)
    run(recipe, tmp_path / "run", only="data")
    assert values(folder) == sorted([*ALL, 60])


def test_links_to_folders_are_followed_and_circles_are_not(photos: Path, recipe: Recipe, tmp_path: Path) -> None:
    (photos / "train" / "class1").rename(tmp_path / "elsewhere")
    (photos / "train" / "class1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "elsewhere")
    assert values(run(recipe, tmp_path / "run", only="data")) == ALL
    (tmp_path / "elsewhere" / "up").unlink()
    (tmp_path / "elsewhere" / "lost.bmp").symlink_to(tmp_path / "nowhere.bmp")
    assert values(run(recipe, tmp_path / "other", only="data")) == ALL


def test_another_number_of_classes_sets_a_training_aside(
    photos: Path, recipe: Recipe, tmp_path: Path, tiny: Callable[..., Recipe]
) -> None:
    """The token shards stay as they were, and with them the training's key."""
    folder = run(recipe, tmp_path / "run", only="data")
    folder.stage("train").mkdir()
    export(build(recipe), 0, folder)
    write(photos / "held" / "class0" / "new.bmp", 7)
    run(recipe, folder.path, only="data")
    assert folder.model.is_file()
    whole = folder.model.read_bytes()
    folder.model.write_bytes(whole[:9])  # the stage itself finds it out
    write(photos / "held" / "class0" / "newer.bmp", 8)
    run(recipe, folder.path, only="data")
    folder.model.write_bytes(whole)
    write(photos / "train" / "class2" / "0.bmp", 200)
    run(recipe, folder.path, only="data")
    assert not folder.model.exists() and (folder.previous("train") / folder.model.name).is_file()


def test_classes_that_held_out_images_lack_are_named(
    photos: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(recipe, tmp_path / "run", only="data")
    assert "held-out images lack" not in capsys.readouterr().out
    write(photos / "train" / "class2" / "0.bmp", 200)
    run(recipe, tmp_path / "run", only="data")
    said = " ".join(capsys.readouterr().out.split())
    assert "data: held-out images lack 1 of 3 classes: class2, so held-out figures say nothing of these" in said
    for label in range(3, 15):
        write(photos / "train" / f"class{label}" / "0.bmp", 200)
    run(recipe, tmp_path / "run", only="data")
    assert "lack 13 of 15 classes: class10, class11" in (said := " ".join(capsys.readouterr().out.split()))
    assert "class6, ..., so held-out figures" in said


def test_shards_do_not_depend_on_how_many_may_be_bad(recipe: Recipe, tmp_path: Path) -> None:
    folder = run(recipe, tmp_path / "run", only="data")
    patient = attrs.evolve(recipe, data=attrs.evolve(recipe.data, max_bad_share=0.5))  # type: ignore[misc]
    assert up_to_date([data.STAGE], patient, folder)


def test_what_is_no_file_is_ignored_with_a_count(
    photos: Path, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = photos / "train" / "class1"
    (folder / "lost.bmp").symlink_to(tmp_path / "nowhere.bmp")
    (folder / "round.bmp").symlink_to(folder / "round.bmp")
    (folder / "zero.bmp").symlink_to("/dev/zero")
    os.mkfifo(folder / "fifo.bmp")
    (folder / "folder.bmp").mkdir()
    assert values(run(recipe, tmp_path / "run", only="data")) == ALL
    said = [line for line in capsys.readouterr().out.splitlines() if "ignored" in line]
    assert len(said) == 1
    assert "ignored 4 links that lead nowhere, pipes or devices, the first class1/fifo.bmp" in said[0]
