"""``run``, and a command for each stage alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rearkit.cli.examples import Command
from rearkit.cli.given import Given
from rearkit.cli.options import NUM_GPUS, OUT, Output, optional_recipe_options, recipe_options

if TYPE_CHECKING:
    from rearkit.stages.run_folder import RunFolder

CONTINUE = click.option(
    "--continue", "go_on", is_flag=True, help="With a changed [train], go on with the training instead of anew."
)


@click.command(cls=Command, example="run mnist\nrun mnist --set train.steps=4000 --continue")
@recipe_options
@OUT
@NUM_GPUS
@click.option("--again", metavar="STAGE", help="Run this stage and all after it again, even if up to date.")
@CONTINUE
@click.pass_obj
def run(
    arguments: list[str], given: Given, out: Path | None, num_gpus: int | None, again: str | None, go_on: bool
) -> None:
    """Run the stages of RECIPE that are not up to date."""
    if again is not None and go_on:
        raise click.UsageError("--again starts stages anew and --continue goes on with one; give one of them")
    run_ranks(arguments, given, out, num_gpus, again=again, go_on=go_on)


@click.command(cls=Command, example="train mnist")
@recipe_options
@OUT
@NUM_GPUS
@CONTINUE
@click.pass_obj
def train(arguments: list[str], given: Given, out: Path | None, num_gpus: int | None, go_on: bool) -> None:
    """Train the backbone on the token shards."""
    run_ranks(arguments, given, out, num_gpus, only="train", go_on=go_on)


def _say_time(given: Given) -> None:
    """Say how long a run takes, where its recipe file says so and nothing was changed."""
    from rearkit.recipe.recipe_files import find_file, takes
    from rearkit.system.console import say

    file = find_file(given.source)
    if not given.overrides and (time := takes(file)):
        say(f"takes {time}, as {file.name} says")


def run_ranks(
    arguments: list[str],
    given: Given,
    out: Path | None,
    num_gpus: int | None,
    only: str | None = None,
    again: str | None = None,
    go_on: bool = False,
) -> RunFolder:
    """Run stages in this process and return the run's folder, or start ranks that each run the same command."""
    from rearkit import pipeline
    from rearkit.system import distributed

    # In a started rank the same option is given again; there it must not start further ranks.
    if num_gpus in (None, 1) or distributed.world_size() > 1:
        if only is None:
            _say_time(given)
        return pipeline.run(given.recipe, out, only, again, go_on)
    from rearkit.stages.inputs import check_inputs
    from rearkit.system.devices import check_ranks
    from rearkit.system.launch import launch

    # Checked once here, or each rank would report the same error.
    check_ranks(given.recipe.device, num_gpus)
    pipeline.check_stage(again, only)
    check_inputs(given.recipe, num_gpus if only in (None, "train") else None, scored=only is None)
    raise click.exceptions.Exit(launch(num_gpus, arguments))


@click.command(
    cls=Command,
    example="data mnist\ndata --from-folder photos --to shards\ndata --from-folder val --labels val.csv --to shards",
)
@optional_recipe_options
@click.option("--from-folder", type=click.Path(path_type=Path), help="Folder or tar of images to convert to shards.")
@click.option("--to", type=Output(folder=True), help="Folder to write these shards to.")
@click.option("--shard-size", type=click.IntRange(1), default=1000, show_default=True, help="Images per shard.")
@click.option("--workers", type=click.IntRange(1), help="Processes; left out: one per core.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="File of the images' classes: a file and its class a line, or ImageNet's validation_ground_truth.txt.",
)
@click.option("--unlabelled", is_flag=True, help="The images have no classes.")
@click.option(
    "--classes",
    type=click.Path(path_type=Path),
    help="The classes.json of the training shards: held-out images get the same numbers, whatever classes they have.",
)
def data(
    given: Given | None,
    out: Path | None,
    from_folder: Path | None,
    to: Path | None,
    shard_size: int,
    workers: int | None,
    labels: Path | None,
    unlabelled: bool,
    classes: Path | None,
) -> None:
    """Provide the image shards of RECIPE; or convert a folder of images, one sub-folder per class, into shards."""
    if (labels is not None or unlabelled) and (from_folder is None or (labels is not None and unlabelled)):
        raise click.UsageError("--labels FILE or --unlabelled goes with --from-folder, one of them")
    if classes is not None and (from_folder is None or unlabelled):
        raise click.UsageError("--classes FILE goes with --from-folder, and not with --unlabelled")
    if _runs_stage("data", given, out, from_folder, to, "--from-folder"):
        return
    from rearkit.data.convert import Labelling, images_to_shards

    labelling = Labelling(labels, unlabelled, classes)
    shards = images_to_shards(from_folder, to, shard_size, workers, labelling)  # type: ignore[arg-type]
    click.echo(f"{to}: {len(shards)} shards")


@click.command(cls=Command, example="tokens mnist")
@optional_recipe_options
@click.option("--from-jsonl", type=click.Path(path_type=Path), help="Published token file to convert to token shards.")
@click.option("--to", type=Output(folder=True), help="Folder to write these shards to.")
@click.option("--workers", type=click.IntRange(1), help="Processes that convert; left out: one per core.")
def tokens(
    given: Given | None, out: Path | None, from_jsonl: Path | None, to: Path | None, workers: int | None
) -> None:
    """Tokenize the image shards of RECIPE and check the token shards; or convert a published token file."""
    if _runs_stage("tokens", given, out, from_jsonl, to, "--from-jsonl"):
        return
    from rearkit.data.convert_tokens import jsonl_to_token_shards
    from rearkit.system.hub import local_file

    shards = jsonl_to_token_shards(local_file(from_jsonl), to, workers=workers)  # type: ignore[arg-type]
    click.echo(f'{to}: {len(shards)} token shards; use them with [tokens] pretokenized = "{to}"')


def _runs_stage(
    name: str, given: Given | None, out: Path | None, source: Path | None, target: Path | None, option: str
) -> bool:
    """Run a stage and return True if a recipe is given; else check a conversion's options and return False.

    Raises:
        click.UsageError: both forms are given or neither, or the conversion lacks ``--to``.
    """
    if (given is None) == (source is None):
        raise click.UsageError(f"give a RECIPE, or {option} and --to")
    if given is None:
        if target is None:
            raise click.UsageError(f"{option} needs --to FOLDER")
        return False
    from rearkit import pipeline

    pipeline.run(given.recipe, out, only=name)
    return True


def _stage_command(name: str, summary: str) -> click.Command:
    """Make the command of a stage that has no options of its own."""

    @click.command(name, help=summary, cls=Command, example=f"{name} mnist")
    @recipe_options
    @OUT
    def command(given: Given, out: Path | None) -> None:
        from rearkit import pipeline

        pipeline.run(given.recipe, out, only=name)

    return command


tokenizer = _stage_command("tokenizer", "Fit RECIPE's tokenizer, or load its weights.")
