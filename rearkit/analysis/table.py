"""The table that compares runs: a row for each group of runs, with mean ± standard deviation over its members."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
from rich.table import Table as ScreenTable

from rearkit.stages.flow import NAMES
from rearkit.stages.run_folder import RunFolder

# Up to so many groups fit a terminal as columns, so the table is transposed: there are more measures than that.
FEW = 5
Results = Mapping[str, Any]
"""The result of each stage of a run, by the stage's name; empty for a stage that has not finished."""


@attrs.frozen
class Measure:
    """A column of the table.

    Attributes:
        name: the column's heading.
        read: returns the value for a run, or None if the run lacks it.
        decimals: number of decimals to show.
        percent: True for a share, which is shown in percent.
    """

    name: str
    read: Callable[[Results], float | None]
    decimals: int
    percent: bool = False

    def show(self, value: float) -> str:
        """Format a value as text."""
        return f"{100 * value:.{self.decimals}f}%" if self.percent else f"{value:.{self.decimals}f}"


def _of(stage: str, key: str) -> Callable[[Results], float | None]:
    return lambda results: results[stage].get(key)


# Arrows say which way is better.
MEASURES = (
    Measure("FID ↓", _of("evaluate", "fid"), 2),
    Measure("IS ↑", _of("evaluate", "inception_score"), 2),
    Measure("precision ↑", _of("evaluate", "precision"), 3),
    Measure("recall ↑", _of("evaluate", "recall"), 3),
    Measure("class agreement ↑", _of("evaluate", "class_agreement"), 1, percent=True),
    Measure("held-out cross-entropy ↓", _of("train", "held_out_cross_entropy"), 3),
    Measure("held-out accuracy ↑", _of("train", "held_out_accuracy"), 1, percent=True),
)


@attrs.frozen(eq=False)
class Group:
    """Runs that share a row: the seeds of a variant, or a single run.

    Attributes:
        name: heading of the row.
        folders: of the group's runs.
        published: somebody else's figure for it, or None.
    """

    name: str
    folders: Sequence[RunFolder]
    published: float | None = None


def spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return mean and standard deviation (divisor n - 1); None where there are too few values."""
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def mean_and_deviation(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Write a mean ± its standard deviation; a dash for no values."""
    mean, deviation = spread(values)
    if mean is None:
        return "–"
    return show(mean) + ("" if deviation is None else f" ± {show(deviation)}")


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Format lines of values as CSV; None is an empty cell."""
    buffer = io.StringIO()
    # The csv module would end lines with \r\n.
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def markdown_table(lines: Iterable[Sequence[str]]) -> str:
    """Format lines of text as a table in Markdown; the second line is the rule below the headings."""
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


@attrs.frozen
class Cell:
    """The values of one measure for the runs of a group; runs without a value are left out."""

    measure: Measure
    values: tuple[float, ...]

    def __str__(self) -> str:
        return mean_and_deviation(self.values, self.measure.show)


@attrs.frozen
class Row:
    """The cells of a group, with its number of runs."""

    name: str
    runs: int
    cells: tuple[Cell, ...]
    published: float | None

    @property
    def shown_published(self) -> str:
        """The published figure as tables show it."""
        return "–" if self.published is None else f"{self.published:.2f}"


@attrs.frozen
class Table:
    """A table of groups of runs.

    Attributes:
        headings: of the name, the number of runs, the measures and, if there are any, the published figures.
        rows: one for each group.
        notes: sentences that a reader needs to interpret the table.
    """

    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def text_rows(self) -> list[list[str]]:
        """Return the cells as text, one list for each row."""
        return [
            [row.name, str(row.runs), *map(str, row.cells)] + ([row.shown_published] if self.has_published else [])
            for row in self.rows
        ]

    @property
    def has_published(self) -> bool:
        """Whether any group has a published figure, so that there is a column of them."""
        return any(row.published is not None for row in self.rows)

    def markdown(self) -> str:
        """Format as Markdown."""
        lines = [list(self.headings), ["---"] * len(self.headings), *self.text_rows()]
        return "\n\n".join([markdown_table(lines), *self.notes]) + "\n"

    def csv(self) -> str:
        """Format as CSV: mean and standard deviation of each measure in columns of their own, unrounded."""
        names = [_plain(cell.measure.name) for cell in self.rows[0].cells] if self.rows else []
        columns = [f"{name}_{part}" for name in names for part in ("mean", "sd")]
        lines: list[Sequence[Any]] = [["name", "runs", *columns, "published"]]
        for row in self.rows:
            values = [value for cell in row.cells for value in spread(cell.values)]
            lines.append([row.name, row.runs, *values, row.published])
        return csv_text(lines)

    def for_screen(self) -> ScreenTable:
        """Format for the terminal; few groups become columns instead of rows, since there are more measures."""
        lines = [list(self.headings), *self.text_rows()]
        if len(self.rows) <= FEW:
            lines = [list(line) for line in zip(*lines, strict=True)]
        table = ScreenTable()
        for index, heading in enumerate(lines[0]):
            # Names in the first column stay whole; other cells wrap rather than lose digits to an ellipsis.
            table.add_column(heading, no_wrap=not index, overflow="fold")
        for line in lines[1:]:
            table.add_row(*line)
        return table


def results_of(folder: RunFolder) -> Results:
    """Return the results of a run's stages."""
    return {name: (folder.done(name) or {}).get("result", {}) for name in NAMES}


