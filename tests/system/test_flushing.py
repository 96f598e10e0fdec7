"""Flushing to the disk: where it fails and where a file system cannot do it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from rearkit.errors import StorageError
from rearkit.system import console
from rearkit.system.files import storage_errors, sync, write_text


def test_a_flush_that_fails_by_itself_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # of what is open, the operating system knows no name

    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"/a: Input/output error"), storage_errors(tmp_path / "a"):
        sync(tmp_path / "a")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_flush_folders_works_with_one_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    console.say_once.cache_clear()  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "fsync", fail)
    for name in "ab":
        write_text(tmp_path / name / "file", "new")
    assert capsys.readouterr().out.count("cannot flush folders") == 1
