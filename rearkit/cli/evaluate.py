"""``evaluate``: score a run or any samples, make a reference, or list what differs between two sets of samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from rearkit.cli.examples import Command
from rearkit.cli.given import Given, check_modules, open_model
from rearkit.cli.options import Output, optional_recipe_options
from rearkit.system.console import printable

if TYPE_CHECKING:
    from rearkit.evaluation.scores import Scorer
    from rearkit.recipe.tables import Recipe

FILE = click.Path(path_type=Path)
# Options of the form for files. With a RECIPE the same things are settings of its [evaluate] table.
OF_FILES = ("feature_weights", "batch", "device", "cache")
TAKEN = {
    "a RECIPE": ("recipe", "overrides", "trust", "out", "tokenizer", "make_reference"),
    "an exported model": ("recipe", "overrides", "trust", "reference", "nearest_k", "shuffle", "to", *OF_FILES),
    "--samples": ("samples", "reference", "nearest_k", "shuffle", "to", *OF_FILES),
    "--images": ("images", "make_reference", "image_size", "crop", *OF_FILES),
    "--compare": ("compare",),
}
"""The parameters that each of the command's five forms takes."""


EXAMPLE = """evaluate mnist
evaluate --samples samples/ --reference reference.npz
evaluate my-model/ --reference reference.npz
evaluate --images photos/ --image-size 256 --make-reference reference.npz"""


@click.command(cls=Command, example=EXAMPLE)
@optional_recipe_options
@click.option("--tokenizer", is_flag=True, help="Score RECIPE's tokenizer alone; runs data and tokenizer if needed.")
@click.option("--samples", type=FILE, help="Score this .npz, or folder or tar of images, instead of a run's.")
@click.option("--reference", type=FILE, help="Reference .npz with some of mu, sigma, mu_s, sigma_s, arr_0.")
@click.option(
    "--feature-weights",
    type=FILE,
    help="Inception weights for torch-fidelity (left out: downloaded), or a run's classifier.safetensors.",
)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images per batch.")
@click.option("--nearest-k", type=click.IntRange(1), default=3, show_default=True, help="k for precision and recall.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--shuffle", type=click.IntRange(0), metavar="SEED", help="Inception Score on a permutation of the samples."
)
@click.option("--images", type=FILE, help="Folder, tar or shards of images to make a reference of.")
@click.option(
    "--make-reference", type=Output(), metavar="OUT", help="Reference .npz to write, of --images or RECIPE's."
)
@click.option("--image-size", type=click.IntRange(2), help="Make --images squares of this side; left out: they are.")
@click.option("--crop", type=click.Choice(["center", "adm"]), default="center", show_default=True, help="How they are.")
@click.option("--cache", type=FILE, help="Folder for features; left out: rearkit/features in the user's cache folder.")
@click.option("--to", type=Output(), help="JSON file to write the scores to.")
@click.option("--compare", type=FILE, nargs=2, metavar="A B", help="List what differs: .npz, runs, scores.json.")
def evaluate(
    given: Given | None,
    out: Path | None,
    tokenizer: bool,
    samples: Path | None,
    reference: Path | None,
    compare: tuple[Path, Path] | None,
    images: Path | None,
    make_reference: Path | None,
    **options: Any,
) -> None:
    """Score the samples of RECIPE's run; or --samples against a --reference; or --compare two sets of samples.

    RECIPE may be an exported model, or its folder, which is sampled and scored against a --reference.
    --make-reference writes a reference of RECIPE's training images, or of --images.
    """
    # One command with several forms, since all of them answer the same question; click has no such alternatives.
    exported = given is not None and given.exported
    first = "an exported model" if exported else "a RECIPE"
    forms = {first: given, "--samples": samples, "--images": images, "--compare": compare}
    chosen = [form for form, value in forms.items() if value is not None]
    if len(chosen) != 1:
        raise click.UsageError(
            "give a RECIPE, or --samples and --reference, or --images and --make-reference, or --compare A B"
        )
    _refuse_others(chosen[0])
    if given is not None and exported:
        if reference is None:
            raise click.UsageError("an exported model has no run to compare with: it needs --reference FILE")
        _evaluate_model(given, reference, **options)
    elif given is not None:
        _evaluate_run(given.recipe, out, tokenizer, make_reference)
    elif images is not None:
        if make_reference is None:
            raise click.UsageError("--images needs --make-reference OUT.npz")
        _reference_of_images(images, make_reference, **options)
    elif samples is not None:
        if reference is None:
            raise click.UsageError("--samples needs --reference FILE")
        _evaluate_files(samples, reference, **options)
    elif compare is not None:
        from rearkit.analysis.differences import describe, difference_lines

        for line in difference_lines(*map(describe, compare)):
            click.echo(printable(line))


