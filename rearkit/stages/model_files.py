"""Where a model that stands alone has its files: in a run, or all in one folder, which may be on the hub."""

from __future__ import annotations

from pathlib import Path

from rearkit.errors import RearkitError, WeightsError
from rearkit.recipe.recipe_files import MODEL
from rearkit.recipe.tables import Recipe
from rearkit.stages.run_folder import RunFolder
from rearkit.system.hub import is_hub, local_file

TOKENIZER = "tokenizer.safetensors"


def model_file(source: str | Path) -> Path:
    """Return the file of an exported model, which may be given by its folder or its name on the hub.

    Raises:
        WeightsError: there is no such file, or the folder has no model.
    """
    path = local_file(source)
    if path.is_file():
        return path
    if not path.exists():
        raise WeightsError(f"{path}: no such model; give its file, such as RUN/train/{MODEL}, or an exported folder")
    if not (path / MODEL).is_file():
        raise WeightsError(f"{path}: no {MODEL} in it; give the folder that `export` wrote, or a model's file")
    return path / MODEL


def run_of(model: Path) -> RunFolder:
    """Return the run that a model's file is in; anywhere else, this folder has none of a run's files."""
    return RunFolder(model.absolute().parent.parent)


def tokenizer_file(source: str | Path, recipe: Recipe) -> Path | None:
    """Return the tokenizer's file of an exported model: that of its run, or the one that lies beside it.

    Args:
        source: the model's file, its folder, or its name on the hub.
        recipe: the model's.

    Returns:
        the file; None where the recipe names the tokenizer's weights instead, and does not fit them further.

    Raises:
        WeightsError: there is no tokenizer, and its recipe names none.
    """
    path = model_file(source)
    run = run_of(path)
    for found in (run.tokenizer, path.parent / TOKENIZER):
        if found.is_file():
            return found
    named = recipe.tokenizer.weights if recipe.tokenizer.fit is None else None
    if is_hub(source) and named in (None, TOKENIZER):
        # The cache has only those files of a repository that were asked for.
        try:
            return local_file(f"{str(source).rpartition('/')[0]}/{TOKENIZER}")
        except RearkitError:
            pass
    if named is None:
        raise WeightsError(
            f"{source}: its tokenizer was fitted in a run, and is neither in {run.tokenizer} nor beside it; "
            "give load_model the tokenizer"
        )
    return None
