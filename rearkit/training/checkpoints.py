"""Checkpoints: written under a temporary name, hashed, flushed, renamed; a run resumes from the latest whole one.

Each is a folder ``step-00000100/`` with the ranks' files and ``manifest.json``, which holds the step and the hash of
every file. A folder without a manifest, or whose hashes differ, is passed over with a warning.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from rearkit.system import distributed
from rearkit.system.console import say
from rearkit.system.files import TEMPORARY, open_to_others, read_json, remove, sha256, storage_errors, sync, write_json

MANIFEST = "manifest.json"
FORMAT = 1
Write = Callable[[Path], tuple[Path, dict[str, Any]]]


@attrs.frozen
class Found:
    """A whole checkpoint: its step, its folder, and what its writer wanted remembered."""

    step: int
    folder: Path
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they are.
        keep: how many of the latest to keep.
        keep_every: keep also those at multiples of so many steps; 0 for none.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0) -> None:
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self._passed_over: set[int] = set()  # steps of unusable checkpoints, which do not count as kept

    def save(self, step: int, write: Write) -> None:
        """Save what all ranks write; all call this.

        Args:
            step: how many steps are done.
            write: writes a file of this rank's own into the folder it is given; returns its path, and facts to
                remember, alike on all ranks.

        Raises:
            StorageError: the disk is full; the checkpoints before this one are untouched.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{final.name}{TEMPORARY}"
        try:
            distributed.together(lambda: self._make_room(temporary))
            written = distributed.together(lambda: _written(final, temporary, write))
            distributed.together(lambda: self._finish(step, temporary, final, written))
        finally:
            if distributed.rank() == 0:
                remove(temporary)

    def _make_room(self, temporary: Path) -> None:
        if distributed.rank() == 0:
            with storage_errors(temporary):
                for leftover in self.folder.glob(f".step-*{TEMPORARY}"):
                    remove(leftover)
                temporary.mkdir(parents=True)

    def _finish(
        self, step: int, temporary: Path, final: Path, written: list[tuple[dict[str, Any], dict[str, str]]]
    ) -> None:
        """Give a checkpoint whose files are on the disk its name, and remove those that are not to be kept."""
        if distributed.rank() != 0:
            return
        hashes = {name: digest for _, files in written for name, digest in files.items()}
        with storage_errors(final):
            write_json(temporary / MANIFEST, {"format": FORMAT, "step": step, "facts": written[0][0], "files": hashes})
            remove(final)
            temporary.rename(final)
            sync(self.folder)
            self._passed_over.discard(step)
            for old in [step for step in self._steps() if step not in self._passed_over][: -self.keep]:
                if not self.keep_every or old % self.keep_every:
                    remove(self.folder / f"step-{old:08d}")

    def latest(self) -> Found | None:
        """Return the latest whole checkpoint, or None; the first rank looks for all."""
        return distributed.from_main(self._latest)

    def _latest(self) -> Found | None:
        for step in reversed(self._steps()):
            folder = self.folder / f"step-{step:08d}"
            manifest = read_json(folder / MANIFEST)
            if (reason := _damage(folder, manifest)) is None:
                return Found(step, folder, manifest["facts"])
            say(f"train: {folder} is passed over: {reason}")
            self._passed_over.add(step)
        return None

    def _steps(self) -> list[int]:
        names = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted(int(name) for name in names if name.isdigit())


def _written(final: Path, temporary: Path, write: Write) -> tuple[dict[str, Any], dict[str, str]]:
    """Let a rank write its file and flush it; return its facts and the file's hash."""
    with storage_errors(final):
        path, facts = write(temporary)
        open_to_others(path)
        sync(path)
        return facts, {path.name: sha256(path)}


def _damage(folder: Path, manifest: Any) -> str | None:
    if manifest is None:
        return "it has no manifest"
    if manifest.get("format") != FORMAT:
        return "it is in the format of another version of rearkit"
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256(path) != expected:
            return f"{name} is damaged"
    return None
