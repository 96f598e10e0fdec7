"""The training log: JSON lines for programs, and trackers for people."""

from __future__ import annotations

import contextlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rearkit.system.console import say_once
from rearkit.system.files import storage_errors, write_text
from rearkit.training.trackers import Tracker

JSONL = "log.jsonl"
CHECK = "crc32"
"""The last entry of a line: the CRC-32 of what the line would be without it, so that a damaged one is noticed."""
JOIN = "join"
"""In the line of a step after which training went on by a changed recipe."""


class TrainLog:
    """Appends measurements to ``log.jsonl`` and passes them to trackers.

    Args:
        folder: folder for ``log.jsonl``.
        step: the step that the run resumes from; 0 for a fresh one.
        trackers: trackers that also get the measurements; they are closed with the log.
        name: of the file.

    Attributes:
        last: the last measurements of the run that is resumed, at or before ``step``.
        last_step: their step; 0 if there are none.
    """

    def __init__(self, folder: Path, step: int, trackers: Sequence[Tracker] = (), name: str = JSONL) -> None:
        self.path = folder / name
        # A killed run may have logged steps after its last checkpoint; the resumed one logs them again.
        kept = [line for line in read_log(folder, name) if line["step"] <= step] if step else []
        self.last = {} if not kept else {name: value for name, value in kept[-1].items() if name != "step"}
        self.last_step = int(kept[-1]["step"]) if kept else 0
        write_log(self.path, kept)
        self._file = self.path.open("a", encoding="utf-8")
        self._trackers = trackers

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log named numbers at a step.

        Raises:
            StorageError: the disk is full.
        """
        with storage_errors(self.path):
            self._file.write(_line({"step": step, **values}))
            # So that the log can be followed, and a killed run loses nothing.
            self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, values)

    def close(self) -> None:
        """Flush and close the log and its trackers."""
        # After a failed write, closing tries it once more and would raise the same error again.
        with contextlib.suppress(OSError):
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


def write_log(path: Path, lines: Sequence[Mapping[str, float]]) -> None:
    """Write a whole log."""
    write_text(path, "".join(map(_line, lines)))


def read_log(folder: Path, name: str = JSONL) -> list[dict[str, float]]:
    """Read the lines of a log, without those that are damaged, were cut off by a crash, or are of another kind."""
    path = folder / name
    if not path.is_file():
        return []
    lines, damaged = read_lines(path)
    if damaged:
        say_once(f"{path}: {len(damaged)} damaged or foreign lines are passed over, such as line {damaged[0]}")
    return lines


def read_lines(path: Path) -> tuple[list[dict[str, float]], list[int]]:
    """Read the lines of a log; return those that can be used, and the numbers of the others."""
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    found = [_measured(text) for text in texts]
    # The end of the last line is no line; what a crash has cut off at the end is nothing unusual.
    damaged = [number for number, line in enumerate(found[:-1], start=1) if line is None]
    return [line for line in found if line is not None], damaged


def _line(values: Mapping[str, float]) -> str:
    text = json.dumps(dict(values))
    return json.dumps({**values, CHECK: zlib.crc32(text.encode())}) + "\n"


def _measured(text: str) -> dict[str, float] | None:
    """Return the numbers in a line, or None if these are not what was written. Earlier versions wrote no CRC."""
    try:
        line: Any = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or not all(type(value) in (int, float) for value in line.values()):
        return None
    check = line.pop(CHECK, None)
    step = line.get("step")
    if step is None or step < 0 or not math.isfinite(step) or step != int(step):
        return None
    # As it was written: JSON in Python gives back each number with the same digits.
    whole = check is None or zlib.crc32(json.dumps(line).encode()) == check
    return line if whole and not any(_is_check(key) for key in line) else None


def _is_check(key: str) -> bool:
    """Return whether a key is that of a line's CRC, with a damaged bit or byte: it would pass for a measurement."""
    return len(key) == len(CHECK) and sum(a != b for a, b in zip(key, CHECK, strict=True)) == 1
