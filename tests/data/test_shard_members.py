from __future__ import annotations

import bz2
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tars import write_tar

from rearkit.data.access import Access
from rearkit.data.bad_samples import BadSamples
from rearkit.data.decoding import Decoding
from rearkit.data.fetching import Retry
from rearkit.data.image_index import write_index
from rearkit.data.image_sets import Split
from rearkit.data.image_shards import read_headers, read_images
from rearkit.data.shard_members import Fields
from rearkit.errors import DataError
from rearkit.recipe.tables import Recipe
from rearkit.stages import data as data_stage
from rearkit.stages.data import load_images, open_split
from rearkit.stages.evaluate import split_images
from rearkit.stages.relevant import result_relevant
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import stage_key
from rearkit.system.files import read_json

COUNT = 6
Members = list[tuple[str, bytes]]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def label(index: int) -> bytes:
    return str(index % 3).encode()


def shard(path: Path, make: Callable[[int], Members], shuffled: int | None = None) -> Path:
    members = [member for index in range(COUNT) for member in make(index)]
    if shuffled is not None:
        random.Random(shuffled).shuffle(members)
    return write_tar(path, members)


def read(path: Path, fields: Fields | None = None) -> list[tuple[str, int, int]]:
    """Key, class and value of each image; counting, reading and indexing must agree."""
    access = Access(Retry(1), fields or Fields())
    count = read_headers(str(path), access.fields).samples
    bad, other = BadSamples(0, 0), BadSamples(0, 0)
    images = list(read_images({str(path): count}, 4, 3, bad, access=access))
    counts = write_index(path.with_suffix(".npy"), {str(path): count}, 3, other, access)
    assert count == len(images) == counts[str(path)] and bad.count == other.count == 0
    return [(image.key, image.label, int(image.image[0, 0, 0])) for image in images]


def pair(index: int, key: str = "{:05d}", image: str = "png", name: str = "cls") -> Members:
    key = key.format(index)
    return [(f"{key}.{image}", png(index)), (f"{key}.{name}", label(index))]


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


APPLE = b"\0\5\x16\7" + b"\0" * 78
CLEAR: dict[str, Callable[[int], Members]] = {
    "plain": pair,
    "macOS companions": lambda i: [
        *((f"./._{n}", APPLE) for n, _ in pair(i)),
        *((f"__MACOSX/{n}", APPLE) for n, _ in pair(i)),
        (f"{i}/.DS_Store", APPLE),
        *pair(i),
    ],
    "a second label": lambda i: [*pair(i), (f"{i:05d}.coarse.cls", b"77")],
    "a second label first": lambda i: [(f"{i:05d}.coarse.cls", b"77"), *pair(i)],
    "a caption and JSON beside": lambda i: [*pair(i), (f"{i:05d}.txt", b"a dog"), (f"{i:05d}.json", b"{}")],
    "upper case": lambda i: pair(i, image="PNG", name="CLS"),
    "white space": lambda i: [pair(i)[0], (f"{i:05d}.cls", b"\xef\xbb\xbf \t" + label(i) + b"\r\n")],
    "dots in keys": lambda i: pair(i, "v1.0-{:05d}"),
    "dots in keys, labels in JSON": lambda i: [
        pair(i, "a.b-{}.c")[0],
        (f"a.b-{i}.c.json", as_json({"label": i % 3})),
    ],
    "names in front": lambda i: pair(i, image="image.png", name="target.cls"),
    "JSON": lambda i: [pair(i)[0], (f"{i:05d}.json", as_json({"caption": "x", "label": i % 3}))],
    "JSON that is the class": lambda i: [pair(i)[0], (f"{i:05d}.json", label(i))],
    "JSON with the class as text": lambda i: [pair(i)[0], (f"{i:05d}.json", as_json({"label": str(i % 3)}))],
    "text": lambda i: pair(i, name="txt"),
    "something else in the shard": lambda i: [*pair(i), (f"README{i}.txt", b"hello"), (f"meta{i}.json", b"{}")],
}


@pytest.mark.parametrize("shuffled", [None, 0, 1])
@pytest.mark.parametrize("what", CLEAR)
def test_what_is_clear_is_read_in_any_order(what: str, shuffled: int | None, tmp_path: Path) -> None:
    found = read(shard(tmp_path / "a.tar", CLEAR[what], shuffled))
    assert sorted((group, value) for _, group, value in found) == sorted((i % 3, i) for i in range(COUNT))
    assert len({key for key, _, _ in found}) == COUNT
    if shuffled is None:
        assert [value for _, _, value in found] == list(range(COUNT))


