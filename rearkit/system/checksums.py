"""Checksums of what a run reads back: inside JSON, at the end of a file, beside a file that a stage has just written.

Disks, cables and copies change bits without an error. What is read back is compared with a SHA-256 first, and the
place that holds the SHA-256 is covered by one as well. Files of versions before 0.2, which have none, stay readable.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from rearkit.errors import RearkitError
from rearkit.system.console import say_once
from rearkit.system.files import read_json, remove, sha256, write_json, write_text

SEAL = "sha256"
# At the end of a file of any format that is read from its start.
_TRAILER = b"\nsha256 %s\n"
_TRAILER_SIZE: Final = len(_TRAILER) - len(b"%s") + 64
_TRAILER_FORM = re.compile(rb"\nsha256 ([0-9a-f]{64})\n")
SUMS = "sums"


class DamagedError(RearkitError):
    """A file does not have the content that was written."""


@attrs.frozen
class Sealed:
    """A file of JSON: what it holds, None if that is damaged or missing, and whether it has a checksum."""

    content: dict[str, Any] | None
    sealed: bool


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with the SHA-256 of all that JSON keeps of it, as its last entry."""
    return {**content, SEAL: _digest(content)}


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, with a checksum of itself."""
    write_json(path, seal(content))


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Read what `write_sealed` or, in earlier versions, `write_json` wrote; None if it is missing or damaged."""
    found = check_sealed(path)
    if found.content is None and path.is_file():
        say_once(f"{path} is damaged, and passed over")
    return found.content


def check_sealed(path: Path) -> Sealed:
    """Do as `read_sealed` does, without a word, and tell whether there is a checksum."""
    return unseal(read_json(path))


def unseal(value: Any) -> Sealed:
    """Check and take off what `seal` has put on."""
    if not isinstance(value, dict) or not value:
        return Sealed(None, False)
    *_, last = value
    content = {name: item for name, item in value.items() if name != last}
    if last == SEAL:
        return Sealed(content if value[SEAL] == _digest(content) else None, True)
    # A checksum whose name was damaged: otherwise it would pass for an entry of a file without one.
    if SEAL in value or value[last] == _digest(content):
        return Sealed(None, True)
    return Sealed(value, False)


def _digest(content: Mapping[str, Any]) -> str:
    # As it comes back from JSON, where keys are text and tuples lists; the order of keys carries nothing.
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def append_checksum(path: Path) -> None:
    """Put the SHA-256 of a file at its end. Call this before the file gets its final name."""
    trailer = _TRAILER % sha256(path).encode()
    with path.open("ab") as file:
        file.write(trailer)


def read_checked(path: Path) -> bytes:
    """Read a file that may end in a checksum; return what is before that.

    Raises:
        DamagedError: the content is not what was written.
    """
    content = path.read_bytes()
    found = _TRAILER_FORM.fullmatch(content[-_TRAILER_SIZE:])
    if found is None:
        return content
    content = content[:-_TRAILER_SIZE]
    if hashlib.sha256(content).hexdigest().encode() != found[1]:
        raise DamagedError(f"{path}: damaged, its SHA-256 differs")
    return content


def has_checksum(path: Path) -> bool | None:
    """Return whether a file ends in the checksum of its content; None if it ends in none."""
    try:
        return None if read_checked(path) == path.read_bytes() else True
    except DamagedError:
        return False


def note_checksum(path: Path) -> None:
    """Keep the SHA-256 of a file just written beside it, until the stage's record has it (in `sha256sum`'s format)."""
    write_text(_note(path), f"{sha256(path)}  {path.name}\n")


def is_as_noted(path: Path) -> bool:
    """Return whether a file is what `note_checksum` noted of it."""
    told = _note(path).read_bytes().split()
    # A damaged note counts as a damaged file: which of the two it is cannot be told.
    return bool(told) and told[0] == sha256(path).encode()


def noted(folder: Path) -> list[Path]:
    """Return the files under a folder of which `note_checksum` has noted a checksum."""
    notes = sorted(folder.rglob(f"{SUMS}/*.{SEAL}"))
    paths = [note.parent.parent / note.name.removesuffix(f".{SEAL}") for note in notes]
    return [path for path in paths if path.is_file()]


def forget(path: Path) -> None:
    """Remove a file, if it exists, and what was noted of it."""
    remove(path)
    remove(_note(path))


def _note(path: Path) -> Path:
    return path.parent / SUMS / f"{path.name}.{SEAL}"
