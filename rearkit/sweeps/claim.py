"""A sweep's folder: whose it is, and what its ``sweep.json`` says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rearkit.analysis.groups import SWEEP
from rearkit.errors import RearkitError
from rearkit.stages.run_folder import RunFolder
from rearkit.sweeps.predictions import KEY, noted
from rearkit.sweeps.sharing import UNSCORED, stages_to_take
from rearkit.sweeps.sweep import Sweep
from rearkit.system.files import read_json, write_json
from rearkit.training.checkpoints import CHECKPOINTS
from rearkit.training.logs import JSONL


def claim(sweep: Sweep, root: Path, donors: Sequence[RunFolder] = ()) -> None:
    """Mark a folder as this sweep's, or raise if it holds something else.

    A prediction that is noted now was made with the trainings known that have begun here, under whatever name, or that
    are taken over from donors.

    Raises:
        RearkitError: the folder holds another sweep, or files that are not a sweep's.
    """
    about = read_json(root / SWEEP)
    if root.exists() and (not root.is_dir() or (about is None and any(root.iterdir()))):
        raise RearkitError(f"{root}: not empty and not a sweep; choose another folder with --out")
    if about is not None and about.get("sweep") != sweep.name:
        raise RearkitError(f"{root}: holds another sweep, {about.get('sweep')!r}; choose another folder with --out")
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
        write_json(root / SWEEP, told)


def _has_begun(folder: RunFolder) -> bool:
    """Return whether a training has begun in a folder, of this recipe or of the one before it."""
    return folder.previous("train").exists() or any(
        (folder.stage("train") / name).exists() for name in (JSONL, CHECKPOINTS, folder.record("train").name)
    )
