"""Results of stages for an earlier recipe, moved aside, since they may have taken days to make."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rearkit.errors import RecipeError
from rearkit.recipe.exported import read_about
from rearkit.stages.run_folder import RunFolder
from rearkit.system.console import say
from rearkit.system.files import remove, storage_errors


def set_aside(folder: RunFolder, names: Iterable[str]) -> None:
    """Move the results of stages aside, so that these run again from their beginning."""
    for name in names:
        if folder.stage(name).exists():
            with storage_errors(folder.stage(name)):
                move_aside(folder, name, "to be run again")


def set_aside_other_classes(folder: RunFolder, number: int) -> None:
    """Set a training aside that had another number of classes: tokens do not tell it, so its key may be the same."""
    try:
        trained = read_about(folder.model).get("classes")
    except RecipeError:  # there is none, or a damaged one, which the stage itself makes again
        return
    if trained is not None and trained["number"] != number:
        set_aside(folder, ["train"])


def move_aside(folder: RunFolder, name: str, why: str = "the recipe, an input or a plugin changed") -> None:
    """Move a stage's result for an earlier recipe to another folder.

    Only one result is kept, and an unfinished one does not replace a finished one.
    """
    place = folder.stage(name)
    target = folder.previous(name)
    drop_copies(folder, name)
    if target not in emptied(folder, name):
        say(f"{name}: {why}; the unfinished result is removed, {target} is kept")
        remove(place)
        return
    remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    place.rename(target)
    say(f"{name}: {why}; the earlier result is kept in {target}")


def drop_copies(folder: RunFolder, name: str) -> None:
    """Remove the copies at the top of a run's folder that follow from a stage's result, before that is another."""
    for source in (folder.scores,) if name == "evaluate" else (folder.scores, folder.sample_grid):
        remove(folder.path / source.name)


def emptied(folder: RunFolder, name: str) -> list[Path]:
    """Return the folders that lose what they have, if a stage's result is moved aside."""
    place, target = folder.stage(name), folder.previous(name)
    if not place.exists():
        return []
    kept = not folder.record(name).is_file() and (target / folder.record(name).name).is_file()
    return [place] if kept else [place, target]
