"""What an archive says of itself is compared with what there is before memory is taken for it."""

from __future__ import annotations

import io
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rearkit.errors import DataError, RearkitError
from rearkit.evaluation.fidelity import read_reference
from rearkit.evaluation.image_streams import NpzImages
from rearkit.sampling.manifest import MEMBER, read_manifest

IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
STATISTICS = {"mu": np.zeros(3), "sigma": np.eye(3)}


def npy(shape: tuple[int, ...], dtype: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


def encrypted(path: Path) -> None:
    np.savez(path, arr_0=IMAGES, **STATISTICS)
    content = bytearray(path.read_bytes())
    place = content.find(b"PK\x01\x02")
    while place >= 0:
        content[place + 8] |= 1
        place = content.find(b"PK\x01\x02", place + 4)
    path.write_bytes(content)


def compressed(path: Path) -> None:
    np.savez(path, arr_0=IMAGES, **STATISTICS)
    content = bytearray(path.read_bytes())
    place = content.find(b"PK\x01\x02")
    while place >= 0:
        content[place + 10 : place + 12] = (99).to_bytes(2, "little")
        place = content.find(b"PK\x01\x02", place + 4)
    path.write_bytes(content)


def of_objects(path: Path) -> None:
    np.savez(path, arr_0=np.array([{}], object), mu=np.array([{}], object), sigma=np.eye(3))


def promising(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", npy((10**12, 8, 8, 3), "|u1", bytes(10)))
        archive.writestr("mu.npy", npy((10**12,), "<f8", bytes(10)))
        archive.writestr("sigma.npy", npy((3, 3), "<f8", bytes(72)))


def negative(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", npy((-1, 8, 8, 3), "|u1", bytes(10)))
        archive.writestr("mu.npy", npy((-1,), "<f8", bytes(10)))
        archive.writestr("sigma.npy", npy((3, 3), "<f8", bytes(72)))


def larger_than_the_file(path: Path) -> None:
    np.savez(path, arr_0=IMAGES, **STATISTICS)
    content = bytearray(path.read_bytes())
    place = content.find(b"PK\x01\x02")
    content[place + 20 : place + 28] = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (encrypted, "is encrypted"),
        (compressed, "is compressed by method 99"),
        (of_objects, "holds Python objects"),
        (promising, "by its header, and has 10"),
        (negative, "by its header, and has 10"),
        (larger_than_the_file, "larger than the file"),
    ],
)
def test_what_an_archive_promises_is_one_line(make: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.npz"
    make(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read, kind in ((NpzImages.open, DataError), (read_reference, RearkitError)):
        with pytest.raises(kind, match=said) as caught:
            read(path)
        assert "odd.npz" in str(caught.value) and "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_ordinary_archives_are_read(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "fine.npz", arr_0=IMAGES, **STATISTICS)
        assert len(NpzImages.open(tmp_path / "fine.npz")) == 4
        assert read_reference(tmp_path / "fine.npz").gaussian is not None


def test_a_manifest_that_unpacks_to_gigabytes_is_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open(MEMBER, "w") as member:
        member.write(b'{"format": 1, "x": "')
        for _ in range(40):
            member.write(bytes(1 << 20).replace(b"\0", b" "))
        member.write(b'"}')
    assert read_manifest(tmp_path / "a.npz") is None


@pytest.mark.parametrize("make", [encrypted, compressed])
def test_a_manifest_that_cannot_be_read_is_none(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr(MEMBER, "[" * 100_000)
    assert read_manifest(tmp_path / "a.npz") is None
    assert read_manifest(tmp_path / "b.npz") is None
