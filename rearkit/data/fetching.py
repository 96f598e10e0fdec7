"""Remote shards: copied completely to a local file, with retries, before they are read.

A shard is read only when its copy is complete, so a transfer that breaks off can be tried again without any sample
being seen twice. Python itself reads ``http(s)``, ``ftp`` and ``file`` URLs; ``pipe:COMMAND`` is run by the shell, and
`webdataset.gopen` reads all other schemes.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import attrs
import webdataset

from rearkit.errors import StorageError, first_line
from rearkit.system.console import say
from rearkit.system.files import replacing
from rearkit.system.locks import flocked, opened_lock

OURS = ("http://", "https://", "ftp://", "file://")
# Seconds without a byte from a server after which a transfer has failed.
SILENCE_S = 60.0
# Seconds between two tries, at most.
LONGEST_WAIT_S = 60.0
# HTTP statuses below 500 after which another try may succeed: timeout, too early, too many requests.
TRY_AGAIN = (408, 425, 429)


class FetchError(Exception):
    """A shard could not be fetched."""


@attrs.frozen
class Retry:
    """How often to try, and how long to wait in between.

    Attributes:
        tries: total number of tries, at least 1.
        wait: seconds to wait after the first failure; doubled after each further one, up to a minute.
    """

    tries: int = 4
    wait: float = 1.0


def is_remote(shard: str) -> bool:
    """Return whether a shard is a URL or a command, not the path of a local file."""
    return "://" in shard or shard.startswith("pipe:")


def fetch(shard: str, target: Path, retry: Retry) -> None:
    """Copy a remote shard to a file atomically.

    Raises:
        FetchError: the shard could not be fetched; the message says why.
        StorageError: the disk is full.
    """
    for attempt in range(1, retry.tries + 1):
        try:
            with replacing(target) as temporary, temporary.open("wb") as file:
                _copy(shard, file)
            return
        # A full disk is the user's to fix; another try would fill it again.
        except StorageError:
            raise
        except (OSError, http.client.HTTPException) as error:
            reason = first_line(error)
            lasting = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in TRY_AGAIN
        except ValueError as error:
            # There is no such scheme.
            reason = first_line(error)
            lasting = True
        if lasting or attempt == retry.tries:
            raise FetchError(f"{reason} (tried {attempt} time{'s' if attempt > 1 else ''})")
        wait = min(retry.wait * 2 ** (attempt - 1), LONGEST_WAIT_S)
        say(f"data: {shard}: {reason}; trying again in {wait:g} s ({attempt} of {retry.tries} tries)")
        time.sleep(wait)


@contextlib.contextmanager
def local_copy(shard: str, retry: Retry) -> Iterator[Path]:
    """Yield the path of a local shard, or of a copy of a remote one; the copy is removed at the end.

    Raises:
        FetchError: the shard could not be fetched.
        StorageError: the disk is full.
    """
    if not is_remote(shard):
        yield Path(shard)
        return
    with tempfile.TemporaryDirectory(prefix="rearkit-") as folder:
        path = Path(folder) / "shard.tar"
        fetch(shard, path, retry)
        yield path


class ShardCache:
    """Copies of remote shards, shared by all processes of a machine; the least recently used ones are removed.

    Args:
        folder: the folder of the copies.
        keep: number of copies to keep.
        retry: how often to try.
    """

    def __init__(self, folder: Path, keep: int, retry: Retry) -> None:
        self.folder = folder
        self.keep = keep
        self.retry = retry
        # Shards that failed once are not tried again: each of their samples would wait through all the tries.
        self._failed: dict[str, FetchError] = {}

    def open(self, shard: str) -> int:
        """Return a file descriptor of a shard or of its copy; it stays readable even if the copy is removed.

        Raises:
            FetchError: the shard could not be fetched, now or earlier.
            OSError: the shard cannot be opened.
            StorageError: the disk is full.
        """
        if not is_remote(shard):
            return os.open(shard, os.O_RDONLY)
        if shard in self._failed:
            raise self._failed[shard]
        # A URL may have characters that a file name cannot have.
        copy = self.folder / f"{hashlib.sha256(shard.encode()).hexdigest()[:20]}.tar"
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = copy.with_suffix(".lock")
        with os.fdopen(opened_lock(lock), "w") as file:
            # One process fetches the shard; the others wait for it.
            flocked(file.fileno(), lock)
            fresh = not copy.is_file()
            if fresh:
                try:
                    fetch(shard, copy, self.retry)
                except FetchError as error:
                    say(f"data: {shard} cannot be fetched: {error}")
                    self._failed[shard] = error
                    raise
            # The time of last use, by which `_make_room` chooses what to remove.
            os.utime(copy)
            descriptor = os.open(copy, os.O_RDONLY)
        if fresh:
            self._make_room()
        return descriptor

    def _make_room(self) -> None:
        used: list[tuple[float, Path]] = []
        # Other processes remove copies too.
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                used.append((path.stat().st_mtime, path))
        for _, old in sorted(used)[: -self.keep]:
            old.unlink(missing_ok=True)


def _copy(shard: str, file: IO[bytes]) -> None:
    if shard.startswith("pipe:"):
        _copy_output(shard.removeprefix("pipe:"), file)
        return
    stream: Any
    with contextlib.closing(_open(shard)) as stream:
        shutil.copyfileobj(stream, file, 1 << 20)
        # Bytes that the server announced and did not send; a connection that is cut looks like the end otherwise.
        missing = getattr(stream, "length", None)
        if missing:
            raise ConnectionError(f"broke off {missing} bytes before its end")


def _copy_output(command: str, file: IO[bytes]) -> None:
    """Copy what a shell's command prints.

    Through a pipe of this process: a command that outlives it would else go on with its download.
    """
    with (
        tempfile.TemporaryFile() as told,
        subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, stderr=told, start_new_session=True) as process,
    ):
        assert process.stdout is not None
        try:
            shutil.copyfileobj(process.stdout, file, 1 << 20)
            process.wait()
        except BaseException:
            # All that the shell has started too: in a session of its own, Ctrl-C does not reach them.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        if process.returncode:
            told.seek(0)
            # The last line, where most programs say what is wrong.
            said = told.read().decode(errors="replace").strip().splitlines()[-1:]
            raise OSError(": ".join([f"exit {process.returncode}", *said]))


def _open(shard: str) -> Any:
    if shard.startswith(OURS):
        return urllib.request.urlopen(shard, timeout=SILENCE_S)
    return webdataset.gopen(shard)
