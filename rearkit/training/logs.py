"""The training log: one JSON line at a time for programs, and trackers for people."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from rearkit.system.files import storage_errors, write_text
from rearkit.training.trackers import Tracker

JSONL = "log.jsonl"


class TrainLog:
    """Appends measurements; a resumed run drops what a killed one logged beyond its last checkpoint.

    Args:
        folder: where ``log.jsonl`` goes.
        step: the step that the run resumes from; 0 for a fresh one.
        trackers: what else takes the measurements; they are closed with the log.

    Attributes:
        last: what was logged last, before the run was cut off.
    """

    def __init__(self, folder: Path, step: int, trackers: Sequence[Tracker] = ()) -> None:
        self.path = folder / JSONL
        kept = [line for line in read_log(folder) if line["step"] <= step] if step else []
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
            self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, values)

    def close(self) -> None:
        """Flush and close all; what cannot be written any more is given up."""
        with contextlib.suppress(OSError):
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


def read_log(folder: Path, name: str = JSONL) -> list[dict[str, float]]:
    """Read the lines of a log; a last line that a crash cut off is left out."""
    path = folder / name
    lines: list[dict[str, float]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines
