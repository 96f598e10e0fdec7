"""``reconstruct``: photos of the user's own, through the tokenizer of a run or of a model and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rearkit.data.image_bytes import save_png
from rearkit.data.pixels import save_grid
from rearkit.errors import RearkitError
from rearkit.evaluation.rebuilt import Rebuilt, reconstruct
from rearkit.model import build_tokenizer
from rearkit.recipe.tables import Recipe
from rearkit.sampling.png_folders import first_in
from rearkit.stages.data import decoding_of
from rearkit.stages.tokenizer import load_tokenizer
from rearkit.system.console import say
from rearkit.system.devices import resolve_device
from rearkit.system.files import storage_errors, write_json

SCORES = "scores.json"


def reconstruct_photos(
    recipe: Recipe, saved: Path | None, photos: Sequence[Path], grid: Path | None, to_folder: Path | None
) -> None:
    """Encode and decode photos; print how near they come, and write a picture, or files, or both.

    Args:
        recipe: of the tokenizer.
        saved: the tokenizer as a run or an export has saved it; None for the weights that the recipe names.
        photos: image files.
        grid: PNG with a row for each photo: original, tokens, reconstruction, difference.
        to_folder: folder for each of these as a PNG, and the scores.

    Raises:
        RearkitError: the folder holds something else, or a file cannot be used.
    """
    if to_folder is not None and (held := first_in(to_folder)) is not None:
        raise RearkitError(f"{to_folder}: not empty (it holds {held}); choose another with --to-folder")
    tokenizer = build_tokenizer(recipe) if saved is None else load_tokenizer(recipe, saved)
    tokenizer.to(resolve_device(recipe.device)).eval()
    found = reconstruct(tokenizer, photos, decoding_of(recipe, tokenizer.image_size))
    for photo, one in zip(photos, found, strict=True):
        say(f"{photo}: PSNR {one.psnr:.2f} dB, SSIM {one.ssim:.3f}, {len(one.tokens.unique())} different codes")
    if grid is not None:
        rows = [torch.stack(list(one.pictures.values())) for one in found]
        save_grid(grid, torch.cat(rows), len(rows[0]))
        say(f"{grid}: {', '.join(found[0].pictures)}; a row for each of {len(found)} photos")
    if to_folder is not None:
        _write(to_folder, photos, found)
        say(f"{to_folder}: {', '.join(found[0].pictures)} of each of {len(found)} photos, {SCORES}")


def _write(folder: Path, photos: Sequence[Path], found: Sequence[Rebuilt]) -> None:
    # Numbered, since photos of several folders may have one name.
    names = [f"{number:03d}-{photo.stem}" for number, photo in enumerate(photos)]
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, one in zip(names, found, strict=True):
            for what, picture in one.pictures.items():
                save_png(folder / f"{name}-{what}.png", picture.permute(1, 2, 0).numpy())
        scores = {
            name: {"psnr": one.psnr, "ssim": one.ssim, "tokens": one.tokens.tolist()}
            for name, one in zip(names, found, strict=True)
        }
        write_json(folder / SCORES, scores)
