"""``run``, and a command for each stage alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rearkit.cli.examples import Command
from rearkit.cli.options import NUM_GPUS, OUT, optional_recipe_options, recipe_options


@click.command(cls=Command, example="run mnist")
@recipe_options
@OUT
@NUM_GPUS
@click.option("--again", metavar="STAGE", help="Run this stage and all after it again, even if up to date.")
@click.pass_obj
def run(arguments: list[str], recipe: Any, out: Path | None, num_gpus: int | None, again: str | None) -> None:
    """Run the stages of RECIPE that are not up to date."""
    _run_ranks(arguments, recipe, out, num_gpus, again=again)


@click.command(cls=Command, example="train mnist")
@recipe_options
@OUT
@NUM_GPUS
@click.pass_obj
def train(arguments: list[str], recipe: Any, out: Path | None, num_gpus: int | None) -> None:
    """Train the backbone on the token shards."""
    _run_ranks(arguments, recipe, out, num_gpus, only="train")


def _say_time() -> None:
    """Say how long a run takes, where its recipe file says so and nothing was changed."""
    from rearkit.recipe.recipe_files import find_file, takes
    from rearkit.system.console import say

    given = click.get_current_context().params
    file = find_file(given["recipe"])
    if not given["overrides"] and (time := takes(file)):
        say(f"takes {time}, as {file.name} says")


def _run_ranks(
    arguments: list[str],
    recipe: Any,
    out: Path | None,
    num_gpus: int | None,
    only: str | None = None,
    again: str | None = None,
) -> Any:
    """Run stages in this process and return the run's folder, or start ranks that each run the same command."""
    from rearkit import pipeline
    from rearkit.system import distributed

    # In a started rank the same option is given again; there it must not start further ranks.
    if num_gpus in (None, 1) or distributed.world_size() > 1:
        if only is None:
            _say_time()
        return pipeline.run(recipe, out, only, again)
    from rearkit.system.launch import launch

    # Checked once here, or each rank would report the same error.
    pipeline.check_stage(again, only)
    pipeline.check_inputs(recipe, num_gpus if only in (None, "train") else None)
    raise click.exceptions.Exit(launch(num_gpus, arguments))


@click.command(
    cls=Command,
    example="data mnist\ndata --from-folder photos --to shards\ndata --from-folder val --labels val.csv --to shards",
)
@optional_recipe_options
@click.option("--from-folder", type=click.Path(path_type=Path), help="Folder or tar of images to convert to shards.")
@click.option("--to", type=click.Path(path_type=Path), help="Folder to write these shards to.")
@click.option("--shard-size", type=click.IntRange(1), default=1000, show_default=True, help="Images per shard.")
@click.option("--workers", type=click.IntRange(1), help="Processes; left out: one per core.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="File of the images' classes: a file and its class a line, or ImageNet's validation_ground_truth.txt.",
)
@click.option("--unlabelled", is_flag=True, help="The images have no classes.")
def data(
    recipe: Any,
    out: Path | None,
    from_folder: Path | None,
    to: Path | None,
    shard_size: int,
    workers: int | None,
    labels: Path | None,
    unlabelled: bool,
) -> None:
    """Provide the image shards of RECIPE; or convert a folder of images, one sub-folder per class, into shards."""
    if (labels is not None or unlabelled) and (from_folder is None or (labels is not None and unlabelled)):
        raise click.UsageError("--labels FILE or --unlabelled goes with --from-folder, one of them")
    if _runs_stage("data", recipe, out, from_folder, to, "--from-folder"):
        return
    from rearkit.data.convert import Labelling, images_to_shards

    labelling = Labelling(labels, unlabelled)
    shards = images_to_shards(from_folder, to, shard_size, workers, labelling)  # type: ignore[arg-type]
    click.echo(f"{to}: {len(shards)} shards")


