"""Tars whose headers hold though bytes were repeated in them, so that what follows has moved: noticed, not read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tars import write_tar

from rearkit.data.bad_samples import BadSamples
from rearkit.data.convert import list_images
from rearkit.data.image_shards import read_headers, read_images
from rearkit.data.whole_tars import files_in_tar
from rearkit.errors import DataError


def again(content: bytes, place: int, size: int) -> bytes:
    """Repeat so many bytes at a place."""
    return content[:place] + content[place : place + size] + content[place:]


def headers(path: Path) -> list[int]:
    """Of each member, where its header begins."""
    with tarfile.open(path) as archive:
        return [member.offset for member in archive]


CONTENTS = {f"{index}.cls": str(3 - index).encode() for index in range(3)} | {"last": b"x" * 270}
# What is repeated of a header that begins at an offset; each leaves its sum as it was.
MOVED: dict[str, Callable[[bytes, int], bytes]] = {
    "a header": lambda content, start: again(content, start, 512),
    "a byte of a link's name": lambda content, start: again(content, start + 160, 1),
    "bytes of a user's name": lambda content, start: again(content, start + 270, 16),
    "the end of a header": lambda content, start: again(content, start + 345, 167),
    "most of a header": lambda content, start: again(content, start + 114, 398),
}


@pytest.mark.parametrize("member", [0, 1, 3])
@pytest.mark.parametrize("what", MOVED)
def test_a_content_that_has_moved_is_damage_though_all_headers_hold(what: str, member: int, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", CONTENTS.items())
    whole = path.read_bytes()
    path.write_bytes(MOVED[what](whole, headers(path)[member]))
    # Python's own reader passes over it.
    with tarfile.open(path) as archive:
        assert list(CONTENTS)[member] in archive.getnames()
    with path.open("rb") as file, pytest.raises(tarfile.ReadError, match="it is damaged at byte"):
        for found in files_in_tar(file, 0, path.stat().st_size, "x"):
            file.seek(found.offset_data)
            assert file.read(found.size) == CONTENTS[found.name]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("cut", [0, 1024, 10240])
def test_tars_of_every_form_are_whole_with_and_without_the_zeros_at_their_end(
    form: int, cut: int, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar"
    contents = {"empty": b"", "a/" * 60 + "long": b"1" * 512, "last": b"2" * 700}
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        archive.addfile(tarfile.TarInfo("folder/"))
    content = path.read_bytes()
    # As other programs leave it: with fewer blocks of zeros, with none.
    path.write_bytes(content[: max(len(content) - cut, len(content.rstrip(bytes(1))) // 512 * 512 + 512)])
    with path.open("rb") as file:
        assert [one.name for one in files_in_tar(file, 0, path.stat().st_size, "x")] == [*contents, "folder/"]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize(("place", "size"), [(114, 398), (145, 367), (0, 512)])
def test_no_label_of_a_shard_is_read_out_of_a_repeated_header(place: int, size: int, tmp_path: Path) -> None:
    """Found by `make test-faults` (data, shard: 0/649, 0/2656): the last class was 0, a digit of its owner's number."""
    path = write_tar(tmp_path / "x.tar", [one for i in range(3) for one in ((f"{i}.png", png(i)), (f"{i}.cls", b"4"))])
    path.write_bytes(again(path.read_bytes(), headers(path)[5] + place, size))
    assert not read_headers(str(path)).whole
    bad = BadSamples(1.0, 3)
    read = list(read_images({str(path): 3}, 8, 5, bad))
    assert [(one.key, one.label) for one in read] == [("0", 4), ("1", 4)]
    assert bad.count == 1


@pytest.mark.parametrize("what", MOVED)
def test_a_moved_image_of_a_class_is_not_converted(what: str, tmp_path: Path) -> None:
    """Found by `make test-faults` (class tar: 0/443, 0/468, 0/592)."""
    path = write_tar(tmp_path / "x.tar", [(f"{owner}/0.png", png(1)) for owner in "ab"])
    path.write_bytes(MOVED[what](path.read_bytes(), headers(path)[-1]))
    with pytest.raises(DataError, match=r"x\.tar: not a readable tar \(it is damaged at byte"):
        list_images(path)
