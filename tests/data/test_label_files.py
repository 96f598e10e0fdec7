"""Classes of a flat folder or tar by a list of them: ImageNet's validation images."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from rearkit.cli.main import cli
from rearkit.data.convert import CLASSES, Labelling, images_to_shards, list_images
from rearkit.data.label_files import read_labels
from rearkit.errors import DataError

COUNT = 12
NAMES = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(COUNT)]


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, format="jpeg")
    return buffer.getvalue()


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    (tmp_path / "val").mkdir()
    for index, name in enumerate(NAMES):
        (tmp_path / "val" / name).write_bytes(picture(index))
    return tmp_path / "val"


@pytest.fixture
def tar(flat: Path, tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        for name in reversed(NAMES):  # their names give the order, not the tar
            archive.add(flat / name, name)
    return tmp_path / "val.tar"


def listed(tmp_path: Path, text: str, name: str = "labels.txt") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


WANTED = [i % 3 for i in range(COUNT)]
WORDS = ["cat", "dog", "owl"]
LISTS = {
    "one number a line, from 1": "\n".join(str(k + 1) for k in WANTED) + "\n",
    "csv of names": "".join(f"{n},{WORDS[k]}\n" for n, k in zip(NAMES, WANTED, strict=True)),
    "csv with header, shuffled": "image,class\r\n"
    + "".join(f"{n},{WORDS[k]}\r\n" for n, k in sorted(zip(NAMES, WANTED, strict=True), key=lambda x: x[1])),
    "tabs": "".join(f"{n}\t{k}\n" for n, k in zip(NAMES, WANTED, strict=True)),
    "spaces, as Caffe has them": "".join(f"{n} {k}\n" for n, k in zip(NAMES, WANTED, strict=True)),
    "numbers from 1 by name": "".join(f"{n};{k + 1}\n" for n, k in zip(NAMES, WANTED, strict=True)),
    "Kaggle's, with boxes": "ImageId,PredictionString\n"
    + "".join(f"{n[:-5]},n0000000{k} 1 2 3 4 \n" for n, k in zip(NAMES, WANTED, strict=True)),
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS.keys())
@pytest.mark.parametrize("source", ["flat", "tar"])
def test_each_image_has_the_class_of_the_list(
    text: str, source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if (text.startswith("val/") and source == "tar") or text.startswith("val/"):
        text = text.replace("val/", "")
    sources, names = list_images(request.getfixturevalue(source), Labelling(listed(tmp_path, text)))
    assert {f"{s.key}.JPEG": s.label for s in sources} == dict(zip(NAMES, WANTED, strict=True))
    assert names is not None and len(names) == 3


def test_both_kinds_of_source_make_the_same_shards(flat: Path, tar: Path, tmp_path: Path) -> None:
    how = Labelling(listed(tmp_path, LISTS["csv of names"], "labels.csv"))
    made = [images_to_shards(s, tmp_path / s.stem / "out", 5, 1, how) for s in (flat, tar)]
    assert [[p.read_bytes() for p in shards] for shards in made[:1]] == [[p.read_bytes() for p in made[1]]]
    assert json.loads((tmp_path / "val" / "out" / CLASSES).read_text()) == WORDS


def test_the_devkits_numbers_become_wordnets_ids_where_its_list_lies_beside(flat: Path, tmp_path: Path) -> None:
    """ILSVRC2012_ID 1 is n02119789, class 278 of every pretrained classifier: the number less one would be wrong."""
    savemat = pytest.importorskip("scipy.io").savemat
    entries = np.array(
        [(1, "n03", 0), (2, "n01", 0), (3, "n02", 0), (1001, "n00", 3)],
        dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)],
    )
    savemat(tmp_path / "meta.mat", {"synsets": entries})
    sources, names = list_images(flat, Labelling(listed(tmp_path, LISTS["one number a line, from 1"])))
    assert names == ["n01", "n02", "n03"]
    assert [s.label for s in sources] == [[2, 0, 1][k] for k in WANTED]
    with pytest.raises(DataError, match=r"class 9 is none of those that meta\.mat beside it lists"):
        list_images(flat, Labelling(listed(tmp_path, "1\n" * 11 + "9\n")))


PAIRS = [f"{n},{WORDS[k]}" for n, k in zip(NAMES, WANTED, strict=True)]
WRONG = {
    "one too few": (["1"] * 11, "line 11: 11 labels for the 12 images"),
    "one too many": (["1"] * 13, "line 13: 13 labels for the 12 images"),
    "from 0": (["1"] * 5 + ["0"] + ["1"] * 6, "line 6: class 0; .*counts from 1"),
    "an unknown file": ([*PAIRS[:6], "nobody.JPEG,cat", *PAIRS[6:]], "line 7: 'nobody.JPEG' is no image of"),
    "a file twice": ([*PAIRS, PAIRS[2]], "line 13: .*00000003.JPEG' again, as in line 3"),
    "a file missing": (PAIRS[:-2], "line 10 is the last, and 2 images have no class, first ILSVRC2012_val_00000011"),
    "no class": ([*PAIRS[:3], f"{NAMES[3]},", *PAIRS[4:]], "line 4: an image file and its class expected"),
    "three columns": ([f"{p},x" for p in PAIRS], "line 1: an image file and its class expected"),
    "numbers from 5": ([f"{n},{k + 5}" for n, k in zip(NAMES, WANTED, strict=True)], "lowest class is 5"),
    "a number without end": ([f"{n},{k * 10**9 + 1}" for k, n in enumerate(NAMES)], "class 11000000001; a class has"),
    "a quotation mark": ([*PAIRS[:2], f'{NAMES[2]},"cat', *PAIRS[3:]], "line 3: its quotation marks do not pair"),
    "thousands of digits": ([f"{n},{'9' * 5000}" for n in NAMES], "class 999999999999999999…; a class has a number"),
    "thousands of digits a line": (["9" * 5000] * 12, "class 999999999999999999…; a class has a number"),
    "nothing": (["", ""], "no labels in it"),
}


@pytest.mark.parametrize(("lines", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_list_that_does_not_fit_is_refused_by_its_line(
    lines: list[str], message: str, flat: Path, tmp_path: Path
) -> None:
    file = listed(tmp_path, "\n".join(lines))
    with pytest.raises(DataError, match=message) as error:
        list_images(flat, Labelling(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_files_of_one_name_in_two_folders_need_their_paths(tmp_path: Path) -> None:
    images = ["a/1.jpg", "b/1.jpg", "b/2.jpg"]
    found, names = read_labels(listed(tmp_path, "a/1.jpg,x\nb/1.jpg,y\n2,x\n"), images, "photos")
    assert found == {"a/1.jpg": 0, "b/1.jpg": 1, "b/2.jpg": 0} and names == ["x", "y"]
    with pytest.raises(DataError, match=r"line 2: '1.jpg' is no image of photos, or is the name of several"):
        read_labels(listed(tmp_path, "2,x\n1.jpg,x\n"), images, "photos")


def test_a_long_number_among_names_is_a_name(tmp_path: Path) -> None:
    found, names = read_labels(listed(tmp_path, f"1,cat\n2,{'9' * 20}\n"), ["1.jpg", "2.jpg"], "photos")
    assert names == ["9" * 20, "cat"] and found == {"1.jpg": 1, "2.jpg": 0}


def test_by_the_command_line(flat: Path, tmp_path: Path) -> None:
    file = listed(tmp_path, LISTS["csv of names"], "labels.csv")
    command = ["data", "--from-folder", str(flat), "--to", str(tmp_path / "out"), "--workers", "1"]
    done = CliRunner().invoke(cli, [*command, "--labels", str(file)])
    assert done.exit_code == 0 and "1 shards" in done.output, done.output
    bare = CliRunner().invoke(cli, command)
    assert bare.exit_code and "--labels FILE lists their classes, --unlabelled does without" in str(bare.exception)
    (tmp_path / "more.json").write_text('["ape", "cat", "dog", "owl"]')
    named = CliRunner().invoke(cli, [*command, "--labels", str(file), "--classes", str(tmp_path / "more.json")])
    assert isinstance(named.exception, DataError) and "another" in str(named.exception)  # conversion lies there
    both = CliRunner().invoke(cli, [*command, "--labels", str(file), "--unlabelled"])
    assert both.exit_code == 2 and "one of them" in both.output
    # Another list makes another conversion, though the images are the same.
    file.write_text(LISTS["csv of names"].replace("owl", "dog"))
    again = CliRunner().invoke(cli, [*command, "--labels", str(file)])
    assert again.exit_code and "holds another conversion" in str(again.exception)
