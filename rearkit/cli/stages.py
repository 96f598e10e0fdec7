"""``run``, and each stage alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rearkit.cli.options import NUM_GPUS, OUT, optional_recipe_options, recipe_options


@click.command()
@recipe_options
@OUT
@NUM_GPUS
@click.pass_obj
def run(arguments: list[str], recipe: Any, out: Path | None, num_gpus: int | None) -> None:
    """Run all stages of RECIPE that are not up to date."""
    _run_ranks(arguments, recipe, out, num_gpus)


@click.command()
@recipe_options
@OUT
@NUM_GPUS
@click.pass_obj
def train(arguments: list[str], recipe: Any, out: Path | None, num_gpus: int | None) -> None:
    """Train the backbone on the token shards."""
    _run_ranks(arguments, recipe, out, num_gpus, only="train")


def _run_ranks(
    arguments: list[str], recipe: Any, out: Path | None, num_gpus: int | None, only: str | None = None
) -> None:
    """Run stages in this process, or start as many ranks of the same command as are asked for."""
    from rearkit import pipeline
    from rearkit.system import distributed

    if num_gpus in (None, 1) or distributed.world_size() > 1:
        pipeline.run(recipe, out, only)
        return
    from rearkit.system.launch import launch
    from rearkit.training.deepspeed_config import batch_layout

    pipeline.check_inputs(recipe)
    if only in (None, "train"):
        batch_layout(recipe.train, num_gpus)
    raise click.exceptions.Exit(launch(num_gpus, arguments))


@click.command()
@optional_recipe_options
@click.option("--from-folder", type=click.Path(path_type=Path), help="Folder or tar of images to turn into shards.")
@click.option("--to", type=click.Path(path_type=Path), help="Folder for those shards.")
@click.option("--shard-size", type=click.IntRange(1), default=1000, show_default=True, help="Images in a shard.")
@click.option("--workers", type=click.IntRange(1), help="Processes; left out, one a core.")
def data(
    recipe: Any, out: Path | None, from_folder: Path | None, to: Path | None, shard_size: int, workers: int | None
) -> None:
    """Write or find the image shards of RECIPE; or turn a folder of images, one sub-folder a class, into shards."""
    if _runs_stage("data", recipe, out, from_folder, to, "--from-folder"):
        return
    from rearkit.data.convert import images_to_shards

    shards = images_to_shards(from_folder, to, shard_size, workers)  # type: ignore[arg-type]
    click.echo(f"{to}: {len(shards)} shards")


@click.command()
@optional_recipe_options
@click.option("--from-jsonl", type=click.Path(path_type=Path), help="Published token file to turn into token shards.")
@click.option("--to", type=click.Path(path_type=Path), help="Folder for those shards.")
def tokens(recipe: Any, out: Path | None, from_jsonl: Path | None, to: Path | None) -> None:
    """Turn the image shards of RECIPE into token shards and check them; or convert a published token file."""
    if _runs_stage("tokens", recipe, out, from_jsonl, to, "--from-jsonl"):
        return
    from rearkit.data.convert import jsonl_to_token_shards

    shards = jsonl_to_token_shards(from_jsonl, to)  # type: ignore[arg-type]
    click.echo(f'{to}: {len(shards)} token shards; use them with [tokens] pretokenized = "{to}"')


def _runs_stage(
    name: str, recipe: Any, out: Path | None, source: Path | None, target: Path | None, option: str
) -> bool:
    """Run a stage where a recipe is given; otherwise see that a conversion's two options are."""
    if (recipe is None) == (source is None):
        raise click.UsageError(f"give a RECIPE, or {option} and --to")
    if recipe is None:
        if target is None:
            raise click.UsageError(f"{option} needs --to FOLDER")
        return False
    from rearkit import pipeline

    pipeline.run(recipe, out, only=name)
    return True


def _stage_command(name: str, summary: str) -> click.Command:
    @click.command(name, help=summary)
    @recipe_options
    @OUT
    def command(recipe: Any, out: Path | None) -> None:
        from rearkit import pipeline

        pipeline.run(recipe, out, only=name)

    return command


tokenizer = _stage_command("tokenizer", "Fit RECIPE's tokenizer, or load its weights.")


@click.command()
@recipe_options
@OUT
@NUM_GPUS
@click.option("--classes", help="Instead of the recipe's set: these classes, by number or name, with commas between.")
@click.option("--grid", type=click.Path(path_type=Path), help="PNG for their images, a row a class.")
@click.option("--per-class", type=click.IntRange(1), default=8, show_default=True, help="Images of each of them.")
@click.pass_obj
def sample(
    arguments: list[str],
    recipe: Any,
    out: Path | None,
    num_gpus: int | None,
    classes: str | None,
    grid: Path | None,
    per_class: int,
) -> None:
    """Sample images from the trained backbone: RECIPE's set of them, or a few of some classes."""
    if (classes is None) != (grid is None):
        raise click.UsageError("--classes and --grid go together: which classes, and the picture to write")
    if classes is None or grid is None:
        _run_ranks(arguments, recipe, out, num_gpus, only="sample")
        return
    if num_gpus not in (None, 1):
        raise click.UsageError("--num-gpus is for the recipe's set; --classes are sampled by one process")
    from rearkit.pipeline import trained_run
    from rearkit.sampling.picture import sample_picture
    from rearkit.stages.train import trained_model

    sample_picture(trained_model(recipe, trained_run(recipe, out)), classes, grid, per_class)
