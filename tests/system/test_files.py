from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rearkit.data.token_writing import write_token_shard
from rearkit.errors import StorageError
from rearkit.system import files
from rearkit.system.files import read_json, remove, replacing, sha256, storage_errors, write_json, write_text
from rearkit.weights import write_state_dict

LIMIT = 30_000  # bytes


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Have the operating system refuse to make any file larger, as it refuses on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def too_much() -> torch.Tensor:
    return torch.rand(LIMIT)


def torch_file(path: Path) -> None:
    with replacing(path) as temporary:
        torch.save({"weight": too_much()}, temporary)


def numpy_file(path: Path) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, too_much().numpy())


def picture(path: Path) -> None:
    with replacing(path) as temporary:
        Image.fromarray((torch.rand(300, 300) * 255).numpy().astype(np.uint8)).save(temporary, format="png")


def folder_of_files(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "small").write_bytes(b"x")
        (temporary / "large").write_bytes(b"x" * 2 * LIMIT)


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_text(path, "x" * 2 * LIMIT),
    "json": lambda path: write_json(path, ["x" * 2 * LIMIT]),
    "safetensors": lambda path: write_state_dict(path, {"weight": too_much()}),
    "token shard": lambda path: write_token_shard(path, np.zeros((LIMIT, 9)), np.zeros(LIMIT), {}),
    "torch": torch_file,
    "numpy": numpy_file,
    "picture": picture,
    "folder": folder_of_files,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_that_the_system_refuses_keeps_the_old_and_leaves_nothing_else(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if writer == "folder":
        path.mkdir()
        (path / "old").write_text("old")
    else:
        path.write_text("old")
    with pytest.raises(StorageError, match=r"file: the disk is full.*kept") as caught, largest_file(LIMIT):
        WRITERS[writer](path)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["file"]
    assert (path / "old" if writer == "folder" else path).read_text() == "old"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_takes_the_place_of_the_old(writer: str, tmp_path: Path) -> None:
    """The same writes without a limit, so that the test above fails for the right reason."""
    WRITERS[writer](tmp_path / "new" / "file")
    WRITERS[writer](tmp_path / "new" / "file")
    assert names(tmp_path / "new") == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_space_left_is_told_as_such(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuse)  # some file systems tell it only now
    with pytest.raises(StorageError, match="disk is full"):
        write_text(path, "new")
    assert names(tmp_path) == ["file"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_forbidden_write_says_what_the_system_said(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(StorageError, match=os.strerror(number)):
        write_text(tmp_path / "file", "new")


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_an_error_inside_keeps_the_old_leaves_nothing_and_stays_what_it_is(
    error: BaseException, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(type(error)) as caught, replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value is error
    assert names(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_nobody_sees_a_part_of_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_what_a_killed_writer_left_is_no_obstacle(tmp_path: Path) -> None:
    for leftover in (tmp_path / ".a.1-0.tmp", tmp_path / ".b.1-0.tmp" / "inner"):
        leftover.parent.mkdir(exist_ok=True)
        leftover.write_text("left")
    write_text(tmp_path / "a", "new")
    folder_of_files(tmp_path / "b")
    assert names(tmp_path) == [".a.1-0.tmp", ".b.1-0.tmp", "a", "b"]
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a", "b"]
    assert names(tmp_path / "b") == ["large", "small"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_text("old")
    folder_of_files(path)
    assert names(path) == ["large", "small"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c", "new")
    assert (tmp_path / "a" / "b" / "c").read_text() == "new"


@pytest.mark.parametrize("writer", ["text", "safetensors"])
def test_a_new_file_has_the_permissions_of_any_new_file(writer: str, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    WRITERS[writer](tmp_path / "file")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"nonsense"])
def test_json_that_cannot_be_read_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    assert read_json(tmp_path / "bad.json") is None
    assert read_json(tmp_path / "missing.json") is None
    assert read_json(tmp_path / "bad.json" / "below.json") is None


def test_removing_takes_files_folders_links_and_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "content").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("file", "folder", "link", "missing"):
        remove(tmp_path / name)
    assert names(tmp_path) == ["kept"]
    assert (tmp_path / "kept" / "content").is_file()  # a link goes, not what it points to


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1])
def test_the_hash_is_of_the_whole_file(size: int, tmp_path: Path) -> None:
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_json_files_end_in_a_newline_and_can_be_read_by_people(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"b": 1}
    assert "\n  " in text


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EXDEV, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_is_told_with_the_path(
    number: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "a", "old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        if call == "fsync":
            patched.setattr(os, "fsync", fail)
        else:
            patched.setattr(Path, "replace", fail)
        with pytest.raises(StorageError, match=rf"/a.*{os.strerror(number)}|{os.strerror(number)}.*/a"):
            write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
    assert (tmp_path / "a").read_text() == "first"
    assert names(tmp_path) == ["a"]


def test_temporary_names_differ_between_processes(tmp_path: Path) -> None:
    read, write = os.pipe()
    with replacing(tmp_path / "a") as own:
        own.touch()
        child = os.fork()
        if not child:
            os.write(write, files._temporary(tmp_path / "a").name.encode())
            os._exit(0)
        os.waitpid(child, 0)
    assert str(child) in os.read(read, 1000).decode()
    assert str(child) not in own.name


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_the_longest_name_can_be_written(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "new")
    assert names(tmp_path) == [name]


def test_a_rename_inside_of_a_write_that_fails_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"a: Invalid argument, while writing"), storage_errors(tmp_path / "a"):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(tmp_path / "a"))


def test_a_text_with_a_name_of_an_old_archive_is_written(tmp_path: Path) -> None:
    write_text(tmp_path / "page.md", "class caf\udce9, ü")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == "class caf\\udce9, ü"


def test_a_name_that_is_taken_is_told_in_a_line(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "mine")
    for path, taken in ((tmp_path, tmp_path), (tmp_path / "file" / "x", tmp_path / "file")):
        with pytest.raises(StorageError, match=rf"{taken}: .*, while writing .*; fix that, or choose another place"):
            write_text(path, "new")
