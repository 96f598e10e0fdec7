from __future__ import annotations

import pytest

from rearkit.data.class_folders import find_images, image_suffixes, sort_classes, strip_roots
from rearkit.errors import DataError


def keys(*paths: str) -> list[str]:
    return [found.key for found in find_images(paths, "photos")]


def test_the_folder_below_the_root_names_the_class_however_deep_files_lie() -> None:
    found = find_images(["n01443537/images/x.JPEG", "n01629819/images/y.JPEG"], "photos")
    assert [image.owner for image in found] == ["n01443537", "n01629819"]
    assert [image.key for image in found] == ["n01443537/images/x", "n01629819/images/y"]


def test_hidden_files_and_what_macos_adds_are_ignored_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    hidden = [".DS_Store", "cat/._1.jpg", "__MACOSX/cat/._1.jpg", ".ipynb_checkpoints/1.jpg", "cat/.thumbs/1.jpg"]
    assert keys("cat/1.jpg", *hidden) == ["cat/1"]
    assert capsys.readouterr().out == ""


def test_what_is_ignored_is_said_once_by_suffix_and_count(capsys: pytest.CaptureFixture[str]) -> None:
    keys("cat/1.jpg", "cat/a.txt", "cat/b.txt", "cat/c.heic", "readme", "loose.png")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("data: photos: ignored 5 files that are no images: 2 × .txt")
    assert "1 without a suffix" in line and "1 × .heic" in line and "convert them to PNG" in line


def test_a_class_without_an_image_is_refused_by_its_name() -> None:
    with pytest.raises(DataError, match=r"photos: class 'dog' has no images, only 2 × .svg \(render them to PNG first"):
        keys("cat/1.jpg", "dog/1.svg", "dog/2.svg")


def test_images_of_one_name_are_kept_apart() -> None:
    assert keys("cat/1.jpg", "cat/1.png", "cat/2.jpg") == ["cat/1_jpg", "cat/1_png", "cat/2"]
    found = keys("cat/a.b.jpg", "cat/a_b.jpg", "cat/a_b_jpg.png")
    assert len(set(found)) == 3 and not any("." in key for key in found)


def test_a_class_that_is_called_as_webdatasets_own_members_is_kept() -> None:
    assert keys("__background__/1.jpg", "a__b__/1.jpg", "____/1.jpg") == [
        "x____/1",
        "x__background__/1",
        "a__b__/1",
    ]


def test_folders_named_by_numbers_are_sorted_as_numbers() -> None:
    assert sort_classes(["10", "2", "1", "0"]) == ["0", "1", "2", "10"]
    assert sort_classes(["10", "2", "a"]) == ["10", "2", "a"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif", "ppm", "avif"])
def test_what_pillow_decodes_by_itself_is_an_image(suffix: str) -> None:
    assert suffix in image_suffixes()
    assert keys(f"cat/1.{suffix.upper()}") == ["cat/1"]


@pytest.mark.parametrize("suffix", ["eps", "ps", "pdf", "svg", "heic", "mpg", "wmf", "psd", "icns", "fits", "xpm"])
def test_what_starts_another_program_or_needs_one_is_none(suffix: str) -> None:
    assert suffix not in image_suffixes()


def test_folders_around_a_whole_archive_are_left_out() -> None:
    files = {"./top/train/cat/1.jpg": 1, "./top/train/dog/1.jpg": 2, "__MACOSX/top/._train": 3}
    assert strip_roots(files) == {"cat/1.jpg": 1, "dog/1.jpg": 2}
    assert strip_roots({"cat/1.jpg": 1}) == {"cat/1.jpg": 1}
    assert strip_roots({"n01/images/1.jpg": 1, "n02/images/1.jpg": 2}).keys() == {
        "n01/images/1.jpg",
        "n02/images/1.jpg",
    }
