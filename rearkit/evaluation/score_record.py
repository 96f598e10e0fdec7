"""What ``scores.json`` holds, and how it reads in words."""

from __future__ import annotations

import attrs

from rearkit.evaluation.fidelity import Fidelity
from rearkit.evaluation.nearest import Nearest
from rearkit.evaluation.reconstruction import Reconstruction, reconstruction_lines
from rearkit.sampling.manifest import Manifest


@attrs.frozen
class Scores:
    """What ``scores.json`` holds.

    Attributes:
        fid: of the samples against the reference, in ``feature_space``.
        inception_score: of the samples, from the same network's class predictions.
        precision: see `rearkit.evaluation.fidelity.Fidelity`; None if the reference has no images.
        recall: likewise.
        fid_floor: of held-out real images against the reference; None without held-out images.
        class_agreement: share of samples that the classifier assigns to the class asked for; None without classifier.
        feature_space: description of the feature space; only Inception scores compare with published ones.
        classifier_accuracy: of the classifier, on held-out images.
        num_samples: number of samples scored.
        num_held_out: number of held-out images for the floor; FID falls with more, so compare equal numbers.
        reference: what the samples were compared with.
        sfid: see `rearkit.evaluation.fidelity.Fidelity`; None if the reference has no spatial statistics.
        warnings: what is suspicious about the samples or the reference.
        manifest: what made the samples; None if they have no manifest.
        held_out: scores of held-out real images against the reference: what perfect samples would reach.
        nearest: distance of the samples to single real images; None if there are none to compare with.
        tokenizer: quality of the tokenizer's reconstructions; None without tokenizer.
        shuffle: seed of the permutation of the samples that their Inception Score is of; None for their own order.
    """

    fid: float
    inception_score: float
    precision: float | None
    recall: float | None
    fid_floor: float | None
    class_agreement: float | None
    feature_space: str
    classifier_accuracy: float | None
    num_samples: int
    num_held_out: int
    reference: str
    sfid: float | None = None
    warnings: list[str] = attrs.field(factory=list)
    manifest: Manifest | None = None
    held_out: Fidelity | None = None
    nearest: Nearest | None = None
    tokenizer: Reconstruction | None = None
    shuffle: int | None = None


def score_lines(scores: Scores) -> list[str]:
    """Format the scores as lines of text."""
    lines = [f"FID {scores.fid:.2f} ({scores.num_samples} samples against {scores.reference})"]
    if scores.sfid is not None:
        lines.append(f"sFID {scores.sfid:.2f}")
    order = "" if scores.shuffle is None else f" (on a permutation, seed {scores.shuffle})"
    lines.append(f"Inception Score {scores.inception_score:.2f}{order}")
    if scores.precision is not None and scores.recall is not None:
        lines[-1] += f", precision {scores.precision:.3f}, recall {scores.recall:.3f}"
    if scores.fid_floor is not None:
        lines.append(f"floor: FID {scores.fid_floor:.2f} ({scores.num_held_out} held-out real images, likewise)")
        if (real := scores.held_out) is not None and real.precision is not None and real.recall is not None:
            lines[-1] += f", precision {real.precision:.3f}, recall {real.recall:.3f}"
    if scores.class_agreement is not None and scores.classifier_accuracy is not None:
        lines.append(
            f"{scores.class_agreement:.1%} of the samples are classified as the class asked for "
            f"(the classifier is right on {scores.classifier_accuracy:.1%} of held-out images)"
        )
    if scores.nearest is not None:
        held_out = scores.nearest.held_out_distance
        beside = "" if held_out is None else f" (that of held-out images: {held_out:.3g})"
        lines.append(
            f"median distance to the nearest of {scores.nearest.among}: {scores.nearest.distance:.3g}{beside}; "
            f"{scores.nearest.identical} samples equal one of them"
        )
    if scores.tokenizer is not None:
        lines += [f"tokenizer: {line}" for line in reconstruction_lines(scores.tokenizer)]
    lines.append(f"feature space: {scores.feature_space}")
    return lines + [f"warning: {warning}" for warning in scores.warnings]
