"""Warnings about suspicious sets of samples, reported beside their scores.

Scores that can't be reproduced often come from a set with a mistake: duplicates, another size, other classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import torch

from rearkit.evaluation.class_predictions import PERMUTATION_SEED, in_class_order
from rearkit.evaluation.features import Features
from rearkit.evaluation.fidelity import FULL_SET, Fidelity
from rearkit.sampling.manifest import Manifest

# Looked for in names of files and recipes, to warn if the two sides name different ones.
DATASETS = ("imagenet", "lsun", "ffhq", "celeba", "cifar", "mnist", "afhq", "coco")
ADM_NAME = re.compile(r"VIRTUAL_[a-z_]+(\d+)")  # ADM's published references have the side in their names
# Any large set of photographs or drawings spans more grey levels than this.
NARROW = 128


@attrs.frozen(eq=False)
class Checked:
    """All that is known about an evaluation.

    Attributes:
        samples: features of the samples.
        labels: classes of the samples (n,), or None.
        manifest: of the samples, or None.
        reference: features of the reference's images, or None.
        reference_path: file of the reference; None if it is the run's own training images.
        reference_manifest: of the reference, or None.
        fidelity: the scores.
        published: True if they are in the feature space of published scores.
        shuffled: True if the Inception Score is of a permutation of the samples.
    """

    samples: Features
    labels: np.ndarray | None
    manifest: Manifest | None
    reference: Features | None
    reference_path: Path | None
    reference_manifest: Manifest | None
    fidelity: Fidelity
    published: bool
    shuffled: bool = False


def warnings(checked: Checked) -> list[str]:
    """Return what is suspicious, one sentence each."""
    return [*_set_warnings(checked), *_reference_warnings(checked)]


def _set_warnings(checked: Checked) -> Iterator[str]:
    samples = checked.samples
    if checked.published and len(samples) != FULL_SET:
        yield f"{len(samples):,} samples, where published scores are of {FULL_SET:,}: FID depends on the number"
    _, counts = torch.unique(samples.hashes, dim=0, return_counts=True)
    if len(counts) < len(samples):
        yield (
            f"{len(samples) - len(counts):,} of {len(samples):,} images are exact copies of others in the set "
            f"(one occurs {int(counts.max())} times): was a seed used twice?"
        )
    # Floats in 0 to 1 that were cast to bytes have only the values 0 and 1.
    if samples.highest <= 1:
        yield f"pixel values lie in {samples.lowest} to {samples.highest}: saved without scaling to 0 to 255?"
    elif samples.highest - samples.lowest < NARROW:
        yield f"pixel values span only {samples.lowest} to {samples.highest} of 0 to 255"
    if not samples.gaussian.varies():
        yield "all samples have the same features, as if they were one image"
    yield from _class_warnings(checked)
    by_label = checked.labels is not None and in_class_order(checked.labels)
    if not checked.shuffled and (by_label or in_class_order(samples.classes.numpy())):
        yield (
            f"samples are in class order (by {'arr_1' if by_label else 'their predicted classes'}): the Inception "
            "Score is a mean over 5,000 at a time in their order, so it collapses, while FID does not; on a seeded "
            f"permutation of them it is {samples.permuted_score:.2f} (evaluate --shuffle {PERMUTATION_SEED})"
        )


def _class_warnings(checked: Checked) -> Iterator[str]:
    manifest = checked.manifest or {}
    listed = manifest.get("counts_per_class")
    if checked.labels is not None and len(checked.labels):
        # bincount refuses negative labels.
        counts = np.bincount(checked.labels.clip(min=0), minlength=len(listed or ())).tolist()
    else:
        counts = listed or []
    # A number of samples that is no multiple of the number of classes gives some classes one more.
    if counts and max(counts) - min(counts) > (sum(counts) % len(counts) > 0):
        yield (
            f"classes are unbalanced: {min(counts):,} to {max(counts):,} samples a class over {len(counts):,} classes"
        )
    if listed is not None and listed != counts:
        yield "the classes in arr_1 are not those that the manifest counts: the set was changed since it was made"
    elif isinstance(told := manifest.get("num_images"), int) and told != len(checked.samples):
        yield (
            f"the manifest is of {told:,} images, the set has {len(checked.samples):,}: "
            "it was changed since it was made"
        )


def _reference_warnings(checked: Checked) -> Iterator[str]:
    # Inception resizes its input, and features of images of different sizes differ by that alone.
    if checked.reference is not None and checked.reference.side != checked.samples.side:
        yield (
            f"samples are of {checked.samples.side} pixels a side, the reference's images of {checked.reference.side}"
        )
    # A file of statistics alone does not hold the size of its images, but the name may.
    if checked.reference is None and checked.reference_path is not None:
        published = ADM_NAME.match(checked.reference_path.name)
        if published is not None and int(published[1]) != checked.samples.side:
            yield (
                f"samples are of {checked.samples.side} pixels a side, "
                f"the reference is called {checked.reference_path.name}"
            )
    ours = _source(checked.manifest)
    theirs = _source(checked.reference_manifest)
    # Manifests name datasets exactly; without the reference's, names of files and recipes have to do.
    if ours and theirs:
        if ours != theirs:
            yield (
                f"another dataset? The samples' model was trained on {_told(ours)}, the reference is of {_told(theirs)}"
            )
    elif ours and checked.reference_path is not None:
        named = _datasets(checked.reference_path.name)
        known = _datasets(f"{ours} {_name(checked.manifest)}")
        if named and known and not named & known:
            yield (
                f"another dataset? The samples' model was trained on {_told(ours)}, "
                f"the reference is called {checked.reference_path.name}"
            )
    precision = checked.fidelity.precision
    recall = checked.fidelity.recall
    # Exactly 0 is rare even for poor samples, so it suggests a mistake.
    if precision == 0 and recall == 0:
        yield "samples and reference have no part of their manifolds in common: another dataset, or a fault?"
    elif precision == 0:
        yield "no sample lies within the reference's manifold (precision 0): noise, or another dataset?"
    elif recall == 0:
        yield "no image of the reference lies within the samples' manifold (recall 0): are all samples alike?"


def _source(manifest: Manifest | None) -> dict[str, object]:
    """Return the settings of a manifest's data source; empty if it has none."""
    recipe = (manifest or {}).get("recipe", {})
    source: dict[str, object] = recipe.get("data", {}).get("source", {})
    return source


def _name(manifest: Manifest | None) -> str:
    return str((manifest or {}).get("recipe", {}).get("name", ""))


def _datasets(text: str) -> set[str]:
    """Return the well-known datasets that a text mentions."""
    return {name for name in DATASETS if name in text.lower()}


def _told(source: dict[str, object]) -> str:
    """Return a data source in words."""
    return " ".join(str(source[key]) for key in ("name", "train") if key in source)
