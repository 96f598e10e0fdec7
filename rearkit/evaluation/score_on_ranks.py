"""Scores on several ranks: each looks at its share of every set of images, and the first one puts it together.

On one rank, all is as `rearkit.evaluation.scores` does it alone, and the scores are the same.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from rearkit.data.image_sets import ImageSet
from rearkit.evaluation.batch_rows import rows_of
from rearkit.evaluation.class_predictions import PERMUTATION_SEED
from rearkit.evaluation.classifier import FILE
from rearkit.evaluation.feature_spaces import classifier_space
from rearkit.evaluation.image_streams import Images
from rearkit.evaluation.material import Material
from rearkit.evaluation.score_record import Scores
from rearkit.evaluation.scores import DECODED, Scorer, judge, score_by_classifier
from rearkit.evaluation.shares import Share, ShareFiles
from rearkit.recipe.tables import Recipe
from rearkit.system import distributed


def score_on_ranks(scorer: Scorer, material: Material, folder: Path) -> Scores:
    """Score as `Scorer.score` does. All ranks must call this, with the same material; all get the scores.

    Args:
        scorer: scores.
        material: what.
        folder: for what ranks find, until it is put together; all ranks see it.
    """
    shared = _share_out(scorer, material, folder)
    scores = distributed.from_main(lambda: shared.score(material))
    distributed.from_main(ShareFiles(folder).clear)
    return scores


def score_by_classifier_on_ranks(
    recipe: Recipe, material: Material, train: ImageSet, held_out: ImageSet, classifier: Path, folder: Path
) -> Scores:
    """Score as `score_by_classifier` does, with the classifier of a folder, which the first rank trains if need be.

    All ranks must call this, with the same material; all get the scores.
    """
    files: ShareFiles | None = None
    if distributed.several():
        told = distributed.from_main(lambda: judge(recipe, train, held_out, classifier)[1].description)
        # Made on each rank, since it registers the classifier with torch-fidelity.
        scorer = Scorer.of(recipe, classifier_space(classifier / FILE, told))
        files = _share_out(scorer, material, folder).files
    scores = distributed.from_main(lambda: score_by_classifier(recipe, material, train, held_out, classifier, files))
    distributed.from_main(ShareFiles(folder).clear)
    return scores


def _share_out(scorer: Scorer, material: Material, folder: Path) -> Scorer:
    """Look at all images on all ranks; return a scorer that puts together what they found."""
    if not distributed.several():
        return scorer
    files = ShareFiles(folder)
    # Of a run that was cut off, perhaps on another number of ranks.
    distributed.from_main(files.clear)
    share = Share(distributed.rank(), distributed.world_size())

    def look(images: Images, label: str) -> None:
        files.write(label, rows_of(images, scorer.space, scorer.batch, scorer.place(), label, share), share)

    def decode(images: Images) -> None:
        assert material.tokenizer is not None
        files.write(DECODED, scorer.decoded(material.tokenizer, images, share), share)

    for label, images in scorer.sets(material).items():
        if not distributed.from_main(lambda images=images: _is_kept(scorer, images)):  # type: ignore[misc]
            distributed.together(lambda images=images, label=label: look(images, label))  # type: ignore[misc]
    to_decode = scorer.to_decode(material)
    if to_decode is not None:
        distributed.together(lambda: decode(to_decode))
    return attrs.evolve(scorer, files=files)


def _is_kept(scorer: Scorer, images: Images) -> bool:
    """Return whether the features of images are in the user's cache."""
    cache = scorer.kept_in()
    return cache is not None and cache.path(images, scorer.space, PERMUTATION_SEED).is_file()
