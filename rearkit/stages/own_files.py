"""Files that a recipe names, and those of them that are the run's own, which a stage would move away from itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rearkit.errors import RearkitError
from rearkit.recipe.tables import Recipe
from rearkit.stages.aside import emptied
from rearkit.stages.intact import keys_of
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Stage, stage_keys
from rearkit.stages.tokenizer import vgg_weights
from rearkit.system.hub import is_hub


def named_files(recipe: Recipe) -> dict[str, str | None]:
    """Return the files that a recipe names, by their keys as messages have them; None where it names none."""
    return {
        "[tokenizer] weights": recipe.tokenizer.weights,
        "[tokenizer.fit.perceptual] vgg_weights": vgg_weights(recipe),
        "[backbone] weights": recipe.backbone.weights,
        "[evaluate] feature_weights": recipe.evaluate.feature_weights,
        "[evaluate] reference": recipe.evaluate.reference,
    }


def check_own_files(stages: Sequence[Stage], recipe: Recipe, folder: RunFolder, again: str | None) -> None:
    """Check, before anything is moved, that no file that a recipe names lies where a stage will move results aside.

    Args:
        stages: the stages that are to run, in order.
        recipe: the recipe.
        folder: the run.
        again: the stage from which on all run again, if any.

    Raises:
        RearkitError: there are such files; the message lists them.
    """
    named = named_files(recipe) | {"[tokens] pretokenized": recipe.tokens.pretokenized}
    own = {key: path for key, path in named.items() if path and not is_hub(path) and _lies_in(path, folder.path)}
    problems, anew = [], False
    # Keys cost time where files are large, and most recipes name none of the run's own.
    for stage in stages if own else ():
        keys, done = stage_keys(stage, recipe, folder), folder.done(stage.name)
        # A finished result of other floors is judged by the recipe's, and stays where it is.
        same = done is not None and (done["key"] == keys[0] or done.get("begun") == keys[1])
        kept = not anew and stage.name != again and (same or not set(keys).isdisjoint(keys_of(folder, stage.name)))
        anew = anew or stage.name == again or not same
        places = [] if kept else emptied(folder, stage.name)
        problems += [
            f"{name}: {path} is of this run, which would move it aside and make its own anew; "
            "copy it elsewhere first, or give this run another name or --out"
            for name, path in own.items()
            if anew and any(_lies_in(path, place) for place in places)
        ]
    if problems:
        raise RearkitError("\n".join(problems))


def _lies_in(path: str, folder: Path) -> bool:
    """Return whether a file, or the link that it is named by, lies in a folder."""
    file, place = Path(path), folder.resolve()
    return any(one.is_relative_to(place) for one in (file.resolve(), file.parent.resolve() / file.name))
