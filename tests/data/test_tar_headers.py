"""Tars that GNU tar writes and Python reads wrongly, or whose headers lie: read rightly, or refused in one line."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tars import write_tar

from rearkit.data import shard_members
from rearkit.data.convert import list_images
from rearkit.data.image_files import list_image_files
from rearkit.data.image_shards import read_headers
from rearkit.data.shard_members import Fields, opened
from rearkit.data.tar_headers import MOST_BYTES, is_tar
from rearkit.errors import DataError, StorageError
from rearkit.system.console import say_once

FILES = [(f"{owner}/{index}.png", bytes([index]) * 300) for owner in "ab" for index in range(2)]
BLOCKS = 2 * 2 * 1024  # that `FILES` take


def header(name: str, kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(kind: bytes, *records: bytes) -> bytes:
    """A pax header; each record's length is told in three digits."""
    content = b"".join(b"%03d %s\n" % (len(record) + 5, record) for record in records)
    return header("pax", kind, len(content)) + padded(content)


def negative(size: int) -> bytes:
    block = bytearray(header("a/x.png", b"0", 0))
    block[124:136] = b"\xff" + size.to_bytes(11, "big", signed=True)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def with_end(path: Path, added: bytes) -> Path:
    """A tar of `FILES`, then what is added."""
    write_tar(path, FILES)
    path.write_bytes(path.read_bytes()[:BLOCKS] + added + bytes(1024))
    return path


