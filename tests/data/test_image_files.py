from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from rearkit.data.image_files import list_image_files
from rearkit.errors import DataError


def png(colour: int = 0, side: int = 4) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (side, side), (colour, colour, colour)).save(held, format="png")
    return held.getvalue()


def lay(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number))
    return root


def pack(path: Path, root: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(root, arcname=root.name)
    return path


def test_a_flat_folder_is_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    root = lay(tmp_path / "flat", "10.png", "9.png", "1.webp", ".hidden.png", "__MACOSX/1.png")
    (root / "notes.txt").write_text("none")
    files, classes = list_image_files(root)
    assert [file.name for file in files] == ["1.webp", "9.png", "10.png"]
    assert classes is None


def test_classes_at_the_end_of_names_are_read(tmp_path: Path) -> None:
    root = lay(tmp_path / "flat", "000000-class0007.png", "000001-class0002.png")
    _, classes = list_image_files(root)
    assert classes is not None and classes.tolist() == [7, 2]
    lay(root, "000002.png")
    assert list_image_files(root)[1] is None


@pytest.mark.parametrize("packed", [False, True])
def test_class_folders_are_taken_in_turn_and_numbers_are_sorted_as_numbers(packed: bool, tmp_path: Path) -> None:
    root = lay(tmp_path / "set", "0/a.png", "0/b.png", "2/a.png", "10/a.png", "10/b.png", "10/deep/c.png")
    files, classes = list_image_files(pack(tmp_path / "set.tar", root) if packed else root)
    assert [file.name for file in files] == ["0/a.png", "2/a.png", "10/a.png", "0/b.png", "10/b.png", "10/deep/c.png"]
    assert classes is not None and classes.tolist() == [0, 1, 2, 0, 2, 2]
    assert {file.read() for file in files} == {png(number) for number in range(6)}


def test_linked_class_folders_are_entered(tmp_path: Path) -> None:
    lay(tmp_path / "all", "ant/x.png", "bee/x.png", "cat/x.png")
    (tmp_path / "some" / "cat").mkdir(parents=True)
    (tmp_path / "all/cat/x.png").rename(tmp_path / "some/cat/x.png")
    for name in ("ant", "bee"):
        (tmp_path / "some" / name).symlink_to(tmp_path / "all" / name)
    files, classes = list_image_files(tmp_path / "some")
    assert [file.name for file in files] == ["ant/x.png", "bee/x.png", "cat/x.png"]
    assert classes is not None and classes.tolist() == [0, 1, 2]


def test_one_folder_around_all_is_no_class(tmp_path: Path) -> None:
    root = lay(tmp_path / "set", "images/1.png", "images/2.png")
    for source in (root, pack(tmp_path / "set.tar", root)):
        files, classes = list_image_files(source)
        assert len(files) == 2 and classes is None


@pytest.mark.parametrize("given", ["shards", "shards/{0..1}.tar"])
def test_shards_are_read_by_folder_or_by_braces(given: str, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for number in range(2):
        root = lay(tmp_path / f"from{number}", "0001.png", "0002.png")
        with tarfile.open(tmp_path / "shards" / f"{number}.tar", "w") as archive:
            for path in sorted(root.iterdir()):
                archive.add(path, arcname=path.name)
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = 1
                archive.addfile(label, io.BytesIO(b"1"))
    files, classes = list_image_files(tmp_path / given)
    assert len(files) == 4 and classes is None


def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path) -> None:
    both = lay(tmp_path / "both", "cat/1.png", "dog/1.png", "grid.png")
    (tmp_path / "empty").mkdir()
    packed = pack(tmp_path / "set.tar.gz", both, "w:gz")
    for source, message in (
        (both, r"both: 1 images lie beside class folders, such as grid\.png; move them"),
        (tmp_path / "empty", "empty: no images in it; expected PNGs"),
        (packed, r"set\.tar\.gz: not a readable tar .*; unpack it where it is compressed"),
        (tmp_path / "gone", "gone: no such file or folder"),
    ):
        with pytest.raises(DataError, match=message):
            list_image_files(source)


def test_a_tar_that_was_cut_off_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path / "set.tar", lay(tmp_path / "set", "1.png", "2.png"))
    files, _ = list_image_files(path)
    path.write_bytes(path.read_bytes()[: files[-1].offset + 10])
    with pytest.raises(DataError, match=r"set\.tar: set/2\.png: cut off, \d+ bytes are missing"):
        files[-1].read()
