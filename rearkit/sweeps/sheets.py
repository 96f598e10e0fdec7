"""The tables of a sweep's page: each figure with its unrounded mean and deviation, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from rearkit.analysis.chance import Order
from rearkit.analysis.diagnose import Diagnosis
from rearkit.analysis.table import Group, Table, csv_text, markdown_table, mean_and_deviation, results_of, spread
from rearkit.reports.charts import Chart
from rearkit.reports.diagnosis import measures
from rearkit.stages.run_recipe import run_recipe


@attrs.frozen
class Figure:
    """A cell: what is shown, and what it was rounded from (None where there is nothing)."""

    shown: str
    mean: float | None
    deviation: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], show: Callable[[float], str]) -> Figure:
        """Make the cell of several runs' values; those that are all the same have no deviation."""
        same = len(set(values)) == 1
        return cls(mean_and_deviation(values[:1] if same else values, show), *spread(values[:1] if same else values))


@attrs.frozen
class Sheet:
    """A table: for each row its name and figures.

    Attributes:
        name: of the table, for the CSV file.
        columns: headings of the figures.
        rows: figures by row; each has one for each column.
    """

    name: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[Figure, ...]]

    def markdown(self) -> str:
        """Format as Markdown."""
        lines = [["", *self.columns], ["---"] * (1 + len(self.columns))]
        lines += [[name, *(figure.shown for figure in figures)] for name, figures in self.rows.items()]
        return markdown_table(lines)


def as_csv(sheets: Iterable[Sheet]) -> str:
    """Write each figure of several tables as a line: table, row, column, what is shown, mean, deviation."""
    lines: list[Sequence[Any]] = [("table", "row", "column", "shown", "mean", "sd")]
    for sheet in sheets:
        for row, figures in sheet.rows.items():
            for column, figure in zip(sheet.columns, figures, strict=True):
                lines.append((sheet.name, row, column, figure.shown, figure.mean, figure.deviation))
    return csv_text(lines)


def charts_as_csv(charts: Iterable[Chart]) -> str:
    """Write each point as a line: chart, unit, series, what is along the axis, its value, value, standard deviation."""
    lines: list[Sequence[Any]] = [("chart", "unit", "series", "along", "at", "value", "sd")]
    for chart in charts:
        for series in chart.series:
            deviations = series.deviations or [None] * len(series.values)
            points = zip(series.steps, series.values, deviations, strict=True)
            lines += [(chart.title, chart.unit, series.name, chart.over, *point) for point in points]
    return csv_text(lines)


def scores(table: Table) -> Sheet:
    """Return the table of scores; groups of runs are its rows. Published figures, if any, are its last column."""
    published = table.has_published
    columns = ("runs", *(cell.measure.name for cell in table.rows[0].cells), *table.headings[-1:] * published)
    return Sheet(
        "scores",
        columns,
        {
            row.name: (
                Figure(str(row.runs), row.runs),
                *(Figure.of(cell.values, cell.measure.show) for cell in row.cells),
                *[Figure(row.shown_published, row.published)] * published,
            )
            for row in table.rows
        },
    )


def order(found: Order) -> Sheet:
    """Return the table of what each variant's FID differs by from the first one's, and how surely."""
    columns = (f"FID minus that of {found.base}", "95% interval from", "to", "resamples in which it is not better")

    def figures(values: Sequence[float]) -> tuple[Figure, ...]:
        *differences, share = values
        return (*(Figure(f"{value:+.2f}", value) for value in differences), Figure(f"{share:.1%}", share))

    rows = {one.name: figures((one.difference, one.low, one.high, one.not_better)) for one in found.others}
    return Sheet("order", columns, rows)


def regime(groups: Sequence[Group]) -> Sheet:
    """Return the table of how much each variant was trained, and on what tokens; groups are its columns."""
    shows: dict[str, Callable[[float], str]] = {
        "parameters of the backbone": "{:,.0f}".format,
        "… of the regularizer's heads": "{:,.0f}".format,
        "optimizer steps": "{:,.0f}".format,
        "epochs": "{:.2f}".format,
        "tokens seen for each parameter": "{:.2f}".format,
        "minutes of training": "{:.1f}".format,
        "tokenizer's PSNR on held-out images, dB": "{:.2f}".format,
        "codes in use": "{:.1%}".format,
        "real tokens that survive decode → encode": "{:.1%}".format,
    }
    found: list[list[tuple[float | None, ...]]] = [[] for _ in groups]
    for group, members in zip(groups, found, strict=True):
        for folder in group.folders:
            results = results_of(folder)
            train, tokens, tokenizer = results["train"], results["tokens"], results["tokenizer"]
            seen = train["steps"] * run_recipe(folder).train.global_batch
            tokens_seen = seen * tokenizer["num_tokens"]
            images = results["data"]["images"]["train"]
            members.append(
                (
                    train["parameters"],
                    train["head_parameters"],
                    train["steps"],
                    seen / images if images else None,
                    tokens_seen / train["parameters"],
                    train["seconds"] / 60,
                    tokens.get("psnr"),
                    tokens.get("codebook_use"),
                    tokens.get("survival"),
                )
            )
    rows = {}
    for index, (what, show) in enumerate(shows.items()):
        columns = [[value for one in members if (value := one[index]) is not None] for members in found]
        rows[what] = tuple(Figure.of(values, show) for values in columns)
    return Sheet("regime", tuple(group.name for group in groups), rows)


def mechanism(named: Mapping[str, Sequence[Diagnosis]]) -> Sheet:
    """Return the table of what the diagnosis measures; groups are its columns."""
    rows = {}
    for measure in measures(named):
        rows[measure.name] = tuple(Figure.of(values, measure.show) for values in measure.values)
    return Sheet("diagnosis", tuple(named), rows)
