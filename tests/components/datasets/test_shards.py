"""Shards that lie there: which files they are, and that both splits count their classes alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rearkit.components.datasets.shards import Shards
from rearkit.data.convert import Labelling, images_to_shards
from rearkit.errors import DataError


def converted(tmp_path: Path, split: str, names: str, like: Path | None = None) -> Path:
    for name in names.split():
        (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / split / name / "0.png")
    out = tmp_path / f"{split}-shards{'' if like is None else '-like'}"
    images_to_shards(tmp_path / split, out, 10, 1, Labelling(classes=like))
    return out


@pytest.mark.parametrize("pattern", ["{}", "{}/{{000000..000000}}.tar"])
def test_held_out_images_whose_classes_count_otherwise_are_refused(pattern: str, tmp_path: Path) -> None:
    train, held_out = converted(tmp_path, "train", "ant bee cat"), converted(tmp_path, "val", "bee cat")
    source = Shards(train=pattern.format(train), held_out=pattern.format(held_out), num_classes=3)
    assert source.class_names() == ["ant", "bee", "cat"]
    with pytest.raises(DataError, match=r"held_out: .*: class 0 is 'bee' there, and 'ant' in .*--classes"):
        source.shards("held-out")
    again = converted(tmp_path, "val", "bee cat", train / "classes.json")
    source = Shards(train=pattern.format(train), held_out=pattern.format(again), num_classes=3)
    assert len(source.shards("held-out")) == 1
    assert json.loads((again / "classes.json").read_text()) == ["ant", "bee", "cat"]


def test_classes_that_the_training_has_not_are_refused_by_name(tmp_path: Path) -> None:
    train = converted(tmp_path, "train", "ant bee")
    with pytest.raises(DataError, match=r"val: class 'cow' is not among those of .*classes.json"):
        converted(tmp_path, "val", "bee cow", train / "classes.json")


def test_numbers_of_a_file_are_taken_as_they_are(tmp_path: Path) -> None:
    train, held_out = converted(tmp_path, "train", "ant bee cat"), converted(tmp_path, "val", "bee cat")
    (held_out / "classes.json").write_text('["0", "1", "2"]')
    assert len(Shards(train=str(train), held_out=str(held_out), num_classes=3).shards("held-out")) == 1


def test_what_macos_adds_is_no_shard(tmp_path: Path) -> None:
    train = converted(tmp_path, "train", "ant bee")
    (train / "._000000.tar").write_bytes(b"of macOS")
    assert [Path(shard).name for shard in Shards(train=str(train), num_classes=2).shards("train")] == ["000000.tar"]