def make_table(groups: Sequence[Group], published_as: str = "published") -> Table:
    """Make the table of groups of runs; measures that no run has are left out.

    Args:
        groups: in the order of the rows.
        published_as: heading of the groups' published figures.
    """
    results = [[results_of(folder) for folder in group.folders] for group in groups]
    measures = [m for m in MEASURES if any(m.read(one) is not None for group in results for one in group)]
    rows = []
    for group, members in zip(groups, results, strict=True):
        # Single runs may lack a measure that others have, held-out accuracy without held-out images for one.
        values = [[value for one in members if (value := m.read(one)) is not None] for m in measures]
        cells = tuple(Cell(m, tuple(found)) for m, found in zip(measures, values, strict=True))
        rows.append(Row(group.name, len(members), cells, group.published))
    headings = ["", "runs", *(m.name for m in measures)]
    if any(group.published is not None for group in groups):
        headings.append(published_as)
    return Table(tuple(headings), tuple(rows), tuple(_notes([one for group in results for one in group])))


def _notes(results: Sequence[Results]) -> list[str]:
    """Return what FID was computed from, and a warning if that is not the same for all runs."""
    scores = [one["evaluate"] for one in results if one["evaluate"]]
    if not scores:
        return []
    notes = []
    counts = sorted({score["num_samples"] for score in scores})
    references = sorted({score["reference"] for score in scores})
    # Rounded as shown: the floors of equal runs may differ in their last bits.
    floors = {None if score["fid_floor"] is None else round(score["fid_floor"], 2) for score in scores}
    known = sorted(floor for floor in floors if floor is not None)
    told = f"FID is of {_listed(counts)} samples a run against {', '.join(references)}"
    if known:
        held_out = next(score["num_held_out"] for score in scores if score["fid_floor"] is not None)
        told += f"; its floor, {held_out} held-out real images likewise, is {_listed(known)}"
    notes.append(f"{told}. Feature space: {scores[0]['feature_space']}.")
    if max(map(len, ({score["feature_space"] for score in scores}, references, floors, counts))) > 1:
        notes.append(
            "These runs were scored differently (feature space, reference, floor or number of samples), so FID does "
            "not compare."
        )
    return notes


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:,}" for value in values)


def _plain(heading: str) -> str:
    """Return a heading as a column name of a CSV file, which programs read: ASCII, without spaces."""
    return heading.rstrip(" ↓↑").replace(" ", "_").replace("-", "_").lower()
