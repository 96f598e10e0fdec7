"""Whether samples are copies: the nearest real image to each, in feature space, and how near held-out images come."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch

from rearkit.data.pixels import save_grid
from rearkit.evaluation.features import Features
from rearkit.evaluation.fidelity import nearest
from rearkit.evaluation.image_streams import Images, take

SHOWN = 8


@attrs.frozen
class Nearest:
    """How near samples come to real images.

    Attributes:
        among: what the real images are.
        distance: median over the samples of the distance to the nearest real image, in feature space.
        held_out_distance: the same of held-out images, which are no copies; None where there are none.
        identical: samples that equal a real image pixel by pixel.
        shown: how many pairs there are in each row of the picture.
    """

    among: str
    distance: float
    held_out_distance: float | None
    identical: int
    shown: int


def find_copies(
    samples: Features,
    real: Features,
    held_out: Features | None,
    among: str,
    images: tuple[Images, Images],
    picture: Path | None,
) -> Nearest:
    """Find the nearest real image of each sample, and show some pairs.

    Args:
        samples: their features.
        real: those of the images that they might be copies of.
        held_out: those of real images that are not among these.
        among: what the real images are.
        images: the samples' and the real images' pixels.
        picture: where pairs are saved, samples above: a row of the first, a row of the nearest of all; None: nowhere.
    """
    distances, indices = nearest(samples.features, real.features)
    shown = min(SHOWN, len(samples))
    rows = []
    for chosen in () if picture is None else (range(shown), distances.argsort(stable=True)[:shown].tolist()):
        rows += [take(images[0], chosen), take(images[1], indices[list(chosen)].tolist())]
    if picture is not None:
        from torchvision.transforms.functional import resize  # here, since it takes seconds to import

        # A reference's images may be of another size, which is warned of elsewhere.
        save_grid(picture, torch.cat([resize(row, [samples.side], antialias=True) for row in rows]), shown)
    known = set(map(tuple, real.hashes.tolist()))
    return Nearest(
        among=among,
        distance=distances.median().item(),
        held_out_distance=None if held_out is None else nearest(held_out.features, real.features)[0].median().item(),
        identical=sum(tuple(row) in known for row in samples.hashes.tolist()),
        shown=shown,
    )
