"""``reconstruct``: what a tokenizer makes of photos of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rearkit.cli.examples import Command
from rearkit.cli.given import Given, check_modules, refuse_out, refuse_size
from rearkit.cli.options import OUT, Output, recipe_options, size_option

if TYPE_CHECKING:
    from rearkit.contracts import ImageSize

FILE = click.Path(path_type=Path)
GRID = Path("reconstructions.png")


@click.command(cls=Command, example="reconstruct mnist seven.png\nreconstruct mnist a.jpg b.jpg --to-folder rebuilt")
@recipe_options
@click.argument("photos", metavar="PHOTO...", nargs=-1, required=True, type=FILE)
@OUT
@size_option("other than the recipe's, of an exported model or published weights")
@click.option("--grid", type=Output(), help=f"PNG to write, a row per photo; without --to-folder: {GRID}.")
@click.option("--to-folder", type=Output(folder=True), help="New folder for each picture as a PNG, and the scores.")
def reconstruct(
    given: Given,
    photos: Sequence[Path],
    out: Path | None,
    size: ImageSize | None,
    grid: Path | None,
    to_folder: Path | None,
) -> None:
    """Encode and decode photos with RECIPE's tokenizer: tokens, reconstruction, difference, PSNR and SSIM.

    RECIPE may be an exported model (model.safetensors, or its folder), which needs no run.
    """
    from rearkit.pipeline import run_with_tokenizer
    from rearkit.stages.model_files import tokenizer_file
    from rearkit.stages.reconstruct import reconstruct_photos
    from rearkit.stages.resizing import resized

    if grid is None and to_folder is None:
        grid = GRID
    recipe = given.recipe if size is None else resized(given.recipe, size)
    if given.exported:
        refuse_out(out)
        check_modules(given)
        saved = tokenizer_file(given.source, recipe)
    elif size is not None:
        # A run's tokenizer is of its recipe's size; one with weights of its own needs no run.
        if recipe.tokenizer.weights is None or recipe.tokenizer.fit is not None:
            refuse_size(size)
        saved = None
    else:
        run = run_with_tokenizer(recipe, out)
        saved = None if run is None else run.tokenizer
    reconstruct_photos(recipe, saved, photos, grid, to_folder)
