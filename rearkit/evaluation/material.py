"""What an evaluation is of."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np

from rearkit.contracts import Tokenizer
from rearkit.evaluation.fidelity import ReferenceFile
from rearkit.evaluation.image_streams import Images
from rearkit.sampling.manifest import Manifest


@attrs.frozen(eq=False)
class Material:
    """The images and files that an evaluation uses.

    Attributes:
        samples: the images to score.
        labels: (n,) classes of the samples, or None.
        manifest: the manifest of the samples, or None.
        reference: a file to compare with; None for the training images.
        train: training images.
        held_out: real images, whose own scores are the floor for those of samples; or None.
        tokenizer: a frozen tokenizer to score too, on the held-out images or else on the training images; or None.
        copies: whether to look for the real image nearest to each sample.
        picture: file for a picture of samples and their nearest real images, or None.
    """

    samples: Images
    labels: np.ndarray | None = None
    manifest: Manifest | None = None
    reference: ReferenceFile | None = None
    train: Images | None = None
    held_out: Images | None = None
    tokenizer: Tokenizer | None = None
    copies: bool = True
    picture: Path | None = None
