"""Results of stages for an earlier recipe, moved aside, since they may have taken days to make."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rearkit.errors import RecipeError
from rearkit.recipe.exported import read_about
from rearkit.stages.intact import damaged_outputs
from rearkit.stages.run_folder import RunFolder
from rearkit.system.console import say
from rearkit.system.files import read_json, remove, storage_errors


def set_aside(folder: RunFolder, names: Iterable[str]) -> None:
    """Move the results of stages aside, so that these run again from their beginning."""
    for name in names:
        if folder.stage(name).exists():
            with storage_errors(folder.stage(name)):
                move_aside(folder, name, "to be run again")


def set_aside_other_classes(folder: RunFolder, number: int) -> None:
    """Set a training aside that had another number of classes: tokens do not tell it, so its key may be the same."""
    if _number_of_classes(folder.model) not in (None, number):
        set_aside(folder, ["train"])


def _number_of_classes(model: Path) -> int | None:
    """Return the number of classes that a model was trained with; None of a missing, damaged or old file."""
    try:
        classes = read_about(model).get("classes")
    except RecipeError:
        return None
    return None if classes is None else int(classes["number"])


def bring_back(folder: RunFolder, name: str, key: str) -> bool:
    """Swap a stage's result with the one that was moved aside, if that has a key and is undamaged.

    Returns:
        whether it did.
    """
    place, target, earlier = folder.stage(name), folder.previous(name), RunFolder(folder.previous(name).parent)
    done = earlier.done(name)
    # Images are written again: as they are, trainings with other classes are set aside.
    if name == "data" or done is None or done["key"] != key or damaged_outputs(done, target, thorough=True):
        return False
    if name == "train":
        number = (read_json(folder.images) or {}).get("num_classes")
        if _number_of_classes(earlier.model) not in (None, number):
            return False
    drop_copies(folder, name)
    between = target.with_name(f"{name} meanwhile")
    remove(between)
    for source, goal in ((place, between), (target, place), (between, target)):
        source.rename(goal)
    # Now, so that the report is older, and written again.
    folder.record(name).touch()
    say(f"{name}: up to date with the result that was kept in {target}, which now has the one that was here")
    return True


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