def _evaluate_model(given: Given, reference: Path, **options: Any) -> None:
    """Sample an exported model into a folder that is removed again, and score that."""
    import tempfile

    from rearkit.evaluation.fidelity import read_reference
    from rearkit.stages.sample_folder import sample_model

    # What can be wrong with them must come up before hours of sampling, whose result would be lost.
    check_modules(given)
    read_reference(reference, "--reference")
    scorer = _scorer(**options)
    scorer.space.load(scorer.place().type == "cuda")
    with tempfile.TemporaryDirectory() as place:
        samples = Path(place) / "samples"
        sample_model(*open_model(given, None, None), samples)
        _evaluate_files(samples, reference, **options)


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


def _evaluate_run(recipe: Recipe, out: Path | None, tokenizer: bool, make_reference: Path | None) -> None:
    """Score a run, or its tokenizer alone, or make a reference of its training images."""
    from rearkit import pipeline
    from rearkit.evaluation.reconstruction import reconstruction_lines
    from rearkit.stages.evaluate import score_tokenizer, training_reference

    if make_reference is not None:
        found = training_reference(recipe, pipeline.run(recipe, out, only="data"), make_reference)
        click.echo(f"{make_reference}: {found} training images and their statistics; use it with --reference")
    elif tokenizer:
        for stage in ("data", "tokenizer"):
            folder = pipeline.run(recipe, out, only=stage)
        for line in reconstruction_lines(score_tokenizer(recipe, folder)):
            click.echo(printable(line))
    else:
        pipeline.run(recipe, out, only="evaluate")


def _reference_of_images(
    images: Path, target: Path, image_size: int | None, crop: str, feature_weights: Path | None, **options: Any
) -> None:
    from rearkit.data.decoding import Decoding
    from rearkit.evaluation.image_folders import FileImages
    from rearkit.evaluation.reference_files import make_reference

    source = FileImages.open(images, None if image_size is None else Decoding(image_size, crop))
    found = make_reference(target, source, _scorer(feature_weights, **options), "images")
    click.echo(f"{target}: {len(found)} images and their statistics; use it with --reference")


def _scorer(
    feature_weights: Path | None,
    cache: Path | None,
    batch: int,
    device: str,
    nearest_k: int = 3,
    shuffle: int | None = None,
    **unused: Any,
) -> Scorer:
    from rearkit.evaluation.feature_spaces import space_of_file
    from rearkit.evaluation.features import FeatureCache
    from rearkit.evaluation.scores import Scorer

    space = space_of_file(None if feature_weights is None else str(feature_weights))
    kept = FeatureCache.default() if cache is None else FeatureCache(cache)
    return Scorer(space, batch, nearest_k, device, kept, shuffle)


def _evaluate_files(samples: Path, reference: Path, to: Path | None, **options: Any) -> None:
    import attrs

    from rearkit.evaluation.score_files import evaluate_files
    from rearkit.evaluation.score_record import score_lines
    from rearkit.sampling.manifest import manifest_lines
    from rearkit.system.files import write_json

    found = evaluate_files(samples, reference, _scorer(**options))
    told = ["no manifest in it"] if found.manifest is None else manifest_lines(found.manifest)
    for line in [f"{samples}: {line}" for line in told] + score_lines(found):
        click.echo(printable(line))
    if to is not None:
        write_json(to, attrs.asdict(found))
