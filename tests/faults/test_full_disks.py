"""Disks that are full, fail, or forbid: at any write of a run nothing is lost, and it goes on to the same bits.

A write that is too long fails by the limit on a file's size, as in a full disk, for libraries written in C too. Calls
of the operating system fail one at a time, with the errors that disks, network file systems and permissions give.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzzing import KINDS, SECONDS, SEED
from ledger import Ledger, Outcome
from small_runs import digests, small_recipe

from rearkit import pipeline
from rearkit.errors import StorageError
from rearkit.recipe.tables import Recipe

pytestmark = pytest.mark.slow

ERRORS = [
    errno.ENOSPC,
    errno.EIO,
    errno.EINVAL,
    errno.EROFS,
    errno.EACCES,
    errno.EXDEV,
    errno.EDQUOT,
    errno.ESTALE,
    errno.EPERM,
]
# What fails: the call that Python's library makes, and the errors that it can have.
CALLS = {
    "fsync": (os, "fsync", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINVAL, errno.ESTALE]),
    "rename": (os, "rename", ERRORS),
    "replace": (os, "replace", ERRORS),
    "mkdir": (os, "mkdir", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EPERM]),
}
OPENS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ESTALE, errno.EPERM]


def failing(function: Callable[..., Any], folder: Path, number: int, code: int) -> Callable[..., Any]:
    """Let the call of that number, of those about a path in a folder, fail."""
    left = iter(range(number))

    def call(*given: Any, **named: Any) -> Any:
        where = given[0] if given else ""
        if function is os.fsync:
            where = str(Path(f"/proc/self/fd/{where}").readlink())
        # Only where it is to be written.
        writes = function is not io.open or any(
            letter in (given[1] if len(given) > 1 else named.get("mode", "r")) for letter in "wax+"
        )
        about = isinstance(where, str | os.PathLike) and os.fspath(where).startswith(str(folder))
        if writes and about and next(left, None) is None:
            raise OSError(code, os.strerror(code), os.fspath(where))
        return function(*given, **named)

    return call


@contextlib.contextmanager
def fault(draw: random.Random, folder: Path) -> Iterator[str]:
    """Within this context something cannot be written below a folder; yield what, in words."""
    what = draw.choice(["size", "size", "open", *CALLS])
    if what == "size":
        limits, most = (
            resource.getrlimit(resource.RLIMIT_FSIZE),
            draw.choice([0, 1, 100, 2000, 4096, 10_000, 30_000, 60_000]),
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            yield f"no file larger than {most} bytes"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return
    number = draw.randrange(draw.choice([5, 20, 60]))
    with pytest.MonkeyPatch.context() as patch:
        if what == "open":
            code = draw.choice(OPENS)
            call = failing(io.open, folder, number, code)
            patch.setattr(io, "open", call)
            patch.setattr(builtins, "open", call)
        else:
            owner, name, codes = CALLS[what]
            code = draw.choice(codes)
            patch.setattr(owner, name, failing(getattr(owner, name), folder, number, code))
        yield f"{what} {number}: {errno.errorcode[code]}"


def attempt(recipe: Recipe, folder: Path, draw: random.Random, ledger: Ledger, detail: str) -> None:
    """Run with one fault, and count what came of it; what was whole before is whole afterwards, too."""
    before = digests(folder)
    with fault(draw, folder) as what:
        kind = f"disk, {what.split()[0].replace('no', 'full')}"

        def work() -> Outcome:
            with contextlib.suppress(StorageError):
                pipeline.run(recipe, folder)
            after = digests(folder)
            return "held" if all(after.get(name) == digest for name, digest in before.items()) else "lost"

        ledger.attempt(kind, f"{detail} {what}", work)


def test_what_cannot_be_written_is_told_and_nothing_is_lost(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe, ledger = small_recipe(tiny, tmp_path), Ledger()
    with pytest.MonkeyPatch.context() as patch:
        # The page takes most of the time, and is written as everything else is.
        patch.setattr(pipeline, "_report", lambda recipe, folder, worked, seconds: pipeline.show_results(folder))
        pipeline.run(recipe, tmp_path / "whole")
        expected, end, number = digests(tmp_path / "whole"), time.monotonic() + 3 * SECONDS / KINDS, 0
        while number < 6 or time.monotonic() < end:
            folder, faults = tmp_path / "run", random.Random(f"{SEED} {number}").choice([3, 8, 15])
            for _ in range(faults):
                number += 1
                attempt(recipe, folder, random.Random(f"{SEED} disk {number}"), ledger, f"{SEED}/{number}:")
            try:
                pipeline.run(recipe, folder)
                went_on = digests(folder) == expected
            except Exception as error:
                ledger.add("disk, going on", "lost", f"after fault {number}: {type(error).__name__}: {error}")
            else:
                ledger.add("disk, going on", "held" if went_on else "silent", f"after fault {number}: other results")
            shutil.rmtree(folder)
    ledger.check()
