"""The stage ``tokenizer``: fit a tokenizer or load its weights, and save it in rearkit's layout."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rearkit.contracts import FittableTokenizer, Tokenizer, height_width, square_side
from rearkit.data.image_sets import ImageSet, Split
from rearkit.data.pixels import to_float
from rearkit.errors import DataError, RearkitError, RecipeError
from rearkit.evaluation.classifier import FILE as CLASSIFIER
from rearkit.evaluation.classifier import Classifier, find_classifier, load_classifier, train_classifier
from rearkit.evaluation.image_streams import in_batches
from rearkit.fitting.adversary import most_layers
from rearkit.fitting.fit import TokenizerFit, tells_images
from rearkit.fitting.perceptual import LEAST_SIDE, Perceptual, check_lpips, classifier_distance, lpips_distance
from rearkit.layers.shapes_only import cheaply
from rearkit.model import build_tokenizer
from rearkit.recipe.fit_table import FitTable, PerceptualTable
from rearkit.recipe.tables import ClassifierTable, Recipe
from rearkit.stages.data import open_split
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Outcome, Stage, hash_of
from rearkit.system import distributed
from rearkit.system.console import say
from rearkit.system.devices import derive_seed, resolve_device
from rearkit.system.hub import hub_records
from rearkit.tokenization.quality import rebuilt_psnr
from rearkit.tokenization.tokenize import check_size
from rearkit.training.logs import TrainLog
from rearkit.training.trackers import open_trackers
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
    outputs.append(folder.fit_log.name)
    result |= _measured(recipe, folder, tokenizer)
    # Checked at once, since a poor tokenizer would cost a whole training before the scores show it.
    judge(recipe, folder, result)
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
    images = open_split(recipe, folder, "train", square_side(tokenizer), "tokenizer")
    perceptual = None
    if table.perceptual is not None:
        classifier = functools.partial(_run_classifier, recipe, folder, images)
        perceptual = _perceptual(recipe, table.perceptual, images.num_classes, classifier)
    fit = TokenizerFit(tokenizer, table, recipe.seed, folder.fit_checkpoint, perceptual)
    # All have read the same checkpoint before the first rank writes the next.
    distributed.barrier()
    log = None
    if distributed.rank() == 0:
        place = folder.fit_log.parent
        log = TrainLog(place, fit.step, open_trackers(recipe, place, fit.step), folder.fit_log.name)
    try:
        # A resumed fit gets the batches that come after its last step.
        fit.run(images.batches(table.batch, fit.place), log)
    finally:
        if log is not None:
            log.close()
    return fit


def _perceptual(
    recipe: Recipe,
    table: PerceptualTable,
    num_classes: int,
    classifier: Callable[[ClassifierTable, int, torch.device], Classifier],
) -> Perceptual:
    """Return the distance that a recipe asks for; ``classifier`` trains one by its settings and seed, if need be."""
    device = distributed.local_device(resolve_device(recipe.device))
    if table.features == "lpips":
        return Perceptual(lpips_distance(str(table.vgg_weights), device), table.weight)
    if num_classes < 2:
        raise RearkitError(
            '[tokenizer.fit.perceptual] features = "classifier" needs images of several classes; use "lpips"'
        )
    # Not the one of `evaluate`: a decoder fitted to please the judge would be scored too well.
    seed = derive_seed(recipe.seed, "perceptual")
    trained = classifier(ClassifierTable(steps=table.steps), seed, device)
    return Perceptual(classifier_distance(trained.to(device)), table.weight)


def _run_classifier(
    recipe: Recipe, folder: RunFolder, images: Split, table: ClassifierTable, seed: int, device: torch.device
) -> Classifier:
    """Return a run's classifier, which the first rank trains, if need be."""
    place = folder.fit_log.parent

    def trained() -> None:
        seen = images.all(recipe.evaluate.max_reference)
        find_classifier(place, seen.images, seen.labels, table, seed, device)

    distributed.from_main(trained)
    return load_classifier(place / CLASSIFIER)


def check_fit(recipe: Recipe) -> list[str]:
    """Return what a recipe's ``[tokenizer.fit]`` asks for and its tokenizer, or what is installed, cannot give."""
    table = recipe.tokenizer.fit
    if table is None:
        return []
    problems = []
    if table.part == "decoder" and recipe.tokenizer.weights is None:
        problems.append('[tokenizer.fit] part = "decoder" needs [tokenizer] weights, whose encoder it keeps')
    if table.perceptual is not None and table.perceptual.features == "lpips":
        check_lpips()
    if table.part == "all" and table.perceptual is None and table.adversarial is None:
        return problems
    tokenizer = cheaply(lambda: build_tokenizer(recipe, load=False))
    if not isinstance(tokenizer, FittableTokenizer):
        return problems
    if table.part == "decoder" and not tokenizer.decoder_modules():
        problems.append(f'[tokenizer.fit] part = "decoder": {recipe.tokenizer.name} does not tell its decoder apart')
    if (table.perceptual or table.adversarial) and not tells_images(tokenizer):
        problems.append(
            f"[tokenizer.fit] perceptual and adversarial need a tokenizer with fit_pass, and {recipe.tokenizer.name} "
            "has only fit_loss; leave these tables out"
        )
    elif table.perceptual or table.adversarial:
        problems += _too_small(table, min(height_width(tokenizer.image_size)))
    return problems


