"""Folders and tars of images into shards: whole, resumable, refusing what is not theirs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rearkit.components.datasets.folder import Folder, FolderSettings
from rearkit.data.bad_samples import BadSamples
from rearkit.data.conversions import LOCK, SOURCES
from rearkit.data.convert import CLASSES, images_to_shards, list_images
from rearkit.data.image_shards import read_images, write_shards
from rearkit.errors import DataError, RearkitError

NAMES = ("cat", "dog", "owl")
EACH = 5


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, format="png")
    return buffer.getvalue()


def shade(label: int, index: int) -> int:
    return 10 + 60 * label + 7 * index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name in enumerate(NAMES):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(EACH):
            (tmp_path / "images" / name / f"n.{index}.PNG").write_bytes(picture(shade(label, index)))
    (tmp_path / "images" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


@pytest.fixture
def tar(folder: Path, tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "flat.tar", "w") as archive:
        archive.add(folder, "images")
    return tmp_path / "flat.tar"


@pytest.fixture
def nested_tar(folder: Path, tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "nested.tar", "w") as archive:
        for name in NAMES:
            with tarfile.open(tmp_path / f"{name}.tar", "w") as inner:
                for path in sorted((folder / name).iterdir()):
                    inner.add(path, path.name)
            archive.add(tmp_path / f"{name}.tar", f"{name}.tar")
    return tmp_path / "nested.tar"


def shades(shards: list[Path]) -> Counter[tuple[int, int]]:
    bad = BadSamples(0.0, 0)
    found = Counter((int(r.image[0, 0, 0]), r.label) for r in read_images({str(s): 0 for s in shards}, 8, 3, bad))
    assert not bad.count
    return found


EXPECTED = Counter((shade(label, index), label) for label in range(3) for index in range(EACH))


@pytest.mark.parametrize("source", ["folder", "tar", "nested_tar"])
def test_every_image_is_in_the_shards_once_with_its_class(
    source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shards = images_to_shards(request.getfixturevalue(source), tmp_path / "out", shard_size=4, workers=2)
    assert len(shards) == 4
    assert shades(shards) == EXPECTED
    assert json.loads((tmp_path / "out" / CLASSES).read_text()) == list(NAMES)


def test_a_class_that_is_called_as_webdatasets_own_members_is_in_the_shards(folder: Path, tmp_path: Path) -> None:
    (folder / "cat").rename(folder / "__background__")
    assert shades(images_to_shards(folder, tmp_path / "out", 4, 1)) == EXPECTED


def test_names_of_no_encoding_are_converted(folder: Path, tmp_path: Path) -> None:
    (folder / "cat").rename(folder / "caf\udce9")
    (folder / "dog" / "n.1.PNG").rename(folder / "dog" / "\udce9.PNG")
    assert sum(shades(images_to_shards(folder, tmp_path / "out", 4, 1)).values()) == 3 * EACH


def test_the_three_kinds_of_source_make_the_same_shards(
    folder: Path, tar: Path, nested_tar: Path, tmp_path: Path
) -> None:
    made = [images_to_shards(s, tmp_path / f"out{i}", 4, 1) for i, s in enumerate((folder, tar, nested_tar))]
    for shards in zip(*made, strict=True):
        assert len({shard.read_bytes() for shard in shards}) == 1


def test_three_ways_give_the_same_classes_for_the_same_tree(tmp_path: Path) -> None:
    """By the folder dataset, by a folder and by a tar of it, with nested, hidden, empty and stray files."""
    tree = tmp_path / "photos"
    for name in ("10", "2", "1"):
        (tree / name / "images").mkdir(parents=True)
        for index in range(3):
            (tree / name / "images" / f"{index}.JPG").write_bytes(picture(20 * int(name) + index))
            (tree / name / "images" / f"._{index}.JPG").write_bytes(b"of macOS")
    for folder in (".ipynb_checkpoints", "__MACOSX", "empty"):
        (tree / folder).mkdir()
    (tree / ".DS_Store").write_bytes(b"x")
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(tree, "photos")
    by_folder, names = list_images(tree)
    by_tar, tar_names = list_images(tmp_path / "photos.tar")
    dataset = Folder(FolderSettings(train=str(tree), held_out=str(tree)))
    assert names == tar_names == list(dataset.class_names()) == ["1", "2", "10"]
    found = {sample.key: sample.label for sample in dataset.images("train")}
    assert found == {s.key: s.label for s in by_folder} == {s.key: s.label for s in by_tar}
    assert len(found) == 9
    mixed = [sample.label for sample in dataset.images("train")]
    assert mixed != sorted(mixed) and mixed == [sample.label for sample in dataset.images("train")]


def test_an_image_that_goes_away_while_it_is_read_is_named(folder: Path, tmp_path: Path) -> None:
    samples = list(Folder(FolderSettings(train=str(folder), held_out=str(folder))).images("train"))
    lost = folder / "dog" / "n.2.PNG"
    lost.unlink()
    with pytest.raises(DataError, match=r"n\.2\.PNG: image cannot be read \(No such file or directory\); restore"):
        list(write_shards(samples, tmp_path / "out", "train", 100))
    assert not list((tmp_path / "out").glob("*"))


def test_an_image_that_is_cut_off_after_it_was_listed_gets_into_no_shard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed_then_cut(*asked: Any) -> Any:
        found = list_images(*asked)
        (folder / "dog" / "n.2.PNG").write_bytes(picture(9)[:-20])
        return found

    monkeypatch.setattr("rearkit.data.convert.list_images", listed_then_cut)
    with pytest.raises(DataError, match=r"n\.2\.PNG: cut off, \d+ bytes are missing; copy it again"):
        images_to_shards(folder, tmp_path / "out", workers=1)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_names_with_spaces_dots_and_any_letters_stay(tmp_path: Path) -> None:
    names = ["Äpfel, grün", "name with space", "v1.0"]
    for label, name in enumerate(names):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(2):
            (tmp_path / "photos" / name / f"bild {index}.ß.png").write_bytes(picture(shade(label, index)))
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(tmp_path / "photos", "photos")
    dataset = Folder(FolderSettings(train=str(tmp_path / "photos"), held_out=str(tmp_path / "photos")))
    assert set(dataset.class_names()) == set(names)
    for source in ("photos", "photos.tar"):
        made = images_to_shards(tmp_path / source, tmp_path / f"{source}-out", 10, 1)
        assert json.loads((tmp_path / f"{source}-out" / CLASSES).read_text()) == sorted(names) == dataset.class_names()
        order = sorted(names)
        assert shades(made) == Counter((shade(k, i), order.index(n)) for k, n in enumerate(names) for i in range(2))


def test_a_conversion_that_was_cut_off_goes_on(folder: Path, tmp_path: Path) -> None:
    first = images_to_shards(folder, tmp_path / "out", 4, 1)
    before = {path: path.stat().st_mtime_ns for path in first}
    first[1].unlink()
    again = images_to_shards(folder, tmp_path / "out", 4, 1)
    assert shades(again) == EXPECTED
    assert [path for path in again if path.stat().st_mtime_ns != before[path]] == [first[1]]


def repaint(path: Path, value: int) -> None:
    """Write another picture of the same size, a second later."""
    status = path.stat()
    path.write_bytes(picture(value))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert path.stat().st_size == status.st_size


def test_images_that_were_edited_are_converted_again_and_no_others(folder: Path, tmp_path: Path) -> None:
    first = images_to_shards(folder, tmp_path / "out", 4, 1)
    before = {path: path.stat().st_mtime_ns for path in first}
    repaint(folder / "dog" / "n.2.PNG", 9)
    again = images_to_shards(folder, tmp_path / "out", 4, 1)
    assert shades(again) == EXPECTED - Counter([(shade(1, 2), 1)]) + Counter([(9, 1)])
    assert len([path for path in again if path.stat().st_mtime_ns != before[path]]) == 1


def test_a_tar_that_was_made_anew_is_converted_again(folder: Path, tar: Path, tmp_path: Path) -> None:
    images_to_shards(tar, tmp_path / "out", 4, 1)
    size, time = tar.stat().st_size, tar.stat().st_mtime_ns
    repaint(folder / "dog" / "n.2.PNG", 9)
    with tarfile.open(tar, "w") as archive:
        archive.add(folder, "images")
    os.utime(tar, ns=(time, time + 10**9))
    assert tar.stat().st_size == size
    assert (9, 1) in shades(images_to_shards(tar, tmp_path / "out", 4, 1))


def test_shards_of_an_earlier_version_which_noted_no_times_stay(folder: Path, tmp_path: Path) -> None:
    first = images_to_shards(folder, tmp_path / "out", 4, 1)
    before = [path.stat().st_mtime_ns for path in first]
    (tmp_path / "out" / SOURCES).unlink()
    assert [path.stat().st_mtime_ns for path in images_to_shards(folder, tmp_path / "out", 4, 1)] == before


def test_a_folder_with_another_conversion_is_refused(folder: Path, tmp_path: Path) -> None:
    images_to_shards(folder, tmp_path / "out", 4, 1)
    with pytest.raises(DataError, match="another conversion"):
        images_to_shards(folder, tmp_path / "out", 5, 1)


def test_a_folder_that_another_process_converts_into_is_refused(folder: Path, tmp_path: Path) -> None:
    hold = (
        "import sys, pathlib; from rearkit.system.locks import claimed\n"
        "with claimed(pathlib.Path(sys.argv[1]), 'it'): print(flush=True); sys.stdin.read()"
    )
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", hold, str(tmp_path / "out" / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(RearkitError, match="is at work there"):
            images_to_shards(folder, tmp_path / "out", 4, 1)
        holder.communicate()
    assert shades(images_to_shards(folder, tmp_path / "out", 4, 1)) == EXPECTED


def test_shards_mix_the_classes(folder: Path, tmp_path: Path) -> None:
    first = images_to_shards(folder, tmp_path / "out", 10, 1)[0]
    assert len({label for _, label in shades([first])}) > 1


@pytest.mark.parametrize(("make", "message"), [(False, "no such folder or tar"), (True, "no images in class folders")])
def test_a_source_without_images_is_refused(make: bool, message: str, tmp_path: Path) -> None:
    if make:
        (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        list_images(tmp_path / "empty")


@pytest.mark.parametrize("what", ["the first header", "a later header", "the end"])
def test_a_damaged_archive_of_a_class_is_an_error_that_names_it(what: str, nested_tar: Path) -> None:
    content = bytearray(nested_tar.read_bytes())
    with tarfile.open(nested_tar) as archive:
        (dog,) = (member for member in archive if member.name.endswith("dog.tar"))
    if what == "the end":
        # Its header says that it is longer than the file.
        dog.size += len(content)
        content[dog.offset : dog.offset + 512] = dog.tobuf()
    else:
        place = dog.offset_data
        if what == "a later header":
            with tarfile.open(fileobj=io.BytesIO(bytes(content[place : place + dog.size]))) as inner:
                place += inner.getmembers()[2].offset
        content[place : place + 100] = b"\xff" * 100
    nested_tar.write_bytes(content)
    with pytest.raises(DataError, match=r"dog\.tar"):
        list_images(nested_tar)


def test_damage_in_the_middle_of_a_tar_is_not_taken_for_its_end(tar: Path) -> None:
    with tarfile.open(tar) as archive:
        place = archive.getmembers()[-3].offset
    content = bytearray(tar.read_bytes())
    content[place : place + 100] = b"\xff" * 100
    tar.write_bytes(content)
    with pytest.raises(DataError, match=r"flat\.tar: not a readable tar \(it is damaged at byte"):
        list_images(tar)


def test_names_from_the_top_are_those_below_a_folder(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "top.tar", "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            info = archive.gettarinfo(path)
            if "cat" not in path.parts:
                info.name = f"/{path.relative_to(folder)}"
            else:
                info.name = str(path.relative_to(folder))
            with path.open("rb") as file:
                archive.addfile(info, file)
    assert list_images(tmp_path / "top.tar")[1] == list_images(folder)[1]
