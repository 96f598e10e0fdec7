"""The stage ``tokenizer``: fit a tokenizer or load its weights, and save it in rearkit's layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rearkit.contracts import FittableTokenizer, Tokenizer
from rearkit.data.image_sets import ImageSet
from rearkit.data.pixels import psnr, to_float
from rearkit.errors import DataError, RearkitError
from rearkit.model import build_tokenizer
from rearkit.recipe.tables import FitTable, Recipe
from rearkit.stages.data import open_split
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Outcome, Stage, hash_of
from rearkit.system import distributed
from rearkit.system.console import say
from rearkit.system.devices import resolve_device
from rearkit.system.files import write_text
from rearkit.system.hub import hub_records
from rearkit.tokenization.fit import TokenizerFit
from rearkit.tokenization.quality import reconstruct
from rearkit.weights import load_weights, write_state_dict


def run(recipe: Recipe, folder: RunFolder) -> Outcome:
    """Fit the tokenizer on all ranks, or load its weights; the first rank saves it."""
    tokenizer = build_tokenizer(recipe)
    fit = None if recipe.tokenizer.fit is None else _fit(recipe, folder, tokenizer, recipe.tokenizer.fit)
    return distributed.from_main(lambda: _save(recipe, folder, tokenizer, fit))


def _save(recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer, fit: TokenizerFit | None) -> Outcome:
    """Write the tokenizer, after a fit what it logged, too; a tokenizer below the recipe's quality is an error."""
    result: dict[str, Any] = {"num_tokens": tokenizer.num_tokens, "codebook_size": tokenizer.codebook_size}
    result |= hub_records(recipe.tokenizer.weights)
    outputs = [folder.tokenizer.name]
    if fit is None:
        write_state_dict(folder.tokenizer, tokenizer.state_dict())
        return Outcome(result, tuple(outputs))
    write_text(folder.fit_log, "".join(json.dumps(line) + "\n" for line in fit.history))
    outputs.append(folder.fit_log.name)
    result |= _judge(recipe, folder, tokenizer, fit.fit)
    write_state_dict(folder.tokenizer, tokenizer.state_dict())
    # Only now, so that the fit can be resumed if its result could not be written.
    fit.finish()
    return Outcome(result, tuple(outputs))


def fitted_tokenizer(recipe: Recipe, folder: RunFolder) -> Tokenizer:
    """Load the tokenizer that the stage has saved, frozen and in eval mode."""
    if not folder.tokenizer.is_file():
        raise RearkitError(f"{folder.tokenizer}: no tokenizer yet; run: python -m rearkit tokenizer RECIPE")
    return load_tokenizer(recipe, folder.tokenizer)


def load_tokenizer(recipe: Recipe, file: Path) -> Tokenizer:
    """Load a tokenizer that rearkit has saved, frozen and in eval mode."""
    tokenizer = build_tokenizer(recipe, load=False)
    load_weights(tokenizer, file)
    tokenizer.eval().requires_grad_(False)
    return tokenizer


def _fit(recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer, table: FitTable) -> TokenizerFit:
    if not isinstance(tokenizer, FittableTokenizer):
        raise RearkitError(
            f'[tokenizer] {recipe.tokenizer.name} cannot be fitted here; give its weights = "FILE" instead of fit'
        )
    if table.batch < (ranks := distributed.world_size()):
        raise RearkitError(f"[tokenizer.fit] batch: {table.batch} images cannot be shared by {ranks} ranks; use more")
    tokenizer.to(distributed.local_device(resolve_device(recipe.device)))
    images = open_split(recipe, folder, "train", tokenizer.image_size, "tokenizer")
    fit = TokenizerFit(tokenizer, table, recipe.seed, folder.fit_checkpoint)
    # All have read the same checkpoint before the first rank writes the next.
    distributed.barrier()
    # A resumed fit gets the batches that come after its last step.
    fit.run(images.batches(table.batch, fit.step))
    return fit


def _judge(recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer, table: FitTable) -> dict[str, Any]:
    """Measure a fitted tokenizer on held-out images; raise DataError if it is below the recipe's ``min_psnr``."""
    # Checked at once, since a poor tokenizer would cost a whole training before the scores show it.
    held_out = open_split(recipe, folder, "held-out", tokenizer.image_size, "tokenizer").all()
    if not len(held_out):
        return {}
    decoded = reconstruct(tokenizer, held_out.images, recipe.tokens.batch)
    ratio = psnr(to_float(decoded), to_float(held_out.images)).mean().item()
    say(f"tokenizer: {ratio:.2f} dB PSNR on {len(held_out)} held-out images")
    # Not `<`, which no NaN is.
    if not ratio >= table.min_psnr:
        raise DataError(
            f"[tokenizer.fit] min_psnr = {table.min_psnr}, but held-out images come back at {ratio:.2f} dB; "
            "fit for more steps, or make the codebook larger"
        )
    return {"held_out_psnr": ratio}


def fit_tokenizer(recipe: Recipe, images: ImageSet) -> Tokenizer:
    """Build a recipe's tokenizer, fit it on images in memory as ``[tokenizer.fit]`` says, and return it frozen.

    Raises:
        RearkitError: the tokenizer cannot be fitted, or the recipe has no ``[tokenizer.fit]``.
    """
    tokenizer = build_tokenizer(recipe)
    if recipe.tokenizer.fit is None or not isinstance(tokenizer, FittableTokenizer):
        raise RearkitError(
            f"[tokenizer] {recipe.tokenizer.name}: no [tokenizer.fit] in the recipe, or cannot be fitted"
        )
    tokenizer.to(resolve_device(recipe.device))

    # Drawn with replacement, since the set may be smaller than a batch.
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(recipe.seed)
        while True:
            index = torch.randint(len(images), (fit.batch,), generator=generator)
            yield to_float(images.images[index]), images.labels[index]

    fit = recipe.tokenizer.fit
    TokenizerFit(tokenizer, fit, recipe.seed).run(batches())
    return tokenizer


def tables(recipe: Recipe, folder: RunFolder | None) -> Mapping[str, Any]:
    """Return the tables that the tokenizer depends on, and a hash of the weights that they name."""
    return {"tokenizer": recipe.tokenizer, "weights": hash_of(recipe.tokenizer.weights), "seed": recipe.seed}


STAGE = Stage("tokenizer", ("data",), tables, run, all_ranks=True, uses=("tokenizer",))
