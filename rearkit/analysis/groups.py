"""Find the runs that a command line names: folders of single runs, or of sweeps, grouped by variant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rearkit.analysis.table import Group
from rearkit.errors import RearkitError
from rearkit.stages.flow import NAMES
from rearkit.stages.run_folder import OWNER, RunFolder
from rearkit.system.checksums import check_sealed

SWEEP = "sweep.json"
"""File in a sweep's folder with its ``sweep`` (name), ``runs`` (names by variant), ``published``, ``published_as``."""


def read_sweep(path: Path) -> dict[str, Any] | None:
    """Return what a sweep's folder says of itself; None if it is no such folder, or that is damaged."""
    about = check_sealed(path / SWEEP).content
    return about if about and isinstance(about.get("sweep"), str) and isinstance(about.get("runs"), dict) else None


def run_folders(path: Path) -> list[RunFolder]:
    """Return the run that a folder is, or those that a sweep's folder holds, shared stages too; none in any other."""
    if _is_run(path):
        return [RunFolder(path)]
    if (path / SWEEP).is_file():
        return [RunFolder(one) for one in sorted([*path.iterdir(), *path.glob("shared/*")]) if _is_run(one)]
    return []


def _is_run(path: Path) -> bool:
    # The run's own record may be what is lost. A folder named as a stage is none yet: data sets have them, too.
    folder = RunFolder(path)
    return folder.owner.is_file() or any(folder.record(name).is_file() for name in NAMES)


def find_groups(paths: Sequence[Path]) -> list[Group]:
    """Return a group for each folder of a run, and one for each variant of each folder of a sweep.

    Raises:
        RearkitError: a folder is neither, or all are sweeps without a trained run.
    """
    groups = []
    for path in paths:
        if (about := read_sweep(path)) is not None:
            # Of an unfinished sweep, the runs that are trained so far.
            found = {name: [RunFolder(path / run) for run in runs] for name, runs in about["runs"].items()}
            groups += [
                Group(name, [f for f in folders if f.done("train")], about.get("published", {}).get(name))
                for name, folders in found.items()
            ]
        elif (path / OWNER).is_file():
            groups.append(Group(path.name, [RunFolder(path)]))
        else:
            if (path / SWEEP).is_file():
                raise RearkitError(f"{path / SWEEP}: damaged; run the sweep again, which writes it anew")
            what = "neither a run of rearkit nor a sweep" if path.is_dir() else "no such folder"
            raise RearkitError(f"{path}: {what}; give the folder of a run, of python -m rearkit run, or of a sweep")
    groups = [group for group in groups if group.folders]
    if not groups:
        told = ", ".join(map(str, paths))
        raise RearkitError(f"{told}: no trained run in it yet; run: python -m rearkit sweep SWEEP --out FOLDER")
    names = [group.name for group in groups]
    # Runs of the same name in different folders: only their paths distinguish them.
    if len(set(names)) < len(names):
        groups = [Group(str(group.folders[0].path), group.folders, group.published) for group in groups]
    return groups


def published_as(paths: Sequence[Path]) -> str:
    """Return the heading of published figures: that of the first sweep among the folders, else "published"."""
    told = [about.get("published_as") for path in paths if (about := read_sweep(path)) is not None]
    return next(iter(filter(None, told)), "published")


def place_for_page(paths: Sequence[Path]) -> Path:
    """Return the deepest folder that contains all of several folders, or the only folder itself."""
    if len(paths) == 1:
        return paths[0]
    # Resolved, since relative paths of the same folder need not have a parent in common.
    parents = [path.resolve().parents for path in paths]
    common = next(parent for parent in parents[0] if all(parent in other for other in parents))
    return common
