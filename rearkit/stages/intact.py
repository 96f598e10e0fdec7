"""Whether what lies in a stage's folder is what was written: outputs, key, and what is left of a stage cut off."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rearkit.errors import RearkitError
from rearkit.stages.run_folder import RunFolder
from rearkit.system.checksums import forget, is_as_noted, noted
from rearkit.system.console import progress_bar, say
from rearkit.system.files import sha256, write_text

# Of each stage, the smallest outputs up to this many bytes in all are hashed whenever a run is started: lists, scores,
# pictures, the weights of small models. All are hashed before a stage reads them.
HASHED_AT_START = 1 << 26
LARGE = 1 << 28  # bytes in all, from which hashing shows its progress
KEY_LINE = re.compile(r"[0-9a-f]{64}")


def damaged_outputs(done: Mapping[str, Any], place: Path, thorough: bool = False, but: str | None = None) -> list[Path]:
    """Return a finished stage's files that are missing, or have changed since they were written.

    Args:
        done: the stage's record.
        place: its folder.
        thorough: whether to hash all files, not only the smallest.
        but: a pattern of names that are not hashed, since their reader does it.
    """
    outputs = {place / name: recorded for name, recorded in done["outputs"].items()}
    damaged = [path for path, recorded in outputs.items() if _size(path) != recorded["bytes"]]
    rest = sorted((recorded["bytes"], path) for path, recorded in outputs.items() if path not in damaged)
    if but is not None:
        rest = [(size, path) for size, path in rest if not path.match(but)]
    # By size alone where all would take minutes at each start.
    total, chosen = 0, []
    for size, path in rest:
        total += size
        if thorough or total <= HASHED_AT_START:
            chosen.append(path)
    for path in _shown(place.name, chosen, total):
        if sha256(path) != outputs[path].get("sha256"):
            damaged.append(path)
    return damaged


def _shown(stage: str, paths: list[Path], total: int) -> Iterator[Path]:
    if total < LARGE:
        yield from paths
        return
    with progress_bar(f"{stage}: checksums", len(paths)) as bar:
        for path in paths:
            yield path
            bar.advance(1)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def damaged_inputs(names: Iterable[str], folder: RunFolder, but: str | None = None) -> dict[str, list[Path]]:
    """Return the files that the stages called ``names`` have lost or that have changed, of those that have any."""
    found = {}
    for name in names:
        if (done := folder.done(name)) and (damaged := damaged_outputs(done, folder.stage(name), True, but)):
            found[name] = damaged
    return found


def check_written(names: Iterable[str], folder: RunFolder) -> None:
    """Check what finished stages have written, before a command other than `run` uses it.

    Raises:
        RearkitError: a file is missing or damaged; the message has the command that makes it again.
    """
    for name, (first, *_) in damaged_inputs(names, folder).items():
        raise RearkitError(
            f"{first}: missing or damaged (SHA-256); this makes it again: "
            f"python -m rearkit {name} RECIPE --out {folder.path}"
        )


def drop_damaged_parts(folder: RunFolder, name: str) -> None:
    """Remove what is damaged of the files that a stage has written before it was cut off; it makes them again."""
    for path in noted(folder.stage(name)):
        if not is_as_noted(path):
            say(f"{name}: {path} is damaged; making it again")
            forget(path)


def write_key(folder: RunFolder, name: str, key: str) -> None:
    """Write the key that a stage is begun with; twice, so that a damaged one is not taken for another recipe's."""
    write_text(folder.key(name), f"{key}\n{key}\n")


def keys_of(folder: RunFolder, name: str) -> list[str]:
    """Return the keys in the file that says what a stage was begun with; several if one is damaged, none if all are."""
    try:
        text = folder.key(name).read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return list(dict.fromkeys(line for line in text.splitlines() if KEY_LINE.fullmatch(line)))
