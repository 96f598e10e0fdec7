"""The loop of the fuzzers: seeded faults, one after another, in this process, for a set time.

A fault is built from its own generator, so that its number alone brings it back. Meanwhile an audit hook of Python sees
what is started, connected to or written outside of the fault's folder: nothing may be.

FAULT_SECONDS is the time of all fuzzers together, FAULT_SEED the seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from ledger import Ledger, Outcome

from rearkit.cli.main import main
from rearkit.errors import MOST_PROBLEMS, RearkitError
from rearkit.system import console

# Seconds of each kind of fault are this, shared by KINDS; without the variable, a few faults of each kind.
SECONDS = float(os.environ.get("FAULT_SECONDS", "0"))
SEED = int(os.environ.get("FAULT_SEED", "0"))
KINDS = 20
FEWEST = 3
# A fault that takes longer hangs; one that takes more memory fails, rather than having this machine stop all others.
PATIENCE_S, MEMORY = 60, 4 << 30
STARTED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn")
CONNECTED = ("socket.connect", "socket.getaddrinfo", "urllib.Request")

Case = tuple[str, Callable[[], Outcome]]
"""What a fault is, in words, and trying it."""


class Hangs(Exception):
    """A fault took longer than `PATIENCE_S`."""


class Watch:
    """What happens outside of a folder, as Python's audit events tell it."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def over(self, folder: Path) -> Iterator[list[str]]:
        """Yield a list that fills with what is started, connected to, or written outside of a folder."""
        self.folder, self.seen = folder.resolve(), []
        try:
            yield self.seen
        finally:
            self.folder = None

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in STARTED or event in CONNECTED:
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
            if writes and isinstance(path, str | bytes | os.PathLike):
                self._wrote(path)
        elif event in ("os.mkdir", "os.symlink", "os.link"):
            self._wrote(arguments[0] if event == "os.mkdir" else arguments[1])
        elif event == "os.rename":
            self._wrote(arguments[1])

    def _wrote(self, path: Any) -> None:
        assert self.folder is not None
        # Links are not followed: what they lead to is not what is named.
        where = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        if not where.startswith((str(self.folder), "/dev/", "/proc/")) and "__pycache__" not in where:
            self.seen.append(f"wrote {where}")


WATCH = Watch()


def fuzz(ledger: Ledger, kind: str, place: Path, build: Callable[[random.Random, Path], Case]) -> None:
    """Try faults of a kind until its time is up; the same fault is not tried twice.

    Args:
        ledger: counts them.
        kind: what to call them.
        place: folder in which each has its own.
        build: makes a fault of a generator, in its folder.
    """
    end, known = time.monotonic() + SECONDS / KINDS, set()
    number = 0
    while len(known) < FEWEST or time.monotonic() < end:
        draw = random.Random(f"{SEED} {kind} {number}")
        number += 1
        folder = place / f"{kind}-{number}".replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True)
        try:
            detail, work = build(draw, folder)
            if detail not in known:
                known.add(detail)
                _try(ledger, kind, f"{SEED}/{number - 1}: {detail:.300}", folder, work)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _try(ledger: Ledger, kind: str, detail: str, folder: Path, work: Callable[[], Outcome]) -> None:
    def hang(*given: object) -> None:
        raise Hangs(f"more than {PATIENCE_S} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, limits[1]))
    console.say_once.cache_clear()  # type: ignore[attr-defined]
    before, temporary, alarm = Path.cwd(), tempfile.tempdir, signal.signal(signal.SIGALRM, hang)
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    signal.alarm(PATIENCE_S)
    with WATCH.over(folder) as seen, contextlib.redirect_stdout(io.StringIO()) as out:
        trial = Ledger()
        trial.attempt(kind, detail, lambda: judged(work))
        signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, limits)
    os.chdir(before)
    tempfile.tempdir = temporary
    signal.signal(signal.SIGALRM, alarm)
    if seen:
        ledger.add(kind, "let in", f"{detail}: {seen[0]}")
    elif "\x1b" in out.getvalue():
        ledger.add(kind, "let in", f"{detail}: printed {out.getvalue()!r:.200}")
    else:
        ledger.take(trial)


def judged(work: Callable[[], Outcome]) -> Outcome:
    """Return what came of a fault: an error for users is held, if it is short enough to be read."""
    try:
        return work()
    except click.ClickException:
        return "held"
    except RearkitError as error:
        # Long lines are cut where they are printed.
        lines = str(error).splitlines()
        assert len(lines) <= MOST_PROBLEMS + 5, f"a message of {len(lines)} lines"
        return "held"


def command(*arguments: str) -> tuple[int, str]:
    """Run the command line in this process; return its exit code and all that it printed.

    Raises:
        AssertionError: it ended as a bug of rearkit or of a plugin does, or printed control characters.
        Exception: what would have been a traceback.
    """
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    said = out.getvalue()
    # Into the fault's own output, where control characters are looked for.
    sys.stdout.write(said)
    assert code not in (1, 6), said[-300:]
    assert code == 0 or said.strip(), f"code {code} without a word"
    return code, said


def damaged(draw: random.Random, content: bytes) -> tuple[str, bytes]:
    """Damage bytes as disks, copies and people with bad intentions do; return how, and what is left."""
    data = bytearray(content)
    # Near the beginning more often, where formats have their headers.
    where = draw.randrange(max(len(data), 1)) if draw.random() < 0.5 else draw.randrange(min(len(data), 256) or 1)
    how = draw.choice(["flip", "byte", "cut", "insert", "repeat", "remove", "number", "zeros"])
    if how == "flip" and data:
        data[where] ^= 1 << draw.randrange(8)
    elif how == "byte" and data:
        data[where] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x1B, 0x2D, 0x30])
    elif how == "cut":
        del data[where:]
    elif how == "insert":
        data[where:where] = draw.randbytes(draw.choice([1, 2, 8, 100]))
    elif how == "repeat":
        data[where:where] = data[where : where + draw.choice([1, 16, 512])]
    elif how == "remove":
        del data[where : where + draw.choice([1, 2, 16, 512])]
    elif how == "number":
        size = draw.choice([2, 4, 8])
        value = draw.choice([0, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1])
        data[where : where + size] = value.to_bytes(size, draw.choice(["little", "big"]))
    else:
        data[where : where + 64] = bytes(len(data[where : where + 64]))
    return f"{how} at {where} {hash_of(bytes(data))}", bytes(data)


def inline(work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int | None) -> Iterable[Any]:
    """Stand in for `in_processes`: what a fault does is then seen, and there is time for more of them."""
    return (work(*job) for job in jobs)


def hash_of(content: bytes) -> str:
    """Return a few letters by which a content is told from others."""
    return hashlib.sha256(content).hexdigest()[:8]