FILE = header("a/x.png", b"0", 300) + padded(b"x" * 300)
SPARSE: dict[str, bytes] = {
    "old GNU": header("a/x.png", b"S", 300) + padded(b"x" * 300),
    "0.0": pax(b"x", b"GNU.sparse.size=9", b"GNU.sparse.numblocks=1") + FILE,
    "0.1": pax(b"x", b"GNU.sparse.map=0,9", b"GNU.sparse.size=9") + FILE,
    "1.0": pax(b"x", b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=9") + FILE,
    "a map of letters": pax(b"x", b"GNU.sparse.map=a,b") + FILE,
    "a size of letters": pax(b"x", b"GNU.sparse.size=abc") + FILE,
    "a real size of letters": pax(b"x", b"GNU.sparse.realsize=x") + FILE,
    "for all": pax(b"g", b"GNU.sparse.map=a,b") + FILE,
}
LIES: dict[str, tuple[bytes, str]] = {
    "negative": (negative(-512), "says -512 bytes for 'a/x.png'"),
    "far back": (negative(-1 << 40), "says -1099511627776 bytes"),
    "pax negative": (pax(b"x", b"size=-1024") + FILE, "says -1024 bytes"),
    "name": (header("@", b"L", MOST_BYTES + 1), "1,048,577 bytes of names"),
    "link's name": (header("@", b"K", 1 << 32), "bytes of names"),
    "pax": (header("@", b"x", 1 << 32), "bytes of names"),
    "pax for all": (header("@", b"g", 1 << 32), "bytes of names"),
    "many": (pax(b"x", b"comment=x") * 2000 + FILE, "more than 8 headers"),
    "many for all": (pax(b"g", b"comment=x") * 2000 + FILE, "more than 8 headers"),
    # Each would be a name that goes on to the end, and Python would hold them all.
    "names in names": (header("@", b"x", 1 << 16) + b"2 " * ((1 << 15) - 1) + b"2=" + FILE, "longer than it says"),
    "digits": (header("@", b"x", 1 << 16) + b"1" * (1 << 16) + FILE, "a number of 100 digits"),
    "charset": (pax(b"x", b"hdrcharset=\xff") + FILE, "a header cannot be read"),
}


@pytest.mark.parametrize("form", SPARSE)
def test_a_sparse_member_is_refused_since_its_bytes_lie_elsewhere(form: str, tmp_path: Path) -> None:
    path = with_end(tmp_path / "x.tar", SPARSE[form])
    wanted = r"x\.tar: .*'a/x\.png' in it is sparse.*; pack it again without --sparse \(-S\)$"
    for read in (list_images, list_image_files, lambda path: read_headers(str(path))):
        with pytest.raises(DataError, match=wanted):
            read(path)


@pytest.mark.parametrize("what", LIES)
def test_what_a_header_says_is_checked_before_it_is_followed(what: str, tmp_path: Path) -> None:
    added, told = LIES[what]
    path = with_end(tmp_path / "x.tar", added)
    with pytest.raises(DataError, match=rf"x\.tar: not a readable tar \(.*{told}.*\); copy it again$"):
        list_images(path)
    path.write_bytes(added)
    assert is_tar(path)
    with pytest.raises(DataError, match=told):
        list_images(path)


@pytest.mark.parametrize("blocks", [1, 2, 20])
def test_what_follows_after_the_end_is_said(blocks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "x.tar", FILES)
    whole = path.read_bytes()
    path.write_bytes(whole[:BLOCKS] + bytes(blocks * 512) + whole)
    wanted = f"more follows after its end at byte {BLOCKS}.*; if it was made by joining tars, join them with tar -A"
    for read in (list_images, list_image_files):
        with pytest.raises(DataError, match=wanted):
            read(path)
    say_once.cache_clear()
    assert not read_headers(str(path), Fields(unlabelled=True)).whole
    assert "join them with tar -A" in capsys.readouterr().out.replace("\n", " ")


def test_a_header_of_zeros_in_a_tar_in_a_tar_is_said(tmp_path: Path) -> None:
    inner = write_tar(tmp_path / "inner", [(f"{index}.png", b"x" * 300) for index in range(3)])
    content = bytearray(inner.read_bytes())
    for place, wanted in ((None, 6), (1024, 0)):
        if place is not None:
            content[place : place + 512] = bytes(512)
        tar = write_tar(tmp_path / "x.tar", [("a.tar", bytes(content)), ("b.tar", inner.read_bytes())])
        if wanted:
            assert len(list_images(tar)[0]) == wanted
            continue
        with pytest.raises(DataError, match=r"a\.tar in it is not a readable tar \(more follows .* byte 1024\)"):
            list_images(tar)


@pytest.mark.parametrize(
    ("added", "cut"), [(pax(b"g", b"comment=x"), 0), (pax(b"g", b"comment=x"), 1024), (b"", 1024 + 212)]
)
def test_tars_that_end_without_zeros_or_with_a_header_for_all_are_whole(added: bytes, cut: int, tmp_path: Path) -> None:
    path = with_end(tmp_path / "x.tar", added)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    assert len(list_images(path)[0]) == len(FILES)
    # As the first of two tars in a tar, where other bytes follow.
    outer = write_tar(tmp_path / "outer.tar", [("a.tar", path.read_bytes()), ("b.tar", path.read_bytes())])
    assert len(list_images(outer)[0]) == 2 * len(FILES)


def link(name: str, target: str, kind: bytes) -> Callable[[tarfile.TarFile], None]:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        archive.addfile(info)

    return add


def test_hard_links_are_the_files_that_they_name_and_other_links_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tar(tmp_path / "x.tar", FILES)
    with tarfile.open(path, "a") as archive:
        link("b/8.png", "a/1.png", tarfile.LNKTYPE)(archive)
        link("b/9.png", "b/8.png", tarfile.LNKTYPE)(archive)
        link("b/early.png", "b/late.png", tarfile.LNKTYPE)(archive)
        link("b/soft.png", "../a/1.png", tarfile.SYMTYPE)(archive)
        link("b/.hidden.png", "../a/1.png", tarfile.SYMTYPE)(archive)
        late = tarfile.TarInfo("b/late.png")
        late.size = 5
        archive.addfile(late, io.BytesIO(b"later"))
    say_once.cache_clear()
    found = {file.name: file.read() for file in list_image_files(path)[0]}
    assert found == dict(FILES) | {"b/8.png": FILES[1][1], "b/9.png": FILES[1][1], "b/late.png": b"later"}
    told = "x.tar: ignored 2 links, pipes and others that are no files, the first b/early.png; pack"
    assert told in capsys.readouterr().out.replace("\n", " ")
    assert len(list_images(path)[0]) == len(found)
    headers = read_headers(str(path), Fields(unlabelled=True))
    assert (headers.samples, headers.whole) == (len(found), True)


def test_a_compressed_shard_that_would_fill_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = write_tar(tmp_path / "x.tar", FILES)
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(plain, "0.png")
    with opened(path) as file:
        file.seek(0)
        assert is_tar(plain) and not is_tar(path) and len(file.read(512)) == 512
    monkeypatch.setattr(shard_members, "LEFT", 1 << 62)
    monkeypatch.setattr(shard_members, "LEFT_SHARE", 2.0)
    with pytest.raises(StorageError, match=r"x\.tar\.gz: more than 0 MiB unpacked, and .* MiB left; .*TMPDIR"):
        read_headers(str(path))
