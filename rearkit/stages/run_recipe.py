"""The recipe in a run's folder: as it was last run, with every default; ``run.json`` has its checksum.

A single stage may be run with another one than the training was begun with, so that has its own beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from rearkit.errors import RearkitError
from rearkit.recipe.loading import load_recipe, recipe_to_dict
from rearkit.recipe.tables import Recipe
from rearkit.stages.run_folder import RunFolder
from rearkit.system.checksums import check_sealed, read_sealed, write_sealed
from rearkit.system.console import say
from rearkit.system.files import sha256, write_text

DIGEST = "recipe_sha256"


def save_resolved_recipe(recipe: Recipe, folder: RunFolder) -> None:
    """Write the recipe, with all defaults, to the run's folder."""
    import tomli_w

    text = tomli_w.dumps(recipe_to_dict(recipe))
    owner = read_sealed(folder.owner) or {"recipe": recipe.name}
    if not folder.recipe.is_file() or folder.recipe.read_bytes() != text.encode():
        if recipe_differs(folder):
            say(f"{folder.recipe} is damaged, or was edited; it is written again")
        write_text(folder.recipe, text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if owner.get(DIGEST) != digest:
        write_sealed(folder.owner, {**owner, DIGEST: digest})


def recipe_differs(folder: RunFolder) -> bool | None:
    """Return whether the recipe is not the one that was written; None where nothing tells."""
    written = (check_sealed(folder.owner).content or {}).get(DIGEST)
    return None if written is None or not folder.recipe.is_file() else sha256(folder.recipe) != written


def run_recipe(folder: RunFolder) -> Recipe:
    """Read the recipe of a run from its folder.

    Raises:
        RearkitError: it is missing, damaged or was edited.
    """
    if recipe_differs(folder):
        raise RearkitError(
            f"{folder.recipe}: damaged, or edited since the run; this writes it again: "
            f"python -m rearkit run RECIPE --out {folder.path}"
        )
    return load_recipe(folder.recipe)


def keep_training_recipe(recipe: Recipe, folder: RunFolder) -> None:
    """Write the recipe that the training is begun with, or goes on by, beside it."""
    write_sealed(folder.training_recipe, {"recipe": recipe_to_dict(recipe)})


def training_recipes(folder: RunFolder) -> Iterator[Recipe]:
    """Yield the recipes that the training may have been begun with, the surest first.

    Raises:
        RearkitError: one cannot be read.
    """
    if (kept := read_sealed(folder.training_recipe)) is not None:
        yield load_recipe(kept["recipe"])
    # Earlier versions kept none: a finished training has its recipe in its model, of another it is the one last run.
    if folder.model.is_file():
        yield load_recipe(folder.model, trust=True)  # our own file
    if folder.recipe.is_file():
        yield run_recipe(folder)
