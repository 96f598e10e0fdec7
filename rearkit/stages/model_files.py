"""Where a model that stands alone has its files: in a run, or all in one folder, which may be on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rearkit.errors import RearkitError, WeightsError
from rearkit.recipe.exported import read_about
from rearkit.recipe.recipe_files import MODEL
from rearkit.recipe.tables import Recipe
from rearkit.stages.run_folder import PREVIOUS, RunFolder
from rearkit.system.files import sha256
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

    The model says by its SHA-256 which one it was trained with; models of earlier versions do not.

    Args:
        source: the model's file, its folder, or its name on the hub.
        recipe: the model's.

    Returns:
        the file; None where the recipe names the tokenizer's weights instead, and does not fit them further.

    Raises:
        WeightsError: there is no tokenizer, and its recipe names none; or all that there are, are others.
    """
    path = model_file(source)
    digest = read_about(path).get("tokenizer")
    if found := [one for one in _places(path) if one.is_file()]:
        return _trained_with(path, found, digest)
    named = recipe.tokenizer.weights if recipe.tokenizer.fit is None else None
    if is_hub(source) and named in (None, TOKENIZER):
        # The cache has only those files of a repository that were asked for.
        try:
            beside = local_file(f"{str(source).rpartition('/')[0]}/{TOKENIZER}")
        except RearkitError:
            pass
        else:
            return _trained_with(path, [beside], digest)
    if named is None:
        raise WeightsError(
            f"{source}: its tokenizer was fitted in a run, and is neither in {run_of(path).tokenizer} nor beside it; "
            "give load_model the tokenizer"
        )
    return None


def _places(model: Path) -> list[Path]:
    """Return where the tokenizer of a model's file may be, the likeliest first."""
    run, beside = run_of(model), model.parent / TOKENIZER
    if model.absolute() != run.model:
        return [beside, run.tokenizer]
    # Results that were moved aside lie in a folder of the run, whose tokenizer may have stayed the same.
    return [run.tokenizer, beside, *([RunFolder(run.path.parent).tokenizer] if run.path.name == PREVIOUS else [])]


def _trained_with(model: Path, found: Sequence[Path], digest: str | None) -> Path:
    """Return the first of some files with a SHA-256, or simply the first if none is known."""
    same = (file for file in found if digest is None or sha256(file) == digest)
    if (file := next(same, None)) is None:
        raise WeightsError(
            f"{found[0]}: damaged, or not the tokenizer that {model} was trained with; run the recipe again, "
            f"or put the one with the SHA-256 {digest} beside the model"
        )
    return file
