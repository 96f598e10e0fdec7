"""What the predicted classes of a set of samples say: the Inception Score, and whether the set is in class order.

The Inception Score is a mean over splits of 5,000 in the order of the samples (ADM's evaluator). In a set in class
order each split has a few classes only, so the score collapses, while FID, which knows no order, stays as it is.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

SPLIT = 5_000  # images in a split of the Inception Score (ADM's evaluator)
PERMUTATION_SEED = 0
# A set is in class order if the class changes less than half as often as in a random order, and chance, in standard
# deviations, does not explain it.
SHARE, DEVIATIONS = 0.5, 4.0


class Splits:
    """The Inception Score of each split of 5,000 images in order; a smaller last split counts, as in ADM's code.

    Beside it, the score on a seeded permutation, of which only sums over each split are kept, and the classes.

    Args:
        count: number of images that will come.
        seed: of the permutation.
    """

    def __init__(self, count: int, seed: int = PERMUTATION_SEED) -> None:
        self._held: list[Tensor] = []
        self._scores: list[float] = []
        self._classes: list[Tensor] = []
        generator = torch.Generator().manual_seed(seed)
        # The split of each image; images that were not announced belong to the last.
        self._places = torch.randperm(count, generator=generator) // SPLIT
        self._last = max(count - 1, 0) // SPLIT
        self._sums: dict[int, tuple[int, Tensor, float]] = {}
        self._done = 0

    def add(self, logits_BC: Tensor) -> None:
        """Add logits (B, classes)."""
        logits_BC = logits_BC.cpu()
        self._classes.append(logits_BC.argmax(1).to(torch.int32))
        self._add_permuted(logits_BC)
        # In single rows, since batches need not end where splits do.
        self._held += logits_BC.split(1)
        while len(self._held) >= SPLIT:
            self._close(SPLIT)

    def scores(self) -> tuple[float, ...]:
        """Return the scores of all splits; call it once, after the last logits."""
        if self._held:
            self._close(len(self._held))
        return tuple(self._scores)

    def permuted_score(self) -> float:
        """Return the mean score of the splits of a seeded permutation."""
        found = []
        for count, total_C, negative_entropy in self._sums.values():
            mean_C = total_C / count
            found.append(np.exp(negative_entropy / count - float(torch.xlogy(mean_C, mean_C).sum())))
        return float(np.mean(found))

    def classes(self) -> Tensor:
        """Return the likeliest class of each image, (n,) int32."""
        return torch.cat(self._classes)

    def _add_permuted(self, logits_BC: Tensor) -> None:
        p_BC = logits_BC.double().softmax(1)
        entropy_B = torch.xlogy(p_BC, p_BC).sum(1)
        places = self._places[self._done : self._done + len(p_BC)]
        places = torch.cat([places, torch.full((len(p_BC) - len(places),), self._last)])
        self._done += len(p_BC)
        for place in places.unique().tolist():
            mine = places == place
            count, total, entropy = self._sums.get(place, (0, torch.zeros(p_BC.shape[1], dtype=torch.float64), 0.0))
            self._sums[place] = (
                count + int(mine.sum()),
                total + p_BC[mine].sum(0),
                entropy + float(entropy_B[mine].sum()),
            )

    def _close(self, count: int) -> None:
        logits = torch.cat(self._held[:count])
        self._held = self._held[count:]
        # Not shuffled, as in ADM's evaluator: splits are of the samples in their order.
        self._scores.append(isc_features_to_metric(logits, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN])


def in_class_order(classes: np.ndarray) -> bool:
    """Return whether classes (n,) come in runs, where a random order would mix them."""
    if len(classes) < 2:
        return False
    _, counts = np.unique(classes, return_counts=True)
    pairs = len(classes) - 1
    # Share of neighbours that differ, in a random order.
    share = 1 - float(((counts / len(classes)) ** 2).sum())
    changes = int((classes[1:] != classes[:-1]).sum())
    deviation = (pairs * share * (1 - share)) ** 0.5
    return changes < SHARE * pairs * share and pairs * share - changes > DEVIATIONS * deviation
