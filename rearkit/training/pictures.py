"""A few samples at each checkpoint, by the same seeds and classes, so that one sees a model learn."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch
from torch import Tensor

from rearkit.data.pixels import save_grid
from rearkit.errors import first_line
from rearkit.model import Model, build_backbone
from rearkit.recipe.settings import with_changes
from rearkit.sampling.sampler import Sampler
from rearkit.system.console import say

FOLDER = "pictures"


class Pictures:
    """Draws samples from a copy of the backbone, so that training does not notice.

    Args:
        model: that is trained.
        place: folder of the training; pictures go to ``pictures/STEP.png``, a row each.
        count: images in a picture, of classes spread over all.
    """

    def __init__(self, model: Model, place: Path, count: int) -> None:
        self.model = model
        self.place = place / FOLDER
        self.classes = [index * model.classes.number // count for index in range(count)]
        self.works = count > 0

    def draw(self, step: int, weights: dict[str, Tensor]) -> None:
        """Draw the picture of a step.

        Args:
            step: the step's number.
            weights: of the backbone, by their names, whole and in float32.
        """
        recipe = self.model.recipe
        path = self.place / f"{step:08d}.png"
        try:
            # Building draws random numbers, which are not to be missing elsewhere.
            with torch.random.fork_rng(devices=[]):
                backbone = build_backbone(recipe, self.model.space)
            backbone.load_state_dict(weights)
            # Compiling would take longer than so few images.
            table = with_changes(recipe.sample, batch=len(self.classes), compile=False)
            copied: Model = attrs.evolve(self.model, backbone=backbone)
            samples = next(Sampler(copied, table, recipe.sample_seed).stream(self.classes))
            path.parent.mkdir(exist_ok=True)
            save_grid(path, samples.images, len(self.classes))
        # A model that has just begun may have no numbers to draw by, a GPU be full, a plugin's decoding not be written.
        # None of it may stop a training.
        except Exception as error:
            self.works = False
            say(f"train: step {step}: no more pictures of samples: {first_line(error)}")


def read_pictures(place: Path) -> dict[int, Path]:
    """Return the pictures of a training by their steps, in order."""
    found = {int(path.stem): path for path in (place / FOLDER).glob("*.png") if path.stem.isdecimal()}
    return dict(sorted(found.items()))
