"""The model that a server draws from, and what it says of it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from rearkit.contracts import ImageSize, grid_of, height_width
from rearkit.evaluation.rebuilt import code_colours
from rearkit.model import Model
from rearkit.recipe.cleaning import without_places
from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import DRAWN_BY
from rearkit.sampling.manifest import Manifest
from rearkit.sampling.sampler import Sampler
from rearkit.stages.sample import sample_manifest, size_record


@attrs.frozen(eq=False)
class Served:
    """A trained model in a server.

    Attributes:
        model: the model.
        sampler: the one that draws all; used by one thread at a time.
        manifest: of no images: weights, versions, recipe.
        batch: images drawn at once.
        size: of the images, if it is another than the model was trained at.
    """

    model: Model
    sampler: Sampler
    manifest: Manifest
    batch: int
    size: ImageSize | None = None

    @classmethod
    def of(
        cls, model: Model, files: Mapping[str, Path], batch: int | None = None, size: ImageSize | None = None
    ) -> Served:
        """Prepare a model.

        Args:
            model: the model.
            files: of the weights of ``backbone`` and ``tokenizer``.
            batch: images drawn at once; None for 16 on a CPU, and for the recipe's on a GPU, where it decides rounding.
            size: of the images, if it is another than the model was trained at.
        """
        sampler = Sampler(model)
        manifest = sample_manifest(model.recipe, files, [], model.num_classes) | size_record(model)
        # A server tells nothing of its machine.
        manifest["recipe"] = without_places(recipe_to_dict(model.recipe))
        if sampler.device.type == "cuda":
            batch = sampler.table.batch
        return cls(model, sampler, manifest, batch or 16, size)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the raster; None if the tokens have no places in the image."""
        return grid_of(self.model.tokenizer)

    def about(self) -> dict[str, Any]:
        """Say what the model is, for whoever draws from it."""
        space, table = self.model.space, self.sampler.table
        height, width = height_width(self.model.tokenizer.image_size)
        colours = code_colours(self.model.tokenizer.codebook().detach().float().cpu())
        return {
            "name": self.model.recipe.name,
            "classes": list(self.model.classes.titles),
            "height": height,
            "width": width,
            "tokens": space.num_tokens,
            "grid": self.grid,
            "codes": space.codebook_size,
            "device": self.sampler.device.type,
            "defaults": {"seed": self.model.recipe.sample_seed, **{name: getattr(table, name) for name in DRAWN_BY}},
            # Three bytes a code: its place along the codebook's main directions, so that like codes look alike.
            "colours": base64.b64encode(colours.contiguous().numpy().tobytes()).decode(),
        }
