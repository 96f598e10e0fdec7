"""Where a stage looks at some images only, it sees all classes, also of shards that are sorted by class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from rearkit.analysis import diagnose
from rearkit.data.token_shards import TokenData
from rearkit.recipe.tables import Recipe
from rearkit.stages import evaluate, tokens
from rearkit.stages.data import open_split
from rearkit.stages.flow import STAGES
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import run_stage

CLASSES, EACH = 4, 12


def write(place: Path, broken: int | None = None) -> None:
    """A shard a class; an image's grey value is its number in all of them."""
    place.mkdir()
    for label in range(CLASSES):
        with webdataset.TarWriter(str(place / f"{label}.tar"), mtime=0) as writer:
            for index in range(EACH * label, EACH * label + EACH):
                pixels: Any = b"broken" if index == broken else np.full((8, 8, 3), index, np.uint8)
                writer.write({"__key__": f"{index:03d}", "png": pixels, "cls": label})


@pytest.fixture
def opened(tiny: Callable[..., Recipe], tmp_path: Path) -> Callable[..., tuple[Recipe, RunFolder]]:
    """A run whose first three stages are done."""

    def open_run(broken: int | None = None, held_out: bool = True, **tables: Any) -> tuple[Recipe, RunFolder]:
        write(tmp_path / "train", broken)
        source = {"name": "shards", "train": str(tmp_path / "train"), "num_classes": CLASSES}
        if held_out:
            write(tmp_path / "held", broken)
            source["held_out"] = str(tmp_path / "held")
        recipe = tiny(
            data={"source": source, "max_bad_share": 0.5},
            tokenizer={"fit": {"steps": 1, "warmup_steps": 0, "batch": 4}},
            tokens={"check_images": 8, **tables},
            evaluate={"max_reference": 12},
        )
        folder = RunFolder(tmp_path / "run")
        for stage in STAGES[:3]:
            run_stage(stage, recipe, folder)
        return recipe, folder

    return open_run


def counts(labels: Any) -> list[int]:
    return np.bincount(np.asarray(labels), minlength=CLASSES).tolist()


def test_references_and_the_classifiers_images_are_of_all_classes(opened: Callable[..., Any]) -> None:
    recipe, folder = opened()
    images = evaluate.split_images(recipe, folder, "train", 8)
    found = torch.cat(list(images.batches(5)))
    assert len(images) == len(found) == 12
    assert counts(found[:, 0, 0, 0] // EACH) == [3, 3, 3, 3]
    assert torch.equal(torch.cat(list(images.batches(7))), found)
    whole = open_split(recipe, folder, "train", 8, "evaluate").all(recipe.evaluate.max_reference)
    assert counts(whole.labels) == [3, 3, 3, 3]


def test_features_of_the_first_images_are_not_taken_for_those_that_were_drawn(opened: Callable[..., Any]) -> None:
    """Caches of earlier versions hold the first ones' under the first digest."""
    import hashlib

    recipe, folder = opened()
    digest = folder.done("data")["digest"]
    found = evaluate.split_images(recipe, folder, "train", 8).digest()
    assert hashlib.sha256(f"{digest} train 8 12".encode()).hexdigest() != found


@pytest.mark.parametrize("augment", ["none", "flip"])
@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("broken", [None, 3])
def test_the_tokens_check_compares_images_of_all_classes_with_their_own_tokens(
    broken: int | None, held_out: bool, augment: str, opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[TokenData, Any]] = []
    real = tokens.compare

    def compare(tokenizer: Any, data: TokenData, images: Any, *rest: Any) -> float:
        compared.append((data, images))
        with torch.no_grad():
            expected = tokenizer.encode(images.images.float() / 255)
        assert torch.equal(data.take(range(len(data)))[0], expected)
        return real(tokenizer, data, images, *rest)

    monkeypatch.setattr(tokens, "compare", compare)
    opened(broken, held_out, augment=augment)
    ((_, images),) = compared
    # In a shard with a bad sample, places of images are not those of tokens, so it is left out.
    assert len(images) == 8
    assert counts(images.labels) == ([2, 2, 2, 2] if broken is None else [0, *counts(images.labels)[1:]])
    assert min(counts(images.labels)[1:]) >= 2


def test_where_each_shard_has_a_bad_sample_the_first_images_have_to_do(
    tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    with webdataset.TarWriter(str(tmp_path / "train/0.tar")) as writer:
        for index in range(10):
            pixels: Any = b"broken" if index == 0 else np.full((8, 8, 3), index, np.uint8)
            writer.write({"__key__": str(index), "png": pixels, "cls": index % CLASSES})
    recipe = tiny(
        data={"source": {"name": "shards", "train": str(tmp_path / "train"), "num_classes": 4}, "max_bad_share": 0.5},
        tokenizer={"fit": {"steps": 1, "warmup_steps": 0, "batch": 4}},
        tokens={"check_images": 5},
    )
    folder = RunFolder(tmp_path / "run")
    for stage in STAGES[:3]:
        run_stage(stage, recipe, folder)
    assert folder.result("tokens")["checked_images"] == 5


def test_a_diagnosis_is_of_all_classes() -> None:
    data = TokenData.from_arrays(np.zeros((48, 4), np.int64), np.arange(48) // EACH)
    batches = diagnose._Batches(data, 12, torch.device("cpu"))
    assert counts(torch.cat([classes for _, classes in batches])) == [3, 3, 3, 3]


def test_no_shard_is_fetched_to_count_training_images_where_a_reference_makes_them_needless(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "train")
    train = [f"pipe:echo {n} >> {tmp_path}/log; cat {tmp_path}/train/{n}.tar" for n in range(CLASSES)]
    monkeypatch.setattr("rearkit.components.datasets.shards.expand_shards", lambda place: train)
    source = {"name": "shards", "train": "pipe:", "num_classes": CLASSES}
    recipe = tiny(
        data={"source": source},
        tokenizer={"fit": {"steps": 1, "warmup_steps": 0, "batch": 4}},
        evaluate={"max_reference": 50},
    )
    folder = RunFolder(tmp_path / "run")
    for stage in STAGES[:3]:
        run_stage(stage, recipe, folder)
    (tmp_path / "log").unlink()
    images = evaluate.split_images(recipe, folder, "train", 8)
    assert len(images) == CLASSES * EACH and not (tmp_path / "log").exists()
    assert sum(map(len, images.batches(10))) == CLASSES * EACH
    assert (tmp_path / "log").read_text().split() == ["0", "1", "2", "3"]
