"""A sweep's folder: whose it is, and what its ``sweep.json`` says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rearkit.analysis.groups import SWEEP, read_sweep
from rearkit.errors import RearkitError
from rearkit.stages.run_folder import RunFolder
from rearkit.sweeps.predictions import KEY, noted
from rearkit.sweeps.sharing import UNSCORED, stages_to_take
from rearkit.sweeps.sweep import Sweep, recipe_name
from rearkit.system.checksums import check_sealed, write_sealed
from rearkit.system.console import say
from rearkit.training.checkpoints import CHECKPOINTS
from rearkit.training.logs import JSONL


def claim(sweep: Sweep, root: Path, donors: Sequence[RunFolder] = ()) -> None:
    """Mark a folder as this sweep's, or raise if it holds something else.

    A prediction that is noted now was made with the trainings known that have begun here, under whatever name, or that
    are taken over from donors.

    If ``sweep.json`` is damaged or lost, it is written anew where runs of this sweep are there; earlier predictions,
    and when they were made, are then lost.

    Raises:
        RearkitError: the folder holds another sweep, or files that are not a sweep's.
    """
    about = read_sweep(root)
    if root.exists() and not root.is_dir():
        raise RearkitError(f"{root}: not a folder; choose another one with --out")
    # A sweep that was killed while it claimed the folder may have left a temporary file.
    if about is None and any(not path.name.startswith(f".{SWEEP}") for path in root.glob("*")):
        _check_runs(sweep, root)
        say(f"{root / SWEEP} is missing or damaged; it is written anew, with today's date for the prediction")
    if about is not None and about["sweep"] != sweep.name:
        raise RearkitError(f"{root}: holds another sweep, {about['sweep']!r}; choose another folder with --out")
    runs = {name: [run.name for run in sweep.runs if run.variant == name] for name in sweep.variants}
    own = sweep.table
    told = {"sweep": sweep.name, "runs": runs, "published": own.published, "published_as": own.published_as}
    # Of all runs that are here: a variant may have another name by now.
    begun = {path.name for path in root.glob("*") if _has_begun(RunFolder(path))}
    taken = {
        run.name
        for run in sweep.runs
        if any("train" in stages_to_take(run.recipe, donor, UNSCORED) for donor in donors)
    }
    told[KEY] = noted(about, own.prediction, own.expected, len(begun | taken))
    # Variants and seeds may have been added since; the runs of the others stay.
    if about != told:
        write_sealed(root / SWEEP, told)


def _check_runs(sweep: Sweep, root: Path) -> None:
    """Check that a folder is the sweep's by its runs, of which one is enough: they may have had other names.

    Raises:
        RearkitError: no run of the sweep is there.
    """
    for path in root.glob("*"):
        owner = check_sealed(RunFolder(path).owner).content or {}
        if owner.get("recipe") == recipe_name(sweep.name, path.name):
            return
    damaged = f"its {SWEEP} is damaged, and no run of {sweep.name!r} is there"
    told = damaged if (root / SWEEP).exists() else "not empty and not a sweep"
    raise RearkitError(f"{root}: {told}; choose another folder with --out")


def _has_begun(folder: RunFolder) -> bool:
    """Return whether a training has begun in a folder, of this recipe or of the one before it."""
    return folder.previous("train").exists() or any(
        (folder.stage("train") / name).exists() for name in (JSONL, CHECKPOINTS, folder.record("train").name)
    )
