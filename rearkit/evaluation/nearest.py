"""Check whether samples are copies of real images, by distance in feature space compared with held-out images."""

from __future__ import annotations

from pathlib import Path

import attrs
import torch

from rearkit.data.pixels import save_grid
from rearkit.evaluation.features import Features
from rearkit.evaluation.fidelity import nearest
from rearkit.evaluation.image_streams import Images, take

SHOWN = 8  # pairs in each row of the picture, at most


@attrs.frozen
class Nearest:
    """How close samples are to real images.

    Attributes:
        among: what the real images are, in words.
        distance: median over the samples of the distance to the nearest real image, in feature space.
        held_out_distance: the same for held-out images, which are not copies; None if there are none.
        identical: number of samples that equal a real image in every pixel.
        shown: number of pairs in each row of the picture.
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
    """Find the nearest real image of each sample, and save a picture of some pairs.

    Args:
        samples: features of the samples.
        real: features of the images that samples might be copies of.
        held_out: features of real images that are not among these, or None.
        among: what the real images are, in words.
        images: pixels of the samples and of the real images.
        picture: file for the pairs, samples above: first the first samples, then the nearest of all; None for no file.
    """
    distances, indices = nearest(samples.features, real.features)
    shown = min(SHOWN, len(samples))
    rows = []
    # The first samples show what is typical; the nearest of all would be the copies, if there are any.
    for chosen in () if picture is None else (range(shown), distances.argsort(stable=True)[:shown].tolist()):
        rows += [take(images[0], chosen), take(images[1], indices[list(chosen)].tolist())]
    if picture is not None:
        # Imported here, since it takes seconds.
        from torchvision.transforms.functional import resize

        # A reference's images may have another size, which `sample_checks` warns of.
        save_grid(picture, torch.cat([resize(row, [samples.side], antialias=True) for row in rows]), shown)
    # Hashes of pixels, not distances: images of distance 0 in feature space may still differ.
    known = set(map(tuple, real.hashes.tolist()))
    return Nearest(
        among=among,
        distance=distances.median().item(),
        held_out_distance=None if held_out is None else nearest(held_out.features, real.features)[0].median().item(),
        identical=sum(tuple(row) in known for row in samples.hashes.tolist()),
        shown=shown,
    )
