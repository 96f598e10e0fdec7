"""Checkpoints: written to a temporary folder, hashed, flushed, renamed. A run resumes from the latest intact one.

A checkpoint is a folder ``step-00000100/`` with the ranks' files and ``manifest.json``, which holds the step and the
hash of every file, and one of itself. A folder without a manifest, with other hashes, or of another recipe, is skipped
with a warning.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from rearkit.system import distributed
from rearkit.system.checksums import check_sealed, write_sealed
from rearkit.system.console import say
from rearkit.system.files import TEMPORARY, open_to_others, remove, sha256, storage_errors, sync

MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"  # the folder of all, in that of a training
FORMAT = 1
Write = Callable[[Path], tuple[Path, dict[str, Any]]]


@attrs.frozen
class Checkpoint:
    """An intact checkpoint: its step, its folder, and the facts that its writer returned."""

    step: int
    folder: Path
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: the folder of all checkpoints.
        keep: number of latest checkpoints to keep.
        keep_every: also keep those at multiples of this many steps; 0 for none.
        owner: tells the training that they are of; those of another one are skipped. Empty: all are taken.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int = 0, owner: str = "") -> None:
        self.folder = folder
        self.keep = keep
        self.keep_every = keep_every
        self.owner = owner
        # Steps of unusable checkpoints. They do not count as kept: otherwise a usable one would be removed for them.
        self._passed_over: set[int] = set()

    def save(self, step: int, write: Write) -> None:
        """Save a checkpoint. All ranks must call this.

        Args:
            step: number of steps taken.
            write: writes this rank's file to the folder it is given; returns the file's path, and facts to store in
                the manifest, which are the same on all ranks.

        Raises:
            StorageError: the disk is full; earlier checkpoints are unchanged.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{final.name}{TEMPORARY}"
        # In three rounds: no rank may write before the folder exists, nor the first rename it before all have written.
        # An error of one rank is raised by all, so that none waits for another that has given up.
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
                # Of a process that was killed while it saved, perhaps at another step.
                for leftover in self.folder.glob(f".step-*{TEMPORARY}"):
                    remove(leftover)
                temporary.mkdir(parents=True)

    def _finish(
        self, step: int, temporary: Path, final: Path, written: list[tuple[dict[str, Any], dict[str, str]]]
    ) -> None:
        """Write the manifest, give the folder its final name, and remove checkpoints that are not to be kept."""
        if distributed.rank() != 0:
            return
        hashes = {name: digest for _, files in written for name, digest in files.items()}
        with storage_errors(final):
            # The manifest comes last: where it is, all files are complete.
            told = {"format": FORMAT, "step": step, "facts": written[0][0], "files": hashes}
            write_sealed(temporary / MANIFEST, told | ({"owners": [self.owner]} if self.owner else {}))
            # An unusable checkpoint of the same step may be in the way.
            remove(final)
            temporary.rename(final)
            # The rename has to reach the disk before older checkpoints are removed.
            sync(self.folder)
            self._passed_over.discard(step)
            for old in [step for step in self._steps() if step not in self._passed_over][: -self.keep]:
                if not self.keep_every or old % self.keep_every:
                    remove(self.folder / f"step-{old:08d}")

    def latest(self) -> Checkpoint | None:
        """Return the latest intact checkpoint, or None. The first rank looks, and all get its answer."""
        return distributed.from_main(self.find)

    def find(self) -> Checkpoint | None:
        """Return the latest intact checkpoint, or None, where one process alone asks."""
        for step in reversed(self._steps()):
            folder = self.folder / f"step-{step:08d}"
            manifest = check_sealed(folder / MANIFEST).content
            # Before its files are hashed, which may take minutes.
            reason = self._foreign(manifest, step) or damage(folder, manifest)
            if reason is None and manifest is not None:
                return Checkpoint(step, folder, manifest["facts"])
            say(f"train: {folder} is skipped: {reason}")
            self._passed_over.add(step)
        return None

    def _foreign(self, manifest: dict[str, Any] | None, step: int) -> str | None:
        """Return why a checkpoint is not one of this training at this step; None of one that may be."""
        if manifest is None:
            return None
        if manifest.get("step") != step:
            return f"it is of step {manifest.get('step')}"
        owners = manifest.get("owners")
        return "it is of another recipe" if self.owner and owners and self.owner not in owners else None

    def owners(self) -> list[str]:
        """Return which trainings the checkpoints are of, as far as their manifests can be read."""
        found = [owner for _, manifest in self.manifests() for owner in (manifest or {}).get("owners", ())]
        return list(dict.fromkeys(found))

    def adopt(self, owner: str) -> None:
        """Give the checkpoints to another training too, which goes on with them."""
        for folder, manifest in self.manifests():
            if manifest is not None and owner not in (owners := manifest.get("owners", [owner])):
                write_sealed(folder / MANIFEST, {**manifest, "owners": [*owners, owner]})

    def manifests(self) -> list[tuple[Path, dict[str, Any] | None]]:
        """Return the folder of each checkpoint and its manifest, or None for a damaged one; the earliest first."""
        folders = [self.folder / f"step-{step:08d}" for step in self._steps()]
        return [(folder, check_sealed(folder / MANIFEST).content) for folder in folders]

    def _steps(self) -> list[int]:
        names = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted(int(name) for name in names if name.isdigit())


def _written(final: Path, temporary: Path, write: Write) -> tuple[dict[str, Any], dict[str, str]]:
    """Write and flush this rank's file; return its facts, and its hash by its name."""
    with storage_errors(final):
        path, facts = write(temporary)
        open_to_others(path)
        sync(path)
        return facts, {path.name: sha256(path)}


def damage(folder: Path, manifest: dict[str, Any] | None) -> str | None:
    """Return why a checkpoint cannot be used, or None if it is intact.

    Args:
        folder: the checkpoint's.
        manifest: what its manifest holds; None if that is missing or damaged.
    """
    if manifest is None:
        return "its manifest is damaged" if (folder / MANIFEST).is_file() else "it has no manifest"
    if manifest.get("format") != FORMAT:
        return "it is in the format of another version of rearkit"
    files = manifest.get("files")
    # Of no version: a manifest without a checksum of its own that is damaged.
    if not isinstance(files, dict) or not files or not isinstance(manifest.get("facts"), dict):
        return "its manifest is damaged"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256(path) != expected:
            return f"{name} is damaged"
    # All files of states in the folder would be read.
    surplus = {path.name for path in folder.iterdir()} - files.keys() - {MANIFEST}
    return f"{min(surplus)} is none of its files" if surplus else None
