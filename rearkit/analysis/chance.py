"""Whether an order of variants could be chance: a paired bootstrap of FID over seeds and samples.

Shapes: V variants, S seeds, D draws of a run's samples, n samples, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
from scipy.stats import bootstrap

from rearkit.errors import RearkitError
from rearkit.evaluation.gaussians import Gaussian
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import run_recipe
from rearkit.system.checksums import read_sealed, write_sealed
from rearkit.system.console import progress_bar, say

# Resamples of the seeds, each with one draw of a run's samples: shares of them are shown to a tenth of a percent.
RESAMPLES = 10_000
LEVEL = 0.95  # of the confidence intervals


@attrs.frozen
class Against:
    """How a variant differs from the first one.

    Attributes:
        name: of the variant.
        difference: of the mean FIDs; below 0 if the variant is better.
        low: lower end of the bootstrap's 95% interval of it.
        high: upper end.
        not_better: share of resamples in which the variant is not better; a tie counts half.
    """

    name: str
    difference: float
    low: float
    high: float
    not_better: float


@attrs.frozen
class Order:
    """An order of variants by FID, and how often resampling gives it again.

    Attributes:
        seeds: number of seeds that all variants have.
        base: the variant that others are compared with.
        others: the comparisons, in the sweep's order.
        best_first: names of all variants from the lowest mean FID to the highest.
        same: share of resamples with the same whole order; each tie of neighbours in it counts half.
        lower: for each two variants, the share of resamples in which the first one's mean FID is below the second's;
            a tie counts half.
    """

    seeds: int
    base: str
    others: tuple[Against, ...]
    best_first: tuple[str, ...]
    same: float
    lower: Mapping[str, Mapping[str, float]]


def resampled_fids(folder: RunFolder, draws: int, kept: Path | None = None) -> list[float]:
    """Return a run's FID for each of some bootstrap draws of its samples; kept in the run's folder.

    Draw d takes the same samples of each run, whose classes and random numbers are equal if their seeds are.

    Args:
        folder: of a run that is scored.
        draws: D.
        kept: folder in which runs share the features of what they are compared with.
    """
    from rearkit.evaluation.fidelity import frechet
    from rearkit.stages.evaluate import features_and_reference

    of = {"evaluate": (folder.done("evaluate") or {}).get("digest"), "draws": draws}
    known = read_sealed(folder.resampled)
    if known is not None and known.get("of") == of:
        return list(known["fids"])
    say(f"{folder.path.name}: drawing its samples again, {draws} times")
    features_nF, reference = features_and_reference(run_recipe(folder), folder, kept)
    fids = []
    with progress_bar("bootstrap", draws) as bar:
        for draw in range(draws):
            chosen = np.random.default_rng(draw).integers(len(features_nF), size=len(features_nF))
            rows = features_nF[chosen].astype(np.float64)
            fids.append(frechet(Gaussian(rows.mean(0), np.cov(rows, rowvar=False)), reference))
            bar.advance()
    write_sealed(folder.resampled, {"of": of, "fids": fids})
    return fids


def order(names: Sequence[str], fids_VS: np.ndarray, drawn_VSD: np.ndarray, seed: int = 0) -> Order:
    """Compare variants with the first one, and say how sure their order is.

    A resample draws seeds with replacement, the same ones for all variants, and for each a bootstrap draw of the
    samples, again the same. FID of resampled samples is higher than of the samples themselves, by nearly the same
    amount everywhere: differences are nearly free of it.

    Args:
        names: of the variants; V of them, two or more.
        fids_VS: FID of each run.
        drawn_VSD: FID of each run's draws.
        seed: of the resampling.

    Raises:
        RearkitError: there are fewer than two variants or seeds.
    """
    if len(names) < 2 or fids_VS.shape[1] < 2:
        raise RearkitError("chance: an order needs two variants and two seeds or more")
    generator = np.random.default_rng(seed)

    def means(seeds: np.ndarray, axis: int = -1) -> np.ndarray:
        draws = generator.integers(drawn_VSD.shape[2], size=seeds.shape)
        found: np.ndarray = drawn_VSD[:, seeds, draws].mean(axis)
        return found

    seeds_S = np.arange(fids_VS.shape[1])
    found = bootstrap((seeds_S,), means, n_resamples=RESAMPLES, method="percentile", vectorized=True, rng=generator)
    resampled_VR = found.bootstrap_distribution
    means_V = fids_VS.mean(1)
    best_first = np.argsort(means_V, kind="stable")
    # A tie counts half: it would come out either way.
    lower = {
        first: {
            second: float(np.heaviside(resampled_VR[j] - resampled_VR[i], 0.5).mean())
            for j, second in enumerate(names)
            if j != i
        }
        for i, first in enumerate(names)
    }
    others = []
    for index, name in enumerate(names[1:], start=1):
        low, high = np.quantile(resampled_VR[index] - resampled_VR[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        difference = float(means_V[index] - means_V[0])
        others.append(Against(name, difference, float(low), float(high), 1 - lower[name][names[0]]))
    same = np.heaviside(np.diff(resampled_VR[best_first], axis=0), 0.5).prod(0).mean()
    return Order(len(seeds_S), names[0], tuple(others), tuple(names[i] for i in best_first), float(same), lower)
