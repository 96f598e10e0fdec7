"""What a run needs, checked before any of it is built: files, weights, and settings that go together."""

from __future__ import annotations

from pathlib import Path

from rearkit.errors import RearkitError
from rearkit.model import check_parts, check_weights
from rearkit.recipe.tables import Recipe
from rearkit.stages.evaluate import check_features
from rearkit.stages.own_files import named_files
from rearkit.stages.tokenizer import check_fit
from rearkit.system.devices import resolve_device
from rearkit.system.hub import is_hub, local_file
from rearkit.training.deepspeed_check import check_deepspeed_table
from rearkit.training.deepspeed_config import batch_layout
from rearkit.training.trackers import check_trackers


def check_inputs(recipe: Recipe, ranks: int | None = None, scored: bool = False) -> None:
    """Check, before anything is built, that what a recipe needs is there, and what it passes on to DeepSpeed.

    Args:
        recipe: to be run.
        ranks: over how many its batches must divide; None where it is not trained.
        scored: whether its samples are drawn and scored too, which takes enough of them.

    Raises:
        RearkitError: something is missing; the message lists all of it, where it comes from, and what to do.
    """
    if ranks is not None and recipe.train.steps:
        batch_layout(recipe.train, ranks)
    check_deepspeed_table(recipe.train, resolve_device(recipe.device))
    check_trackers(recipe.train.trackers)
    problems = []
    listed = {need.path: need for need in recipe.needs}
    # Files that the recipe lists under `needs` are reported below, with their sources.
    for key, path in named_files(recipe).items():
        if path is not None and is_hub(path):
            # Fetched now, so that hours of other stages are not lost to a name that is wrong.
            try:
                local_file(path)
            except RearkitError as error:
                problems.append(f"{key}: {error}")
        elif path is not None and Path(path).is_dir():
            problems.append(f"{key}: {path}: a folder, not a file; name a file in it")
        elif path is not None and path not in listed and not Path(path).is_file():
            problems.append(f"{key}: {path}: no such file, seen from {Path.cwd()}; correct the path, or leave it out")
    if is_hub(recipe.tokens.pretokenized or ""):
        problems.append(
            f"[tokens] pretokenized: {recipe.tokens.pretokenized}: is a folder of token shards, and the hub gives "
            "single files; make one: python -m rearkit tokens --from-jsonl hf://… --to FOLDER"
        )
    for path, need in listed.items():
        if not _is_there(Path(path)):
            problems.append(f"missing: {path}: {need.what}, {need.size}\n    from {need.source}")
            if need.prepare:
                problems[-1] += f"\n    then {need.prepare}"
    problems += [*_weights_problems(recipe), *_guidance_problems(recipe)]
    if scored and recipe.sample.num_images <= recipe.evaluate.nearest_k + 1:
        problems.append(
            f"[sample] num_images: scores need more than {recipe.evaluate.nearest_k + 1} images, and there are "
            f"{recipe.sample.num_images}; give more, or lower [evaluate] nearest_k"
        )
    # Only once all files are there: these build modules and open the files.
    problems = problems or [*check_weights(recipe), *check_features(recipe)]
    if problems:
        raise RearkitError("\n".join(problems))
    # Where one of the later stages is called alone, it builds its modules at once.
    if ranks is not None:
        check_parts(recipe)


def _weights_problems(recipe: Recipe) -> list[str]:
    """Return what is wrong with how a recipe gives, or fits, weights."""
    problems = check_fit(recipe)
    if recipe.tokenizer.weights is None and recipe.tokenizer.fit is None:
        problems.append(
            '[tokenizer]: give weights = "FILE", or a table [tokenizer.fit]; another name takes over neither'
        )
    if recipe.train.steps == 0 and recipe.backbone.weights is None:
        problems.append("[train] steps = 0 leaves the backbone untrained: give [backbone] weights")
    if recipe.train.steps == 0 and recipe.backbone.weights_fit != "strict":
        problems.append('[backbone] weights_fit = "partial" leaves parts untrained; give [train] steps')
    for table in (recipe.tokenizer, recipe.backbone):
        if table.weights_key is not None and table.weights is None:
            problems.append(f"[{table.kind}] weights_key chooses within weights, and there are none")
    return problems


def _guidance_problems(recipe: Recipe) -> list[str]:
    """Return what is wrong with how a recipe guides samples."""
    if recipe.backbone.weights is not None or recipe.train.label_dropout or recipe.sample.guidance_scale == 1:
        return []
    return [
        "[sample] guidance_scale leads away from predictions without a class, which [train] label_dropout = 0 "
        "leaves untrained; give label_dropout a share such as 0.1, or leave guidance_scale out"
    ]


def _is_there(path: Path) -> bool:
    # An empty folder is what a download that has not begun leaves.
    return path.is_file() or (path.is_dir() and any(path.iterdir()))
