"""``sample``: a run's whole set, a few images of some classes, or a photo of which a part is drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from rearkit.cli.examples import Command
from rearkit.cli.given import Given, open_model, refuse_size
from rearkit.cli.options import NUM_GPUS, OUT, FiniteRange, Output, recipe_options, size_option
from rearkit.cli.stages import run_ranks

if TYPE_CHECKING:
    from rearkit.contracts import ImageSize
    from rearkit.stages.edit_picture import Edit

FILE = click.Path(path_type=Path)
EXAMPLE = """sample mnist
sample mnist --to-folder samples
sample mnist --classes 3,7 --grid digits.png
sample mnist --image seven.png --keep top --class 7,1 --grid edits.png"""


@click.command(cls=Command, example=EXAMPLE)
@recipe_options
@OUT
@NUM_GPUS
@click.option("--to-folder", type=Output(folder=True), help="Write the set as PNGs, too, into this folder.")
@click.option(
    "--classes",
    "--class",
    "classes",
    help="Sample only these classes, numbers or names with commas between, to --grid.",
)
@click.option("--grid", type=Output(), help="PNG for the images of --classes, a row per class.")
@click.option(
    "--per-class", "-k", type=click.IntRange(1), default=8, show_default=True, help="Images of each of --classes."
)
@click.option(
    "--first",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Number of the first image of each of --classes.",
)
@click.option("--temperature", type=FiniteRange(0), help="Temperature of --classes; left out: the recipe's.")
@size_option("of an exported model at another size than trained")
@click.option("--image", type=FILE, help="Photo of which a part is kept and the rest drawn, into --grid.")
@click.option("--mask", type=FILE, help="Image as large as --image, white where it is to be drawn anew.")
@click.option(
    "--keep", metavar="PART", help="Part of --image that is kept: left, right, top, bottom or LEFT,TOP,RIGHT,BOTTOM."
)
@click.option(
    "--fade", type=click.IntRange(0), help="Pixels over which kept ones fade; left out: a quarter of a patch."
)
@click.pass_obj
def sample(
    arguments: list[str],
    given: Given,
    out: Path | None,
    num_gpus: int | None,
    to_folder: Path | None,
    classes: str | None,
    grid: Path | None,
    per_class: int,
    first: int,
    temperature: float | None,
    size: ImageSize | None,
    **photo: Any,
) -> None:
    """Sample images from the trained backbone: RECIPE's whole set, a few images of some classes, or parts of a photo.

    With --to-folder and --grid, RECIPE may be an exported model (model.safetensors, or its folder), which
    needs no run.
    """
    wanted = _edit(grid, **photo)
    if size is not None and grid is None and to_folder is None:
        raise click.UsageError("--size is for a picture, --grid, or a folder of images, --to-folder")
    if first and grid is None:
        raise click.UsageError("--first is for --classes; the set's images have the numbers from 0")
    if to_folder is not None:
        if classes is not None or grid is not None:
            raise click.UsageError("--to-folder is for the recipe's set; --classes are a picture, --grid")
        _refuse_temperature(temperature)
        _sample_to_folder(arguments, given, out, num_gpus, to_folder, size)
        return
    if wanted is None and (classes is None) != (grid is None):
        raise click.UsageError("--classes and --grid go together: the classes, and the picture to write")
    if grid is None:
        _refuse_temperature(temperature)
        run_ranks(arguments, given, out, num_gpus, only="sample")
        return
    # --classes are a few images for a picture, which one process samples.
    if num_gpus not in (None, 1):
        raise click.UsageError("--num-gpus is for the recipe's set; --classes are sampled by one process")
    model, _ = open_model(_at_temperature(given, temperature), out, size)
    if wanted is None:
        from rearkit.sampling.picture import sample_picture

        sample_picture(model, str(classes), grid, per_class, first)
        return
    from rearkit.stages.edit_picture import edit_picture

    edit_picture(model, wanted, classes, grid, per_class, first)


def _refuse_temperature(temperature: float | None) -> None:
    if temperature is not None:
        raise click.UsageError("--temperature is for --classes; of the set it is --set sample.temperature=VALUE")


def _at_temperature(given: Given, temperature: float | None) -> Given:
    """Return a recipe whose samples are drawn at a temperature, if there is one."""
    from rearkit.recipe.settings import with_changes

    if temperature is None:
        return given
    table = with_changes(given.recipe.sample, temperature=temperature)
    return attrs.evolve(given, recipe=with_changes(given.recipe, sample=table))


def _edit(grid: Path | None, image: Path | None, mask: Path | None, keep: str | None, fade: int | None) -> Edit | None:
    """Return what is to be done to a photo, or None without one.

    Raises:
        click.UsageError: options are missing, or go with others only.
    """
    if image is None:
        if mask is not None or keep is not None or fade is not None:
            raise click.UsageError("--mask, --keep and --fade say what to do with --image FILE; give one")
        return None
    if (mask is None) == (keep is None):
        raise click.UsageError("--image needs --mask FILE or --keep PART, one of them: which part is drawn anew")
    if grid is None:
        raise click.UsageError("--image needs --grid FILE, the picture to write")
    from rearkit.stages.edit_picture import Edit

    return Edit(image, mask, keep, fade)


def _sample_to_folder(
    arguments: list[str], given: Given, out: Path | None, num_gpus: int | None, target: Path, size: ImageSize | None
) -> None:
    from rearkit.sampling.png_folders import check_target
    from rearkit.stages.sample_folder import export_samples, sample_model
    from rearkit.system import distributed

    check_target(target)
    if given.exported:
        if num_gpus not in (None, 1) or out is not None:
            raise click.UsageError("--num-gpus, --out: not with an exported model, which is sampled by one process")
        sample_model(*open_model(given, out, size), target)
        return
    refuse_size(size)
    # With several GPUs each rank comes here again, and the first one writes.
    folder = run_ranks(arguments, given, out, num_gpus, only="sample")
    distributed.from_main(lambda: export_samples(folder, target))
