"""What a command is given as RECIPE, and the trained model that it means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

if TYPE_CHECKING:
    from rearkit.contracts import ImageSize
    from rearkit.model import Model
    from rearkit.recipe.tables import Recipe


@attrs.frozen
class Given:
    """A recipe, and how the line gives it.

    Attributes:
        recipe: loaded, with what ``--set`` changes.
        source: RECIPE as it stands on the line: a name, a file, or an exported model.
        overrides: the values of ``--set``.
        trust: whether ``--trust`` is given.
    """

    recipe: Recipe
    source: Path
    overrides: Sequence[str]
    trust: bool

    @property
    def exported(self) -> bool:
        """Whether RECIPE is an exported model."""
        from rearkit.recipe.recipe_files import find_file, is_exported

        return is_exported(find_file(self.source))


def open_model(given: Given, out: Path | None, size: ImageSize | None) -> tuple[Model, dict[str, Path]]:
    """Return the trained model of a recipe's run, or an exported one, and the files of its weights.

    Its modules are the file's, and so are their settings; its recipe says how the line has it sampled.

    Args:
        given: the recipe or the model.
        out: folder of the run, if it is not ``runs/NAME``.
        size: of the images, if it is another than an exported model was trained at.

    Raises:
        click.UsageError: an option is not for a run, or not for an exported model.
    """
    from rearkit.pipeline import trained_run
    from rearkit.recipe.settings import with_changes
    from rearkit.stages.model_files import model_file, tokenizer_file
    from rearkit.stages.train import load_model, trained_model
    from rearkit.system.hub import local_file

    recipe, source = given.recipe, given.source
    if not given.exported:
        refuse_size(size)
        run = trained_run(recipe, out)
        return trained_model(recipe, run), {"backbone": run.model, "tokenizer": run.tokenizer}
    refuse_out(out)
    check_modules(given)
    model = load_model(source, trust=given.trust, image_size=size)
    model = attrs.evolve(model, recipe=with_changes(recipe, tokenizer=model.recipe.tokenizer))
    tokenizer = tokenizer_file(source, recipe) or local_file(recipe.tokenizer.weights or "")
    return model, {"backbone": model_file(source), "tokenizer": tokenizer}


def check_modules(given: Given) -> None:
    """Check that ``--set`` leaves a model's modules as they are: it may change how they are sampled, not what they are.

    Raises:
        click.UsageError: it does not.
    """
    from rearkit.recipe.loading import load_recipe

    own = load_recipe(given.source, trust=given.trust)
    for table in ("tokenizer", "backbone"):
        if getattr(given.recipe, table) != getattr(own, table):
            raise click.UsageError(f"--set {table}.…: the model's file says what it is; another size is --size")


def refuse_size(size: ImageSize | None) -> None:
    """Refuse ``--size`` where the recipe is of a run.

    Raises:
        click.UsageError: it is given.
    """
    if size is not None:
        raise click.UsageError("--size: give the model instead, RUN/train/model.safetensors")


def refuse_out(out: Path | None) -> None:
    """Refuse ``--out`` with an exported model.

    Raises:
        click.UsageError: it is given.
    """
    if out is not None:
        raise click.UsageError("--out: not with an exported model, which needs no run")
