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
import tomli_w
from fuzzing import KINDS, SECONDS, SEED, command
from ledger import Ledger, Outcome
from small_runs import digests, small_recipe

from rearkit import pipeline
from rearkit.recipe.loading import recipe_to_dict
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


def failing(function: Callable[..., Any], folder: Path, number: int, code: int, met: list[str]) -> Callable[..., Any]:
    """Let the call of that number, of those about a path in a folder, fail; put it into ``met``."""
    left = iter(range(number))

    def call(*given: Any, **named: Any) -> Any:
        where = given[0] if given else ""
        if function is os.fsync:
            where = str(Path(f"/proc/self/fd/{where}").readlink())
        about = isinstance(where, str | os.PathLike) and os.fspath(where).startswith(str(folder))
        if about and next(left, None) is None and not met:
            met.append(os.fspath(where))
            raise OSError(code, os.strerror(code), os.fspath(where))
        return function(*given, **named)

    return call


@contextlib.contextmanager
def fault(draw: random.Random, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Within this context something cannot be written or read below a folder; yield what, and a list of where."""
    what, met = draw.choice(["full", "full", "open", *CALLS]), []
    if what == "full":
        limits, most = resource.getrlimit(resource.RLIMIT_FSIZE), draw.choice([0, 1, 100, 2000, 4096, 10_000, 60_000])
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            yield f"full: no file larger than {most} bytes", met
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return
    number = draw.randrange(draw.choice([5, 20, 60]))
    with pytest.MonkeyPatch.context() as patch:
        owner, name, codes = CALLS.get(what, (io, "open", OPENS))
        code = draw.choice(codes)
        call = failing(getattr(owner, name), folder, number, code, met)
        patch.setattr(owner, name, call)
        if what == "open":
            patch.setattr(builtins, "open", call)
        yield f"{what} {number}: {errno.errorcode[code]}", met


def attempt(recipe: Path, folder: Path, draw: random.Random, ledger: Ledger, detail: str) -> None:
    """Run with one fault, and count what came of it if it was met; what was whole before is whole afterwards, too."""
    before, out, codes = digests(folder), io.StringIO(), []
    with fault(draw, folder) as (what, met):
        trial = Ledger()

        def work() -> Outcome:
            # Pytest's own file for it is as limited as the others.
            with contextlib.redirect_stdout(out):
                codes.append(command("run", str(recipe), "--out", str(folder))[0])
            after = digests(folder)
            return "held" if all(after.get(name) == digest for name, digest in before.items()) else "lost"

        trial.attempt(f"disk, {what.split()[0].rstrip(':')}", f"{detail} {what} {met[:1]}", work)
    if met or codes != [0]:
        ledger.counts += trial.counts
        ledger.details += trial.details


def test_what_cannot_be_written_is_told_and_nothing_is_lost(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe, ledger = small_recipe(tiny, tmp_path), Ledger()
    with pytest.MonkeyPatch.context() as patch:
        # The page takes most of the time, and is written as everything else is.
        patch.setattr(pipeline, "_report", lambda recipe, folder, worked, seconds: pipeline.show_results(folder))
        pipeline.run(recipe, tmp_path / "whole")
        file = tmp_path / "tiny.toml"
        file.write_text(tomli_w.dumps(recipe_to_dict(recipe)), encoding="utf-8")
        expected, end, number = digests(tmp_path / "whole"), time.monotonic() + 3 * SECONDS / KINDS, 0
        while number < 6 or time.monotonic() < end:
            folder, faults = tmp_path / "run", random.Random(f"{SEED} {number}").choice([3, 8, 15])
            for _ in range(faults):
                number += 1
                attempt(file, folder, random.Random(f"{SEED} disk {number}"), ledger, f"{SEED}/{number}:")
            try:
                pipeline.run(recipe, folder)
                went_on = digests(folder) == expected
            except Exception as error:
                ledger.add("disk, going on", "lost", f"after fault {number}: {type(error).__name__}: {error}")
            else:
                ledger.add("disk, going on", "held" if went_on else "silent", f"after fault {number}: other results")
            shutil.rmtree(folder)
    ledger.check()
