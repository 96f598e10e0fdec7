"""Diagnoses of runs side by side: tables for the terminal, charts for a page."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import attrs
from rich.table import Table as ScreenTable

from rearkit.analysis.diagnose import Diagnosis
from rearkit.analysis.table import mean_and_deviation
from rearkit.reports.charts import Chart, Series

Named = Mapping[str, Sequence[Diagnosis]]
"""Diagnoses by the name of their group of runs, such as the seeds of a variant; a group may be a single run."""


def screen_tables(named: Named) -> list[ScreenTable]:
    """Return three tables of means over each group: exposure bias; awareness and decode consistency; probes."""
    return [_exposure(named), _summary(named), _probes(named)]


@attrs.frozen
class OneNumber:
    """A measure that is one number a run: its name, its values for each group, and whether it is a share."""

    name: str
    values: tuple[tuple[float, ...], ...]
    share: bool

    def show(self, value: float) -> str:
        """Format a value as text."""
        return f"{value:.1%}" if self.share else f"{value:.3f}"


def measures(named: Named) -> list[OneNumber]:
    """Return the measures that are one number a run."""
    reads: list[tuple[str, Callable[[Diagnosis], float | None], bool]] = [
        ("held-out cross-entropy, clean context", lambda d: d.random_codes[0].cross_entropy, False),
        ("… half of the context random codes", lambda d: d.random_codes[-1].cross_entropy, False),
        ("… all of the context own draws", lambda d: d.own_draws[-1].cross_entropy, False),
        ("rise under own draws, first quarter of the tokens", lambda d: d.positions.rise(0, 0.25), False),
        ("rise under own draws, last quarter", lambda d: d.positions.rise(0.75, 1), False),
        ("cosine of the predicted to the true code", lambda d: d.awareness.all, False),
        ("… where the prediction is wrong", lambda d: d.awareness.wrong, False),
        ("… of a code drawn by frequency", lambda d: d.awareness.chance, False),
        ("generated tokens that survive decode → encode", lambda d: d.survival_generated, True),
        ("real tokens that do", lambda d: d.survival_real, True),
    ]
    found = []
    for what, read, share in reads:
        # Some are None: where no prediction is wrong, or the run has no samples.
        values = (tuple(v for one in members if (v := read(one)) is not None) for members in named.values())
        found.append(OneNumber(what, tuple(values), share))
    return found


def summary(named: Named) -> list[tuple[str, list[str]]]:
    """Return the measures as text: name, and mean ± standard deviation for each group."""
    return [(one.name, [mean_and_deviation(values, one.show) for values in one.values]) for one in measures(named)]


def charts(named: Named) -> list[Chart]:
    """Return the charts: prediction over the share of the context that is replaced, probes over the blocks."""
    found = []
    for words, kind in (("random codes", "random_codes"), ("the model’s own draws", "own_draws")):
        for measure, unit, share in (
            ("cross_entropy", "nats per token, held-out", False),
            ("accuracy", "share of held-out tokens whose likeliest code is right", True),
        ):
            title = f"{measure.replace('_', '-').capitalize()} under {words}"
            series = tuple(
                _mean_series(name, [[(p.replaced, getattr(p, measure)) for p in getattr(one, kind)] for one in members])
                for name, members in named.items()
            )
            found.append(Chart(title, unit, series, share, "context replaced", True))
    rises = tuple(_mean_series(name, [_rise(one) for one in members]) for name, members in named.items())
    unit = "nats per token that own draws as context cost, held-out"
    found.append(Chart("Exposure bias along the image", unit, rises, over="token"))
    for kind, what in (("current", "the token just read"), ("next", "the token about to be written")):
        series = tuple(
            _mean_series(name, [[(float(p.layer), getattr(p, kind).r2) for p in one.probes] for one in members])
            for name, members in named.items()
        )
        unit = "R² of its embedding, by a probe of each block’s output"
        found.append(Chart(f"Linear recovery of {what}", unit, series, over="block"))
    return found


def _rise(one: Diagnosis) -> list[tuple[float, float]]:
    pairs = zip(one.positions.own_draws, one.positions.clean, strict=True)
    return [(float(index), own - clean) for index, (own, clean) in enumerate(pairs)]


def _exposure(named: Named) -> ScreenTable:
    # The shares are the same in all runs. Own draws have one more, 100%: the column "all".
    first = next(iter(named.values()))[0]
    shares = [f"{p.replaced:.0%}" for p in first.random_codes]
    table = ScreenTable("", "context", *shares, "all", title="cross-entropy (nats a token), accuracy; context replaced")
    for name, members in named.items():
        for label, kind in (("random codes", "random_codes"), ("own draws", "own_draws")):
            columns = zip(*(getattr(one, kind) for one in members), strict=True)
            cells = [f"{_mean(column, 'cross_entropy'):.3f} {_mean(column, 'accuracy'):.1%}" for column in columns]
            table.add_row(name, label, *cells)
    return table


def _summary(named: Named) -> ScreenTable:
    table = ScreenTable("", *named, title="contexts, codes and their embeddings")
    for what, values in summary(named):
        table.add_row(what, *values)
    return table


def _probes(named: Named) -> ScreenTable:
    # Backbones may have different depths. The deepest gives the columns, and the others' rows end earlier.
    deepest = max((one.probes for members in named.values() for one in members), key=len)
    blocks = [str(probe.layer) for probe in deepest]
    table = ScreenTable("", "embedding of", *blocks, title="R² of linear probes, by block")
    for name, members in named.items():
        for kind in ("current", "next"):
            recovered = [[getattr(probe, kind) for probe in one.probes] for one in members]
            columns = zip(*recovered, strict=False)
            table.add_row(name, f"{kind} token", *(f"{_mean(column, 'r2'):.3f}" for column in columns))
    return table


def _mean(column: Sequence[object], measure: str) -> float:
    return statistics.fmean(getattr(one, measure) for one in column)


def _mean_series(name: str, curves: Sequence[Sequence[tuple[float, float]]]) -> Series:
    """Return the mean of curves that have the same x values."""
    # Not strict: if a run has fewer points than the others, the mean ends with it.
    columns = list(zip(*curves, strict=False))
    return Series.mean(name, [column[0][0] for column in columns], ([value for _, value in one] for one in columns))
