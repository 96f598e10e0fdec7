"""The training log: JSON lines for programs, and trackers for people."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from rearkit.system.files import storage_errors, write_text
from rearkit.training.trackers import Tracker

JSONL = "log.jsonl"
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
    """

    def __init__(self, folder: Path, step: int, trackers: Sequence[Tracker] = (), name: str = JSONL) -> None:
        self.path = folder / name
        # A killed run may have logged steps after its last checkpoint; the resumed one logs them again.
        kept = [line for line in read_log(folder, name) if line["step"] <= step] if step else []
        self.last = {} if not kept else {name: value for name, value in kept[-1].items() if name != "step"}
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._trackers = trackers

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log named numbers at a step.

        Raises:
            StorageError: the disk is full.
        """
        with storage_errors(self.path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
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


def read_log(folder: Path, name: str = JSONL) -> list[dict[str, float]]:
    """Read the lines of a log, without a last line that a crash cut off."""
    path = folder / name
    lines: list[dict[str, float]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines
