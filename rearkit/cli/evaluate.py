"""``evaluate``: score a run or an ``.npz`` of samples, or list what differs between two sets of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from rearkit.cli.examples import Command
from rearkit.cli.options import optional_recipe_options

FILE = click.Path(path_type=Path)
# Options of the form for files. With a RECIPE the same things are settings of its [evaluate] table.
OF_FILES = ("reference", "feature_weights", "batch", "nearest_k", "device", "cache", "to")
TAKEN = {
    "a RECIPE": ("recipe", "overrides", "out", "tokenizer"),
    "--samples": ("samples", *OF_FILES),
    "--compare": ("compare",),
}
"""The parameters that each of the command's three forms takes."""


@click.command(cls=Command, example="evaluate mnist")
@optional_recipe_options
@click.option("--tokenizer", is_flag=True, help="Score RECIPE's tokenizer alone; runs its stage first if needed.")
@click.option("--samples", type=FILE, help="Score this .npz (arr_0: uint8 images) instead of a run's.")
@click.option("--reference", type=FILE, help="Reference .npz with some of mu, sigma, mu_s, sigma_s, arr_0.")
@click.option(
    "--feature-weights",
    type=FILE,
    help="Inception weights for torch-fidelity (left out: downloaded), or a run's classifier.safetensors.",
)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images per batch.")
@click.option("--nearest-k", type=click.IntRange(1), default=3, show_default=True, help="k for precision and recall.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--cache", type=FILE, help="Folder for features; left out: rearkit/features in the user's cache folder.")
@click.option("--to", type=FILE, help="JSON file to write the scores to.")
@click.option("--compare", type=FILE, nargs=2, metavar="A B", help="List what differs: .npz, runs, scores.json.")
def evaluate(
    recipe: Any,
    out: Path | None,
    tokenizer: bool,
    samples: Path | None,
    reference: Path | None,
    compare: tuple[Path, Path] | None,
    **options: Any,
) -> None:
    """Score the samples of RECIPE's run; or --samples against a --reference; or --compare two sets of samples."""
    # One command with three forms, since all of them answer the same question; click has no such alternatives.
    if sum(given is not None for given in (recipe, samples, compare)) != 1:
        raise click.UsageError("give a RECIPE, or --samples and --reference, or --compare A B")
    _refuse_others("a RECIPE" if recipe is not None else "--samples" if samples is not None else "--compare")
    if tokenizer:
        from rearkit import pipeline
        from rearkit.evaluation.reconstruction import reconstruction_lines
        from rearkit.stages.evaluate import score_tokenizer

        folder = pipeline.run(recipe, out, only="tokenizer")
        for line in reconstruction_lines(score_tokenizer(recipe, folder)):
            click.echo(line)
    elif recipe is not None:
        from rearkit import pipeline

        pipeline.run(recipe, out, only="evaluate")
    elif samples is not None:
        if reference is None:
            raise click.UsageError("--samples needs --reference FILE")
        _evaluate_files(samples, reference, **options)
    elif compare is not None:
        from rearkit.analysis.differences import describe, difference_lines

        for line in difference_lines(*map(describe, compare)):
            click.echo(line)


def _refuse_others(form: str) -> None:
    """Raise a usage error for options that this form would ignore.

    Raises:
        click.UsageError: names these options.
    """
    context = click.get_current_context()
    # Only what stands on the command line: defaults are always set.
    given = [
        param
        for param in context.command.params
        if context.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
    ]
    if others := [param.opts[0] for param in given if param.name not in TAKEN[form]]:
        # With a recipe most of these options are settings, which --set reaches.
        hint = "; --set evaluate.KEY=VALUE changes what its table says" if form == "a RECIPE" else ""
        raise click.UsageError(f"{', '.join(others)}: not with {form}{hint}")


def _evaluate_files(
    samples: Path, reference: Path, feature_weights: Path | None, cache: Path | None, to: Path | None, **options: Any
) -> None:
    import attrs

    from rearkit.evaluation.feature_spaces import space_of_file
    from rearkit.evaluation.features import FeatureCache
    from rearkit.evaluation.score_files import evaluate_files
    from rearkit.evaluation.score_record import score_lines
    from rearkit.evaluation.scores import Scorer
    from rearkit.sampling.manifest import manifest_lines
    from rearkit.system.files import write_json

    space = space_of_file(None if feature_weights is None else str(feature_weights))
    scorer = Scorer(space, cache=FeatureCache.default() if cache is None else FeatureCache(cache), **options)
    found = evaluate_files(samples, reference, scorer)
    told = ["no manifest in it"] if found.manifest is None else manifest_lines(found.manifest)
    for line in [f"{samples}: {line}" for line in told] + score_lines(found):
        click.echo(line)
    if to is not None:
        write_json(to, attrs.asdict(found))