def _too_small(table: FitTable, side: int) -> list[str]:
    """Return which networks of a fit cannot take images of a side."""
    problems = []
    if table.adversarial is not None and table.adversarial.layers > (most := most_layers(side)):
        remedy = f"{most} at most" if most else "leave this table out"
        problems.append(
            f"[tokenizer.fit.adversarial] layers = {table.adversarial.layers}: {side} pixels are too few; {remedy}"
        )
    if table.perceptual is not None and side < (least := LEAST_SIDE[table.perceptual.features]):
        problems.append(
            f'[tokenizer.fit.perceptual] features = "{table.perceptual.features}" needs images of {least} pixels at '
            f"least, and the tokenizer's have {side}"
        )
    return problems


def _measured(recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer) -> dict[str, float]:
    """Measure a fitted tokenizer's PSNR on held-out images, or, if there are none, on some training images."""
    for name, limit in (("held-out", None), ("train", recipe.tokens.check_images)):
        images = open_split(recipe, folder, name, square_side(tokenizer), "tokenizer").part(limit)
        ratios = rebuilt_psnr(tokenizer, in_batches((read.image for read in images.read()), recipe.tokens.batch))
        if len(ratios):
            break
    ratio, kind = ratios.mean().item(), "held-out" if name == "held-out" else "training"
    say(f"tokenizer: {ratio:.2f} dB PSNR on {len(ratios)} {kind} images")
    return {f"{name.replace('-', '_')}_psnr": ratio}


def judge(recipe: Recipe, folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Compare a fitted tokenizer's PSNR with the recipe's ``min_psnr``.

    Raises:
        DataError: it is below.
    """
    table = recipe.tokenizer.fit
    kind = "held-out" if "held_out_psnr" in result else "training"
    ratio = result.get("held_out_psnr", result.get("train_psnr"))
    # Not `<`, which no NaN is.
    if table is not None and ratio is not None and not ratio >= table.min_psnr:
        remedy = "fit for more steps, make the codebook larger"
        if table.part == "decoder":
            # Which sharpens images at the price of this figure.
            remedy = "fit at a lower lr, or with less weight on perceptual and adversarial terms"
        raise DataError(
            f"[tokenizer.fit] min_psnr = {table.min_psnr}, but {kind} images come back at {ratio:.2f} dB; "
            f"{remedy}, or lower min_psnr to take it as it is"
        )


def fit_tokenizer(recipe: Recipe, images: ImageSet) -> Tokenizer:
    """Build a recipe's tokenizer, fit it on images in memory as ``[tokenizer.fit]`` says, and return it frozen.

    Raises:
        RearkitError: the tokenizer cannot be fitted as the recipe says, or the recipe has no ``[tokenizer.fit]``.
        DataError: the images are not of the tokenizer's size.
    """
    if problems := check_fit(recipe):
        raise RecipeError([f"{recipe.name}: {problem}" for problem in problems])
    tokenizer = build_tokenizer(recipe)
    if recipe.tokenizer.fit is None or not isinstance(tokenizer, FittableTokenizer):
        raise RearkitError(
            f"[tokenizer] {recipe.tokenizer.name}: no [tokenizer.fit] in the recipe, or cannot be fitted"
        )
    check_size(tokenizer, images)
    tokenizer.to(resolve_device(recipe.device))

    # Drawn with replacement, since the set may be smaller than a batch.
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(recipe.seed)
        while True:
            index = torch.randint(len(images), (fit.batch,), generator=generator)
            yield to_float(images.images[index]), images.labels[index]

    fit = recipe.tokenizer.fit
    perceptual = None
    if fit.perceptual is not None:
        classes = len(images.labels.unique())
        train = functools.partial(train_classifier, images.images, images.labels, int(images.labels.max()) + 1)
        perceptual = _perceptual(recipe, fit.perceptual, classes, train)
    TokenizerFit(tokenizer, fit, recipe.seed, perceptual=perceptual).run(batches())
    return tokenizer


def tables(recipe: Recipe, folder: RunFolder | None) -> Mapping[str, Any]:
    """Return the tables that the tokenizer depends on, and a hash of the weights that they name."""
    told = {"tokenizer": recipe.tokenizer, "weights": hash_of(recipe.tokenizer.weights), "seed": recipe.seed}
    vgg = vgg_weights(recipe)
    return told if vgg is None else told | {"vgg": hash_of(vgg)}


def vgg_weights(recipe: Recipe) -> str | None:
    """Return the file of the perceptual distance's weights, if a recipe names one."""
    perceptual = None if recipe.tokenizer.fit is None else recipe.tokenizer.fit.perceptual
    return None if perceptual is None else perceptual.vgg_weights


STAGE = Stage("tokenizer", ("data",), tables, run, all_ranks=True, uses=("tokenizer",), judge=judge)
