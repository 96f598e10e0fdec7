from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rearkit.errors import RearkitError
from rearkit.system.locks import claimed, locked, try_lock

HOLDER = """
import sys, time
from pathlib import Path
from rearkit.system.locks import claimed
with claimed(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has claimed a file."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_what_another_process_has_claimed_is_refused_until_it_ends(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with (
        pytest.raises(RearkitError, match=rf"^runs/x: process {holder.pid} on \S+ is at work there"),
        claimed(tmp_path / ".lock", "runs/x"),
    ):
        pass
    holder.kill()
    holder.wait()
    with claimed(tmp_path / ".lock", "runs/x"):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert not (tmp_path / ".lock").exists()


def test_a_claim_is_not_its_childrens(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with claimed(tmp_path / ".lock", "runs/x"):
        child = os.fork()
        if not child:  # waits as a process that reads samples may, whose parent was killed
            os.read(reading, 1)
            os._exit(0)
    with claimed(tmp_path / ".lock", "runs/x"):
        pass
    os.write(writing, b"x")
    os.waitpid(child, 0)


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with locked(path):
        assert try_lock(path) is None
    descriptor = try_lock(path)
    assert descriptor is not None
    os.close(descriptor)


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_lock_that_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    path, other = tmp_path / ".lock", tmp_path / "other"
    other.write_text("precious")
    {"link": lambda: path.symlink_to(other), "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    for lock in (lambda: claimed(path, "runs/x"), lambda: locked(path)):
        with pytest.raises(RearkitError, match=r"\.lock: is a link, a folder or a device"), lock():
            pass
    assert other.read_text() == "precious"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_locks_do_not_work_one_warning_says_so(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)
    folder = tmp_path / str(number)
    folder.mkdir()
    for _ in range(2):
        with claimed(folder / ".lock", "runs/x"), locked(folder / "x.lock"):
            pass
    said = capsys.readouterr().out
    assert said.count("warning:") == 1 and f"{folder}: locks don't work there ({os.strerror(number)})" in said
