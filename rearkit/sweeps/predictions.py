"""What was expected of a sweep: written down with its date before the runs, compared with what came of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from rearkit.analysis.chance import LEVEL, Order

KEY = "predictions"
"""In ``sweep.json``: a list of ``date``, ``prediction``, ``expected``, and how many runs were ``trained``, or begun."""


def noted(about: Mapping[str, Any] | None, prediction: str, expected: Sequence[str], trained: int) -> list[Any]:
    """Return the predictions of a sweep, with that of its file, if it has one that is not the last of them.

    Args:
        about: what the sweep's folder says so far, or None.
        prediction: the file's.
        expected: the file's order of variants.
        trained: number of runs that are trained by now, or begun.
    """
    known = list((about or {}).get(KEY, []))
    # One that was taken out of the file was made all the same.
    if not (prediction or expected):
        return known
    if known and (known[-1]["prediction"], list(known[-1]["expected"])) == (prediction, list(expected)):
        return known
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return [*known, {"date": date, "prediction": prediction, "expected": list(expected), "trained": trained}]


def written(predictions: Sequence[Mapping[str, Any]], found: Order | None) -> list[str]:
    """Return the section of a page: each prediction, when it was made, and what came of it."""
    lines = []
    for one in predictions:
        when = "before the runs" if not one["trained"] else f"after {one['trained']} runs had been trained, or begun"
        lines += [f"## The prediction, made {when}", f"({one['date']}) {one['prediction']}".rstrip()]
        if one["expected"]:
            lines += [verdict(one["expected"], found)]
    return lines


def verdict(expected: Sequence[str], found: Order | None) -> str:
    """Compare an expected order with the one found, pair by pair; a pair counts that resampling leaves as it is."""
    told = f"Expected by FID, best first: {', '.join(expected)}. "
    if found is None:
        return told + "There is no verdict: it needs `resamples` in the sweep's file, and two seeds of each variant."
    sides: dict[str, list[str]] = {"as predicted": [], "the other way round": [], "not to be told apart": []}
    # A variant may have been taken out of the file since.
    for better, worse in itertools.combinations((name for name in expected if name in found.lower), 2):
        share = found.lower[better][worse]
        side = "as predicted" if share >= LEVEL else "the other way round" if share <= 1 - LEVEL else ""
        sides[side or "not to be told apart"].append(f"{better} before {worse}")
    pairs = "; ".join(f"{what}: {', '.join(names)}" for what, names in sides.items() if names)
    if not pairs:
        return f"{told}There is no verdict: no two of these variants are in the sweep's file any more."
    told += f"Found: {', '.join(found.best_first)}. "
    return f"{told}Pair by pair, where {LEVEL:.0%} of the resamples below agree, {pairs}."