def test_keys_are_webdataset_s_and_those_with_dots_whole(tmp_path: Path) -> None:
    assert [key for key, _, _ in read(shard(tmp_path / "a.tar", CLEAR["a second label"]))][:2] == ["00000", "00001"]
    assert [key for key, _, _ in read(shard(tmp_path / "b.tar", CLEAR["dots in keys"]))][:2] == [
        "v1.0-00000",
        "v1.0-00001",
    ]


@given(st.permutations(range(2 * COUNT)))
def test_the_order_of_members_does_not_matter(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    members = [member for index in range(COUNT) for member in pair(index)]
    found = read(write_tar(tmp_path_factory.mktemp("shard") / "a.tar", [members[i] for i in order]))
    assert sorted(found) == [(f"{i:05d}", i % 3, i) for i in range(COUNT)]


def test_a_name_that_comes_again_is_another_sample(tmp_path: Path) -> None:
    members = [*pair(0), *pair(1), *pair(0), *pair(1)]
    assert [value for _, _, value in read(write_tar(tmp_path / "a.tar", members))] == [0, 1, 0, 1]


SIDES: Callable[[int], Members] = lambda i: [  # noqa: E731
    (f"{i:05d}.left.png", png(i)),
    (f"{i:05d}.Right.png", png(100 + i)),
    (f"{i:05d}.json", as_json({"fine": i % 3, "coarse": 0})),
]


@pytest.mark.parametrize("shuffled", [None, 0])
@pytest.mark.parametrize(("side", "more"), [("left.png", 0), ("right.png", 100), ("Right.png", 100)])
def test_settings_choose_among_several(side: str, more: int, shuffled: int | None, tmp_path: Path) -> None:
    found = read(shard(tmp_path / "a.tar", SIDES, shuffled), Fields(side, "json:fine"))
    assert sorted((value, group) for _, group, value in found) == [(more + i, i % 3) for i in range(COUNT)]


def test_settings_choose_among_members_whose_keys_have_dots(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", lambda i: [(f"v1.{n}", c) for n, c in SIDES(i)])
    found = read(path, Fields("left.png", "json:fine"))
    assert found == [(f"v1.{i:05d}", i % 3, i) for i in range(COUNT)]


UNCLEAR: dict[str, tuple[Callable[[int], Members], str]] = {
    "several images": (SIDES, r"sample 00000 has several images \(left\.png, right\.png\).*image = \"left\.png\""),
    "two kinds of image": (lambda i: [*pair(i), (f"{i:05d}.jpg", b"")], r"several images \(png, jpg\)"),
    "several labels": (
        lambda i: [pair(i)[0], (f"{i:05d}.fine.cls", b"1"), (f"{i:05d}.coarse.cls", b"1")],
        r"sample 00000 has several labels \(fine\.cls, coarse\.cls\).*label = \"fine\.cls\"",
    ),
    "no labels": (lambda i: pair(i)[:1], r"no sample has an image and a label; members are 00000\.png, .*--sort=name"),
    "no images": (lambda i: pair(i)[1:], r"members are 00000\.cls, .*--sort=name"),
    "unknown images": (lambda i: pair(i, image="jxl"), r"members are 00000\.jxl, 00000\.cls, .*image = "),
    "other JSON": (
        lambda i: [pair(i)[0], (f"{i:05d}.json", as_json({"url": "x", "class": 1}))],
        r"a\.tar 00000: no 'label' in its \.json, which has 'url', 'class'; .*label = \"json:NAME\"",
    ),
    "captions": (
        lambda i: [pair(i)[0], (f"{i:05d}.txt", b"a dog")],
        r"a\.tar 00000: no class in its \.txt, which begins 'a dog'",
    ),
}


@pytest.mark.parametrize("what", UNCLEAR)
def test_what_is_not_clear_is_one_message_with_what_was_seen_and_the_remedy(what: str, tmp_path: Path) -> None:
    make, message = UNCLEAR[what]
    path = shard(tmp_path / "a.tar", make)
    log = tmp_path / "skipped.jsonl"
    with pytest.raises(DataError, match=message):
        list(read_images({str(path): None}, 4, 3, BadSamples(1, 0, log)))
    assert not log.is_file()
    if what not in ("other JSON", "captions"):  # which lie in members, where headers do not tell
        with pytest.raises(DataError, match=message):
            read_headers(str(path))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_a_compressed_shard_is_read_and_counted(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    plain = shard(tmp_path / "a.tar", pair, 0)
    packed = tmp_path / "b.tar"
    packed.write_bytes(compress(plain.read_bytes()))
    headers, bad = read_headers(str(packed)), BadSamples(0, COUNT)
    assert (headers.samples, headers.whole) == (COUNT, True)
    images = list(read_images({str(packed): COUNT}, 4, 3, bad))
    assert [image.key for image in images] == [key for key, _, _ in read(plain)]
    packed.write_bytes(packed.read_bytes()[:-40])
    assert not read_headers(str(packed)).whole or read_headers(str(packed)).samples == COUNT


# In a run


@pytest.fixture
def started(tiny: Callable[..., Recipe], tmp_path: Path) -> Callable[..., tuple[Recipe, RunFolder]]:
    def start(train: str, held_out: str | None = None, **settings: Any) -> tuple[Recipe, RunFolder]:
        source = {"name": "shards", "train": train, "num_classes": 3, **settings}
        recipe = tiny(data={"source": source | ({} if held_out is None else {"held_out": held_out})})
        folder = RunFolder(tmp_path / "run")
        folder.stage("data").mkdir(parents=True)
        data_stage.run(recipe, folder)
        return recipe, folder

    return start


def test_settings_reach_the_stages_and_load_images(
    started: Callable[..., tuple[Recipe, RunFolder]], tmp_path: Path
) -> None:
    path = str(shard(tmp_path / "a.tar", SIDES))
    recipe, folder = started(path, image="right.png", label="json:fine")
    images = open_split(recipe, folder, "train", 8, "tokens").all()
    assert images.images[:, 0, 0, 0].tolist() == [100 + i for i in range(COUNT)]
    assert images.labels.tolist() == [i % 3 for i in range(COUNT)]
    assert load_images(recipe).images.equal(images.images)


def test_defaults_leave_the_key_of_an_earlier_run_and_others_do_not(
    tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    path, folder = str(shard(tmp_path / "a.tar", pair)), RunFolder(tmp_path / "run")

    def key(**settings: Any) -> str:
        recipe = tiny(data={"source": {"name": "shards", "train": path, "num_classes": 3, **settings}})
        return stage_key(data_stage.STAGE, recipe, folder)

    recipe = tiny(data={"source": {"name": "shards", "train": path, "num_classes": 3}})
    assert set(result_relevant(recipe.data)["source"]["settings"]) == {
        "train",
        "held_out",
        "train_images",
        "num_classes",
    }
    assert key() != key(image="png") != key(label="cls")


@pytest.mark.parametrize("scheme", ["pipe:cat {}", "file://{}"])
def test_the_number_of_remote_images_is_unknown_and_not_none(
    scheme: str, started: Callable[..., tuple[Recipe, RunFolder]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, held_out = (scheme.format(shard(tmp_path / f"{name}.tar", pair)) for name in ("a", "b"))
    recipe, folder = started(train, held_out)
    assert "an unknown number of training and an unknown number of held-out images" in capsys.readouterr().out
    assert read_json(folder.images)["shards"] == {"train": {train: None}, "held-out": {held_out: None}}
    for split in ("train", "held-out"):
        images = split_images(recipe, folder, split, 8)
        assert len(images) == COUNT == sum(len(part) for part in images.batches(4))
    # As an earlier version wrote it.
    listing = read_json(folder.images)
    listing["shards"] = {"train": {train: 0}, "held-out": {held_out: 0}}
    folder.images.write_text(json.dumps(listing))
    assert len(split_images(recipe, folder, "held-out", 8)) == COUNT


def test_no_more_remote_shards_are_counted_than_are_needed(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", pair)
    log = tmp_path / "fetched"
    shards = {f"pipe:echo {i} >> {log}; cat {path}": None for i in range(4)} | {str(path): COUNT, "pipe:exit 3": None}
    split = Split(name="train", shards=shards, num_classes=3, decoding=Decoding(4), access=Access(Retry(1)))
    assert split.part(COUNT + 1).count() == COUNT + 1
    # Of four remote shards, one or two hold so many beside the local one.
    assert len(log.read_text().split()) in (1, 2)
    assert split.count() == 5 * COUNT
