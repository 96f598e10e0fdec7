"""Disks that are full, fail, or forbid: at any write of a run nothing is lost, and it goes on to the same bits.

A write that is too long fails by the limit on a file's size, as in a full disk, for libraries written in C too. Calls
of the operating system fail one at a time, with the errors that disks, network file systems and permissions give.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import itertools
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from fuzzing import KINDS, SECONDS, SEED, command, inline
from ledger import Ledger, Outcome
from small_runs import digests, small_recipe

from rearkit import pipeline
from rearkit.data import convert, convert_tokens
from rearkit.errors import EXIT_STORAGE
from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import Recipe
from rearkit.system.files import sha256

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
OPENS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ESTALE, errno.EPERM]
# What fails: the call that Python's library makes, and the errors that it can have.
CALLS: dict[str, tuple[Any, str, list[int]]] = {
    "open": (io, "open", OPENS),
    "low": (os, "open", OPENS),
    "fsync": (os, "fsync", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINVAL, errno.ESTALE]),
    "rename": (os, "rename", ERRORS),
    "replace": (os, "replace", ERRORS),
    "mkdir": (os, "mkdir", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EPERM]),
}


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
            # Of an open file, the operating system gives no name.
            raise OSError(code, os.strerror(code), *([] if function is os.fsync else [os.fspath(where)]))
        return function(*given, **named)

    return call


@contextlib.contextmanager
def fault(draw: random.Random, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Within this context something cannot be written or read below a folder; yield what, and a list of where."""
    what = draw.choice(["full", "full", *CALLS])
    if what == "full":
        limits, most = resource.getrlimit(resource.RLIMIT_FSIZE), draw.choice([0, 1, 100, 2000, 4096, 10_000, 60_000])
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            yield f"full: no file larger than {most} bytes", []
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return
    number, code = draw.randrange(draw.choice([5, 20, 60])), draw.choice(CALLS[what][2])
    with one_fails(what, folder, number, code) as met:
        yield f"{what} {number}: {errno.errorcode[code]}", met


@contextlib.contextmanager
def one_fails(what: str, folder: Path, number: int, code: int) -> Iterator[list[str]]:
    """Within this context the call of that number, of those below a folder, fails; yield where, once it has."""
    owner, name, _ = CALLS[what]
    met: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        call = failing(getattr(owner, name), folder, number, code, met)
        patch.setattr(owner, name, call)
        if owner is io:
            patch.setattr(builtins, "open", call)
        yield met


def told(words: Sequence[str], out: Path, codes: list[int]) -> Outcome:
    """Run a command with a path for its OUT; what fails must be a storage error, of one line, with a path."""
    code, said = command(*(word.replace("OUT", str(out)) for word in words))
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code in (0, EXIT_STORAGE), f"code {code}: {errors}"
    assert len(errors) == (code != 0) and all(str(out.parent) in line for line in errors), f"code {code}: {errors}"
    codes.append(code)
    return "held"


def written(out: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in out.rglob("*") if path.suffix in (".tar", ".safetensors", ".png")}


def again(words: Sequence[str], out: Path, expected: dict[str, str]) -> Outcome:
    """Run a command again that a fault has ended before all was there, and judge what it comes to."""
    if written(out) != expected:
        command(*(word.replace("OUT", str(out)) for word in words))
    return "held" if written(out) == expected else "lost"


def attempt(recipe: Path, folder: Path, draw: random.Random, ledger: Ledger, detail: str) -> None:
    """Run with one fault, and count what came of it if it was met; what was whole before is whole afterwards, too."""
    before, out, codes = digests(folder), io.StringIO(), list[int]()
    with fault(draw, folder) as (what, met):
        trial = Ledger()

        def work() -> Outcome:
            # Pytest's own file for it is as limited as the others.
            with contextlib.redirect_stdout(out):
                told(["run", str(recipe), "--out=OUT"], folder, codes)
            after = digests(folder)
            return "held" if all(after.get(name) == digest for name, digest in before.items()) else "lost"

        trial.attempt(f"disk, {what.split()[0].rstrip(':')}", f"{detail} {what} {met[:1]}", work)
    if met or codes != [0]:
        ledger.take(trial)


def test_what_cannot_be_written_is_told_and_nothing_is_lost(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe, ledger = small_recipe(tiny, tmp_path), Ledger()
    with pytest.MonkeyPatch.context() as patch:
        # The page takes most of the time, and is written as everything else is.
        patch.setattr(
            pipeline, "_report", lambda recipe, folder, worked, seconds: pipeline.show_results(recipe, folder)
        )
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


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS], ids=["EIO", "EROFS"])
def test_a_command_tells_of_each_call_that_fails_and_then_comes_to_the_same_bytes(
    code: int, tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, ledger = small_recipe(tiny, tmp_path), Ledger()
    monkeypatch.setattr(
        pipeline, "_report", lambda recipe, folder, worked, seconds: pipeline.show_results(recipe, folder)
    )
    for module in (convert, convert_tokens):
        monkeypatch.setattr(module, "in_processes", inline)
    run = pipeline.run(recipe, tmp_path / "run").path
    lines = "".join(f'{{"class_id": {index}, "tokens": [{index}, 2]}}\n' for index in range(5))
    (tmp_path / "tokens.jsonl").write_text(lines)
    commands = {
        "convert": ["convert", f"{run}/train/model.safetensors", "OUT/x.safetensors", "--to=published"],
        "data": ["data", f"--from-folder={tmp_path}/held-out", "--to=OUT", "--shard-size=4"],
        "tokens": ["tokens", f"--from-jsonl={tmp_path}/tokens.jsonl", "--to=OUT"],
        "export": ["export", str(run), "OUT/model"],
    }
    for name, words in commands.items():
        assert told(words, tmp_path / name, []) == "held"
        expected = written(tmp_path / name)
        for what in CALLS:
            for number in itertools.count():
                out, trial = tmp_path / f"{name}-{what}-{number}", Ledger()
                with one_fails(what, out, number, code) as met:
                    trial.attempt(f"disk, {name}", f"{what} {number}", partial(told, words, out, []))
                if not met:
                    break
                trial.attempt("disk, going on", f"{name} {what} {number}", partial(again, words, out, expected))
                ledger.take(trial)
    ledger.check()
