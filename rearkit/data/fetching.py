"""Shards that lie elsewhere: fetched whole into a file, with patience, before they are read.

A shard is read only once it is whole, so a transfer that breaks off can be tried again without any sample being seen
twice. ``http(s)``, ``ftp`` and ``file`` URLs are read by Python itself; ``pipe:COMMAND`` and all other schemes by
`webdataset.gopen`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import shutil
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

OURS = ("http://", "https://", "ftp://", "file://")
SILENCE_S = 60.0  # without a byte from a server, a transfer has failed
LONGEST_WAIT_S = 60.0
TRY_AGAIN = (408, 425, 429)  # and all from 500: HTTP statuses that may pass


class FetchError(Exception):
    """A shard could not be had."""


@attrs.frozen
class Retry:
    """How often to try, and how long to wait in between.

    Attributes:
        tries: in all, at least 1.
        wait: seconds after the first failure; twice as long after each further one, a minute at most.
    """

    tries: int = 4
    wait: float = 1.0


def is_remote(shard: str) -> bool:
    """Tell a URL or a command from the path of a local file."""
    return "://" in shard or shard.startswith("pipe:")


def fetch(shard: str, target: Path, retry: Retry) -> None:
    """Copy a remote shard into a file, whole or not at all.

    Raises:
        FetchError: it could not be had; the message says why.
        StorageError: the disk is full.
    """
    for attempt in range(1, retry.tries + 1):
        try:
            with replacing(target) as temporary, temporary.open("wb") as file:
                _copy(shard, file)
            return
        except StorageError:
            raise
        except (OSError, http.client.HTTPException) as error:
            reason = first_line(error)
            lasting = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in TRY_AGAIN
        except ValueError as error:  # no such scheme
            reason, lasting = first_line(error), True
        if lasting or attempt == retry.tries:
            raise FetchError(f"{reason} (tried {attempt} time{'s' if attempt > 1 else ''})")
        wait = min(retry.wait * 2 ** (attempt - 1), LONGEST_WAIT_S)
        say(f"data: {shard}: {reason}; trying again in {wait:g} s ({attempt} of {retry.tries} tries)")
        time.sleep(wait)


@contextlib.contextmanager
def local_copy(shard: str, retry: Retry) -> Iterator[Path]:
    """Yield the path of a shard; of one that is remote, that of a copy which is removed afterwards.

    Raises:
        FetchError: it could not be had.
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
    """Copies of the remote shards in use, for all processes of a machine; those used longest ago are removed.

    Args:
        folder: where the copies are.
        keep: how many.
        retry: how often to try.
    """

    def __init__(self, folder: Path, keep: int, retry: Retry) -> None:
        self.folder, self.keep, self.retry = folder, keep, retry
        self._failed: dict[str, FetchError] = {}

    def open(self, shard: str) -> int:
        """Return a descriptor of a shard, or of a copy of it, which can be read though the copy be removed.

        Raises:
            FetchError: it could not be had, now or when it was asked for before.
            OSError: it cannot be opened.
            StorageError: the disk is full.
        """
        if not is_remote(shard):
            return os.open(shard, os.O_RDONLY)
        if shard in self._failed:
            raise self._failed[shard]
        copy = self.folder / f"{hashlib.sha256(shard.encode()).hexdigest()[:20]}.tar"
        self.folder.mkdir(parents=True, exist_ok=True)
        with copy.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process fetches, the others wait for it
            fresh = not copy.is_file()
            if fresh:
                try:
                    fetch(shard, copy, self.retry)
                except FetchError as error:
                    say(f"data: {shard} cannot be fetched: {error}")
                    self._failed[shard] = error
                    raise
            os.utime(copy)
            descriptor = os.open(copy, os.O_RDONLY)
        if fresh:
            self._make_room()
        return descriptor

    def _make_room(self) -> None:
        used: list[tuple[float, Path]] = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                used.append((path.stat().st_mtime, path))
        for _, old in sorted(used)[: -self.keep]:
            old.unlink(missing_ok=True)


def _copy(shard: str, file: IO[bytes]) -> None:
    if shard.startswith("pipe:"):
        done = subprocess.run(shard.removeprefix("pipe:"), shell=True, stdout=file, stderr=subprocess.PIPE)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise OSError(": ".join([f"exit {done.returncode}", *said]))
        return
    stream: Any
    with contextlib.closing(_open(shard)) as stream:
        shutil.copyfileobj(stream, file, 1 << 20)
        missing = getattr(stream, "length", None)  # what a server announced and did not send
        if missing:
            raise ConnectionError(f"broke off {missing} bytes before its end")


def _open(shard: str) -> Any:
    if shard.startswith(OURS):
        return urllib.request.urlopen(shard, timeout=SILENCE_S)
    return webdataset.gopen(shard)
