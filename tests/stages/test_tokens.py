from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from rearkit.data.decoding import Decoding
from rearkit.data.image_sets import ImageSet
from rearkit.data.pixels import to_float
from rearkit.data.token_shards import TokenData, read_meta
from rearkit.data.token_writing import write_token_shard
from rearkit.errors import DataError, RearkitError
from rearkit.model import build_tokenizer
from rearkit.recipe.tables import VIEWS, Recipe
from rearkit.stages import data as data_stage
from rearkit.stages import tokenizer as tokenizer_stage
from rearkit.stages import tokens as tokens_stage
from rearkit.stages.data import open_split
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import run_stage, stage_key
from rearkit.stages.tokenizer import fitted_tokenizer
from rearkit.stages.tokens import token_data, training_data
from rearkit.system.files import read_json
from rearkit.tokenization.on_the_fly import OnTheFly
from rearkit.tokenization.tokenize import tokenize
from rearkit.tokenization.views import read_at, views

STAGES = (data_stage.STAGE, tokenizer_stage.STAGE, tokens_stage.STAGE)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 30 training and 10 held-out images in 10 classes."""
    place = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name, count in (("train-0", 12), ("train-1", 12), ("train-2", 6), ("held-out", 10)):
        with webdataset.TarWriter(str(place / f"{name}.tar"), mtime=0) as writer:
            for index in range(count):
                pixels = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
                writer.write({"__key__": f"{index:03d}", "png": pixels, "cls": index % 10})
    return place


@pytest.fixture
def recipe(tiny: Callable[..., Recipe], images: Path) -> Callable[..., Recipe]:
    def make(**tables: Any) -> Recipe:
        source = {
            "name": "shards",
            "train": str(images / "train-{0..2}.tar"),
            "held_out": str(images / "held-out.tar"),
            "num_classes": 10,
        }
        data = {"source": source} | tables.pop("data", {})
        return tiny(data=data, tokens={"check_images": 5, **tables.pop("tokens", {})}, **tables)

    return make


def run(recipe: Recipe, folder: RunFolder) -> list[str]:
    """Run the first three stages; return those that had anything to do."""
    return [stage.name for stage in STAGES if run_stage(stage, recipe, folder)]


# Views


@given(st.sampled_from(sorted(VIEWS)), st.integers(2, 20))
def test_each_way_of_augmenting_makes_its_number_of_views_of_the_size(augment: str, size: int) -> None:
    side = read_at(augment, Decoding(size)).size
    image = torch.randint(256, (3, side, side), dtype=torch.uint8)
    found = views(image, augment, size)
    assert len(found) == VIEWS[augment]
    assert all(view.shape == (3, size, size) for view in found)


def test_views_are_the_image_its_mirror_and_ten_crops() -> None:
    image = torch.arange(22 * 22).view(1, 22, 22).expand(3, -1, -1)
    assert [torch.equal(view, image) for view in views(image, "none", 22)] == [True]
    plain, mirrored = views(image, "flip", 22)
    assert torch.equal(plain, image)
    assert torch.equal(mirrored, image.flip(-1))
    crops = views(image, "ten-crop", 20)
    assert read_at("ten-crop", Decoding(20)).size == 22
    sizes = [read_at("ten-crop", Decoding(256, crop)).size for crop in ("center", "adm")]
    assert sizes == [282, 281]  # the published code rounds down
    assert torch.equal(crops[0], image[:, :20, :20])
    assert torch.equal(crops[3], image[:, 2:, 2:])
    assert torch.equal(crops[4], image[:, 1:21, 1:21])
    mirrors = [crop.flip(-1) for crop in crops[:5]]
    assert all(any(torch.equal(crop, mirror) for mirror in mirrors) for crop in crops[5:])
    assert len({tuple(crop[0, 0, :2].tolist()) for crop in crops}) == 10


# The stage


@pytest.mark.parametrize("augment", ["none", "flip", "ten-crop"])
def test_token_shards_hold_the_tokens_of_every_view_of_every_image(
    augment: str, recipe: Callable[..., Recipe], folder: RunFolder
) -> None:
    table = recipe(tokens={"augment": augment, "batch": 7})
    run(table, folder)
    tokenizer = fitted_tokenizer(table, folder)
    for split, count in (("train", 30), ("held-out", 10)):
        how = augment if split == "train" else "none"
        originals = open_split(table, folder, split, read_at(how, Decoding(8)), "tokens").all()
        seen = torch.stack([view for image in originals.images for view in views(image, how, 8)])
        with torch.no_grad():
            expected = tokenizer.encode(to_float(seen))
        data = token_data(folder, split)
        assert data is not None
        assert len(data) == count * VIEWS[how]
        found, classes = data.take(range(len(data)))
        assert torch.equal(found, expected)
        assert torch.equal(classes, originals.labels.repeat_interleave(VIEWS[how]))
    result = folder.result("tokens")
    assert result["train_views"] == 30 * VIEWS[augment]
    assert result["train_tokens"] == 30 * VIEWS[augment] * 16
    assert (result["checked_split"], result["checked_images"]) == ("held-out", 5)
    assert folder.reconstructions.is_file()


def test_there_is_one_token_shard_for_each_image_shard_and_it_says_of_which(
    recipe: Callable[..., Recipe], folder: RunFolder
) -> None:
    run(recipe(), folder)
    names = read_json(folder.tokens)["train"]
    assert names == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    meta = read_meta(folder.stage("tokens") / names[1])
    assert meta == {"source": "train-1.tar", "augment": "none", "skipped": {}}


def test_a_stage_that_was_cut_off_keeps_its_whole_shards(
    recipe: Callable[..., Recipe], folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_token_shard
    calls: list[str] = []

    def dying(path: Path, *rest: Any) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(path.name)
        write(path, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("rearkit.tokenization.tokenize.write_token_shard", dying)
        run(recipe(), folder)
    place = folder.stage("tokens")
    before = {path: path.stat().st_mtime_ns for path in place.glob("*.tar")}
    assert len(before) == 2
    assert run(recipe(), folder) == ["tokens"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    data = token_data(folder, "train")
    assert data is not None
    assert len(data) == 30


def test_bad_samples_are_counted_in_the_result_and_in_the_shard(
    recipe: Callable[..., Recipe], folder: RunFolder, tmp_path: Path
) -> None:
    with webdataset.TarWriter(str(tmp_path / "train.tar")) as writer:
        for index in range(6):
            writer.write({"__key__": str(index), "png": np.full((8, 8, 3), index, np.uint8), "cls": index})
        writer.write({"__key__": "bad", "png": b"broken", "cls": 1})
    source = {"name": "shards", "train": str(tmp_path / "train.tar"), "num_classes": 6}
    table = recipe(data={"source": source, "max_bad_share": 0.5})
    run(table, folder)
    assert folder.result("tokens")["skipped"] == {"image cannot be decoded": 1}
    assert read_meta(folder.stage("tokens") / "train-000000.tar")["skipped"] == {"image cannot be decoded": 1}
    lines = (folder.stage("tokens") / "skipped.jsonl").read_text().splitlines()
    assert Counter(json.loads(line)["reason"] for line in lines) == {"image cannot be decoded": 1}
    data = token_data(folder, "train")
    assert data is not None
    assert data.take(range(len(data)))[1].tolist() == list(range(6))
    assert folder.result("tokens")["checked_split"] == "train"  # there are no held-out ones


@pytest.mark.parametrize(("floor", "value"), [("min_psnr", 99.0), ("min_codebook_use", 1.0)])
def test_tokens_below_a_floor_stop_the_run(
    floor: str, value: float, recipe: Callable[..., Recipe], folder: RunFolder
) -> None:
    with pytest.raises(DataError, match=rf"\[tokens\] {floor} = {value}, but the written tokens reach"):
        run(recipe(tokens={floor: value}), folder)
    assert folder.done("tokens") is None
    # Kept for a lower floor, and looked at again.
    written = {path: path.stat().st_mtime_ns for path in folder.stage("tokens").glob("*.tar")}
    with pytest.raises(DataError, match=rf"\[tokens\] {floor} = {value - 0.001}, but"):
        run(recipe(tokens={floor: value - 0.001}), folder)
    run(recipe(tokens={floor: 0.01}), folder)
    assert written and all(path.stat().st_mtime_ns == time for path, time in written.items())


def test_a_codebook_too_large_for_the_shards_is_refused(
    recipe: Callable[..., Recipe], folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_stage, "MAX_CODES", 11)
    with pytest.raises(RearkitError, match="12 codes do not fit the uint16 of token shards"):
        run(recipe(), folder)


def test_tokens_of_a_run_that_has_none_say_what_to_run(folder: RunFolder) -> None:
    with pytest.raises(RearkitError, match="no token shards yet; run: python -m rearkit tokens RECIPE"):
        token_data(folder, "train")


# Token shards made elsewhere


def pretokenized(place: Path, count: int = 9, codes: int = 12, width: int = 16, seed: int = 0) -> str:
    tokens = np.random.default_rng(seed).integers(codes, size=(count, width))
    write_token_shard(place / "000000.tar", tokens, np.arange(count) % 10, {})
    return str(place)


def test_shards_made_elsewhere_are_used_as_they_are(
    recipe: Callable[..., Recipe], folder: RunFolder, tmp_path: Path
) -> None:
    table = recipe(tokens={"pretokenized": pretokenized(tmp_path / "theirs")})
    run(table, folder)
    data = token_data(folder, "train")
    assert data is not None
    expected = TokenData.from_shards([tmp_path / "theirs" / "000000.tar"])
    assert torch.equal(data.take(range(9))[0], expected.take(range(9))[0])
    assert not list(folder.stage("tokens").glob("train-*.tar"))


def test_other_content_of_shards_made_elsewhere_is_noticed_downstream_and_a_copy_is_not(
    recipe: Callable[..., Recipe], folder: RunFolder, tmp_path: Path
) -> None:
    from rearkit.stages import train as training

    place = tmp_path / "theirs"
    table = recipe(tokens={"pretokenized": pretokenized(place, 40)})
    run(table, folder)
    before = stage_key(training.STAGE, table, folder)
    pretokenized(place, 40)
    run(table, folder)
    assert stage_key(training.STAGE, table, folder) == before
    pretokenized(place, 40, seed=1)
    assert run(table, folder) == ["tokens"]
    assert stage_key(training.STAGE, table, folder) != before


def test_shards_made_elsewhere_are_never_removed(
    recipe: Callable[..., Recipe], folder: RunFolder, tmp_path: Path
) -> None:
    place = tmp_path / "theirs"
    table = recipe(tokens={"pretokenized": pretokenized(place)})
    run(table, folder)
    folder.reconstructions.unlink()  # a loss of our own, to make the stage run again
    with (place / "000000.tar").open("ab") as file:
        file.write(bytes(512))
    content = (place / "000000.tar").read_bytes()
    run(table, folder)
    assert (place / "000000.tar").read_bytes() == content


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"codes": 40}, r"has token \d+, but the tokenizer has 12 codes"),
        ({"width": 9}, "9 tokens an image, the tokenizer 16"),
    ],
)
def test_shards_of_another_tokenizer_are_refused(
    how: dict[str, int], message: str, recipe: Callable[..., Recipe], folder: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        run(recipe(tokens={"pretokenized": pretokenized(tmp_path / "theirs", **how)}), folder)


def test_a_folder_without_token_shards_is_refused(
    recipe: Callable[..., Recipe], folder: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"\[tokens\] pretokenized: .*: no token shards"):
        run(recipe(tokens={"pretokenized": str(tmp_path / "empty")}), folder)


# In memory


def test_images_in_memory_are_tokenized_alike_in_any_batch(tiny: Callable[..., Recipe]) -> None:
    tokenizer = build_tokenizer(tiny())
    tokenizer.eval()
    pixels = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(10))
    with torch.no_grad():
        expected = tokenizer.encode(to_float(pixels))
    for batch in (1, 3, 64):
        found, classes = tokenize(tokenizer, images, batch).take(range(10))
        assert torch.equal(found, expected)
        assert classes.tolist() == list(range(10))


def test_images_in_memory_of_another_size_are_refused(tiny: Callable[..., Recipe]) -> None:
    half = ImageSet(torch.zeros(2, 3, 8, 4, dtype=torch.uint8), torch.arange(2))
    with pytest.raises(DataError, match="takes images of 8 pixels; found 8 × 4: resize or crop"):
        tokenize(build_tokenizer(tiny()).eval(), half)


# Tokens made while training, and what training opens


@pytest.mark.parametrize("held_out", [True, False])
def test_on_the_fly_images_are_indexed_and_a_sample_of_them_checked(
    held_out: bool, recipe: Callable[..., Recipe], folder: RunFolder, images: Path
) -> None:
    source = {"name": "shards", "train": str(images / "train-{0..2}.tar"), "num_classes": 10}
    table = recipe(tokens={"on_the_fly": True, "augment": "random-crop"}, data={} if held_out else {"source": source})
    run(table, folder)
    place, result = folder.stage("tokens"), folder.result("tokens")
    assert not list(place.glob("train-*.tar")) and len(list(place.glob("held-out-*.tar"))) == held_out
    assert (result["train_views"], result["train_tokens"]) == (30, 30 * 16)
    assert (result["checked_split"], result["checked_images"]) == ("held-out" if held_out else "train", 5)
    assert result["psnr"] > 0 and 0 <= result["survival"] <= 1
    data = training_data(table, folder, fitted_tokenizer(table, folder))
    assert isinstance(data, OnTheFly) and len(data) == 30
    assert not folder.stage("train").exists()  # it would be taken for an unfinished stage
    with pytest.raises(DataError, match=r"min_psnr = 90.*, but the written tokens reach"):
        run(recipe(tokens={"on_the_fly": True, "min_psnr": 90.0}, data={} if held_out else {"source": source}), folder)


def test_on_the_fly_training_notices_other_views_and_other_pixels(
    recipe: Callable[..., Recipe], folder: RunFolder, images: Path, tmp_path: Path
) -> None:
    from rearkit.stages import train as training

    own = tmp_path / "images"
    shutil.copytree(images, own)
    source = {"name": "shards", "train": str(own / "train-{0..2}.tar"), "num_classes": 10}

    def table(**tokens: Any) -> Recipe:
        return recipe(tokens={"on_the_fly": True, **tokens}, data={"source": source})

    run(table(), folder)
    index = folder.image_index.read_bytes()
    before = stage_key(training.STAGE, table(), folder)
    assert run(table(workers=5), folder) == []
    assert run(table(augment="flip"), folder) == ["tokens"]
    assert stage_key(training.STAGE, table(augment="flip"), folder) != before
    run(table(), folder)
    assert stage_key(training.STAGE, table(), folder) == before
    with tarfile.open(images / "train-1.tar") as old, tarfile.open(own / "train-1.tar", "w") as new:
        for member in old:  # written at another time, as other pixels would be
            member.mtime = 1
            new.addfile(member, old.extractfile(member))
    run(table(), folder)
    assert folder.image_index.read_bytes() == index
    assert stage_key(training.STAGE, table(), folder) != before


def test_training_leaves_out_a_token_shard_that_is_not_what_was_written(
    recipe: Callable[..., Recipe], folder: RunFolder
) -> None:
    table = recipe(data={"max_bad_share": 0.1})
    run(table, folder)
    tokenizer = fitted_tokenizer(table, folder)
    assert len(training_data(table, folder, tokenizer)) == 30
    shard = folder.stage("tokens") / "train-000002.tar"  # 6 of 30 images
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as archive:  # in an array, so that the rest of the shard can still be read
        content[archive.getmember("000000.tokens.npy").offset_data + 200] ^= 1
    shard.write_bytes(content)
    assert len(training_data(table, folder, tokenizer)) == 24
    with pytest.raises(DataError, match=r"train-000002\.tar: lost with a damaged token shard; 6 samples skipped"):
        training_data(recipe(), folder, tokenizer)


def test_a_late_token_of_another_codebook_is_refused_when_shards_are_opened(
    recipe: Callable[..., Recipe], folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rearkit.tokenization.quality.USAGE_SAMPLES", 2)
    tokens = np.zeros((40, 16), np.int64)
    tokens[7, 3] = 12
    write_token_shard(tmp_path / "theirs" / "000000.tar", tokens, np.arange(40) % 10, {})
    with pytest.raises(DataError, match=r"000000\.tar: image 7 has token 12, but the tokenizer has 12 codes"):
        run(recipe(tokens={"pretokenized": str(tmp_path / "theirs")}), folder)