@click.command(cls=Command, example="tokens mnist")
@optional_recipe_options
@click.option("--from-jsonl", type=click.Path(path_type=Path), help="Published token file to convert to token shards.")
@click.option("--to", type=click.Path(path_type=Path), help="Folder to write these shards to.")
@click.option("--workers", type=click.IntRange(1), help="Processes that convert; left out: one per core.")
def tokens(recipe: Any, out: Path | None, from_jsonl: Path | None, to: Path | None, workers: int | None) -> None:
    """Tokenize the image shards of RECIPE and check the token shards; or convert a published token file."""
    if _runs_stage("tokens", recipe, out, from_jsonl, to, "--from-jsonl"):
        return
    from rearkit.data.convert_tokens import jsonl_to_token_shards
    from rearkit.system.hub import local_file

    shards = jsonl_to_token_shards(local_file(from_jsonl), to, workers=workers)  # type: ignore[arg-type]
    click.echo(f'{to}: {len(shards)} token shards; use them with [tokens] pretokenized = "{to}"')


def _runs_stage(
    name: str, recipe: Any, out: Path | None, source: Path | None, target: Path | None, option: str
) -> bool:
    """Run a stage and return True if a recipe is given; else check a conversion's options and return False.

    Raises:
        click.UsageError: both forms are given or neither, or the conversion lacks ``--to``.
    """
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
    """Make the command of a stage that has no options of its own."""

    @click.command(name, help=summary, cls=Command, example=f"{name} mnist")
    @recipe_options
    @OUT
    def command(recipe: Any, out: Path | None) -> None:
        from rearkit import pipeline

        pipeline.run(recipe, out, only=name)

    return command


tokenizer = _stage_command("tokenizer", "Fit RECIPE's tokenizer, or load its weights.")


SAMPLE_EXAMPLE = """sample mnist
sample mnist --to-folder samples
sample mnist --classes 3,7 --grid digits.png"""


@click.command(cls=Command, example=SAMPLE_EXAMPLE)
@recipe_options
@OUT
@NUM_GPUS
@click.option("--to-folder", type=click.Path(path_type=Path), help="Write the set as PNGs, too, into this folder.")
@click.option("--classes", help="Sample only these classes, numbers or names with commas between, into --grid.")
@click.option("--grid", type=click.Path(path_type=Path), help="PNG for the images of --classes, a row per class.")
@click.option("--per-class", type=click.IntRange(1), default=8, show_default=True, help="Images of each of --classes.")
@click.pass_obj
def sample(
    arguments: list[str],
    recipe: Any,
    out: Path | None,
    num_gpus: int | None,
    to_folder: Path | None,
    classes: str | None,
    grid: Path | None,
    per_class: int,
) -> None:
    """Sample images from the trained backbone: RECIPE's whole set, or a few images of some classes.

    With --to-folder, RECIPE may be an exported model (model.safetensors), which needs no run.
    """
    if to_folder is not None:
        if classes is not None or grid is not None:
            raise click.UsageError("--to-folder is for the recipe's set; --classes are a picture, --grid")
        _sample_to_folder(arguments, recipe, out, num_gpus, to_folder)
        return
    if (classes is None) != (grid is None):
        raise click.UsageError("--classes and --grid go together: the classes, and the picture to write")
    if classes is None or grid is None:
        _run_ranks(arguments, recipe, out, num_gpus, only="sample")
        return
    # --classes are a few images for a picture, which one process samples.
    if num_gpus not in (None, 1):
        raise click.UsageError("--num-gpus is for the recipe's set; --classes are sampled by one process")
    from rearkit.pipeline import trained_run
    from rearkit.sampling.picture import sample_picture
    from rearkit.stages.train import trained_model

    sample_picture(trained_model(recipe, trained_run(recipe, out)), classes, grid, per_class)


def _sample_to_folder(arguments: list[str], recipe: Any, out: Path | None, num_gpus: int | None, target: Path) -> None:
    from rearkit.recipe.recipe_files import find_file
    from rearkit.sampling.png_folders import check_target
    from rearkit.stages.sample_folder import export_samples, sample_model
    from rearkit.system import distributed

    check_target(target)
    file = find_file(click.get_current_context().params["recipe"])
    if file.suffix == ".safetensors":
        if num_gpus not in (None, 1) or out is not None:
            raise click.UsageError("--num-gpus, --out: not with an exported model, which is sampled by one process")
        sample_model(file, recipe, target, click.get_current_context().params["trust"])
        return
    # With several GPUs each rank comes here again, and the first one writes.
    folder = _run_ranks(arguments, recipe, out, num_gpus, only="sample")
    distributed.from_main(lambda: export_samples(folder, target))
