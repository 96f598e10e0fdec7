"""``sample --image``: a photo of the user's, of which a part is kept and the rest drawn, as a picture."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from torch import Tensor

from rearkit.data.photos import keep_part, read_mask, read_photo
from rearkit.data.pixels import save_grid
from rearkit.errors import RearkitError
from rearkit.model import Model
from rearkit.sampling.editing import edit, known_tokens
from rearkit.sampling.picture import find_class
from rearkit.sampling.sampler import Sampler
from rearkit.stages.data import decoding_of
from rearkit.system.console import say

GREY = 128


@attrs.frozen
class Edit:
    """What is to be done to a photo.

    Attributes:
        image: file of the photo.
        mask: file that is white where the photo is to be drawn anew, or None.
        keep: the part that is kept instead, as in `rearkit.data.photos.keep_part`, or None.
        fade: pixels over which kept ones fade into drawn ones; None for a quarter of a patch.
    """

    image: Path
    mask: Path | None = None
    keep: str | None = None
    fade: int | None = None

    def read(self, model: Model) -> tuple[Tensor, Tensor]:
        """Return the photo (3, H, W) uint8 and what is kept of it (H, W) bool.

        Raises:
            RearkitError: a file or the part cannot be used.
        """
        how = decoding_of(model.recipe, model.tokenizer.image_size)
        photo = read_photo(self.image, how)
        if self.mask is not None:
            return photo, read_mask(self.mask, self.image, how)
        return photo, keep_part(self.keep or "", how.size)


def edit_picture(
    model: Model, wanted: Edit, classes: str | None, path: Path, alternatives: int, first: int = 0
) -> None:
    """Draw the rest of a photo, and save a row for each class: the photo, what is kept, and the alternatives.

    Alternative k of a class does not depend on which other classes are asked for.

    Args:
        model: a trained model.
        wanted: the photo and what is kept of it.
        classes: numbers or names of classes, separated by commas; None for a model of one class.
        path: file for the picture.
        alternatives: images of each class.
        first: number of the first image of each class, which fixes its randomness.

    Raises:
        RearkitError: there is no such class, or the photo cannot be edited so.
    """
    names = model.classes.titles
    if classes is None and len(names) > 1:
        raise RearkitError(f"--image: name what it shows, or is to show: --class, one of {len(names)} classes")
    labels = [0] if classes is None else [find_class(text, names) for text in classes.split(",")]
    photo, kept_HW = wanted.read(model)
    known_N = known_tokens(model, kept_HW)
    numbers = [first + k for _ in labels for k in range(alternatives)]
    each = [label for label in labels for _ in range(alternatives)]
    images = torch.from_numpy(edit(Sampler(model), photo, kept_HW, each, numbers, wanted.fade)).permute(0, 3, 1, 2)
    shown = torch.stack([photo, torch.where(kept_HW, photo, GREY)])
    rows = [torch.cat([shown, row]) for row in images.split(alternatives)]
    save_grid(path, torch.cat(rows), 2 + alternatives)
    kept = int(known_N.sum())
    say(f"{wanted.image}: {kept} of {len(known_N)} tokens are kept, {len(known_N) - kept} drawn after them, in rows")
    say(
        f"{path}: the photo, what is kept, {alternatives} alternatives; a row for {', '.join(names[i] for i in labels)}"
    )
