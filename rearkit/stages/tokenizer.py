"""The stage ``tokenizer``: fit one, or load its weights, and save it in rearkit's layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rearkit.contracts import FittableTokenizer, Tokenizer, as_module
from rearkit.data.image_sets import ImageSet, image_batches, read_all
from rearkit.data.pixels import psnr, to_float
from rearkit.errors import DataError, RearkitError
from rearkit.model import build_dataset, build_tokenizer
from rearkit.recipe.tables import FitTable, Recipe
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Outcome, Stage
from rearkit.system.console import say
from rearkit.system.devices import resolve_device
from rearkit.system.files import sha256, write_text
from rearkit.tokenization.fit import CHECKPOINT, TokenizerFit
from rearkit.tokenization.quality import reconstruct
from rearkit.weights import load_weights, write_state_dict

WEIGHTS = "tokenizer.safetensors"
FIT_LOG = "fit.jsonl"
SKIPPED = "skipped.jsonl"


def run(recipe: Recipe, folder: RunFolder) -> Outcome:
    """Fit the tokenizer, or load its weights, and save it."""
    place = folder.stage("tokenizer")
    tokenizer = build_tokenizer(recipe)
    result: dict[str, Any] = {"num_tokens": tokenizer.num_tokens, "codebook_size": tokenizer.codebook_size}
    outputs = [WEIGHTS]
    if recipe.tokenizer.fit is not None:
        fit = _fit(recipe, folder, tokenizer, recipe.tokenizer.fit)
        write_text(place / FIT_LOG, "".join(json.dumps(line) + "\n" for line in fit.history))
        outputs.append(FIT_LOG)
        result |= _judge(recipe, folder, tokenizer, recipe.tokenizer.fit)
        write_state_dict(place / WEIGHTS, as_module(tokenizer).state_dict())
        fit.finish()
    else:
        write_state_dict(place / WEIGHTS, as_module(tokenizer).state_dict())
    return Outcome(result, tuple(outputs))


def fitted_tokenizer(recipe: Recipe, folder: RunFolder) -> Tokenizer:
    """Load the tokenizer that the stage left, frozen and in eval mode."""
    path = folder.stage("tokenizer") / WEIGHTS
    if not path.is_file():
        raise RearkitError(f"{path}: no tokenizer yet; run: python -m rearkit tokenizer RECIPE")
    tokenizer = build_tokenizer(recipe, load=False)
    load_weights(as_module(tokenizer), path)
    as_module(tokenizer).eval().requires_grad_(False)
    return tokenizer


def _fit(recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer, table: FitTable) -> TokenizerFit:
    if not isinstance(tokenizer, FittableTokenizer):
        raise RearkitError(
            f'[tokenizer] {recipe.tokenizer.name} cannot be fitted here; give its weights = "FILE" instead of fit'
        )
    place = folder.stage("tokenizer")
    as_module(tokenizer).to(resolve_device(recipe.device))
    num_classes = build_dataset(recipe).num_classes
    fit = TokenizerFit(tokenizer, table, recipe.seed, place / CHECKPOINT)
    fit.run(image_batches(recipe, folder, tokenizer.image_size, num_classes, table.batch, place / SKIPPED, fit.step))
    return fit


def _judge(recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer, table: FitTable) -> dict[str, Any]:
    """Measure a fitted tokenizer on held-out images, and stop below the recipe's floor."""
    num_classes, log = build_dataset(recipe).num_classes, folder.stage("tokenizer") / SKIPPED
    held_out = read_all(recipe, folder, "held-out", tokenizer.image_size, num_classes, log)
    if not len(held_out):
        return {}
    decoded = reconstruct(tokenizer, held_out.images, recipe.tokens.batch)
    ratio = psnr(to_float(decoded), to_float(held_out.images)).mean().item()
    say(f"tokenizer: {ratio:.2f} dB PSNR on {len(held_out)} held-out images")
    if ratio < table.min_psnr:
        raise DataError(
            f"[tokenizer.fit] min_psnr = {table.min_psnr}, but held-out images come back at {ratio:.2f} dB; "
            "fit for more steps, or make the codebook larger"
        )
    return {"held_out_psnr": ratio}


def tables(recipe: Recipe) -> Mapping[str, Any]:
    """The tables that the tokenizer depends on, and the weights that it names."""
    weights = recipe.tokenizer.weights
    hashed = sha256(Path(weights)) if weights is not None and Path(weights).is_file() else None
    return {"tokenizer": recipe.tokenizer, "weights": hashed, "seed": recipe.seed}


STAGE = Stage("tokenizer", ("data",), tables, run)


def fit_tokenizer(recipe: Recipe, images: ImageSet) -> Tokenizer:
    """Build a recipe's tokenizer and fit it on images in memory, as ``[tokenizer.fit]`` says; returned frozen.

    Raises:
        RearkitError: the tokenizer cannot be fitted, or the recipe has no ``[tokenizer.fit]``.
    """
    tokenizer = build_tokenizer(recipe)
    if recipe.tokenizer.fit is None or not isinstance(tokenizer, FittableTokenizer):
        raise RearkitError(
            f"[tokenizer] {recipe.tokenizer.name}: no [tokenizer.fit] in the recipe, or cannot be fitted"
        )
    as_module(tokenizer).to(resolve_device(recipe.device))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(recipe.seed)
        while True:
            index = torch.randint(len(images), (fit.batch,), generator=generator)
            yield to_float(images.images[index]), images.labels[index]

    fit = recipe.tokenizer.fit
    TokenizerFit(tokenizer, fit, recipe.seed).run(batches())
    return tokenizer
