"""A sweep's page for documents: Markdown, its tables as CSV, its charts and pictures as files.

Nothing on the page is typed by hand, so that it can be made anew and compared with its figures.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rearkit.analysis.chance import Order, order, resampled_fids
from rearkit.analysis.diagnose import diagnose
from rearkit.analysis.table import Group, Table
from rearkit.reports.charts import Chart, draw_file
from rearkit.reports.comparison_page import curves
from rearkit.reports.diagnosis import charts as diagnosis_charts
from rearkit.stages.run_folder import RunFolder
from rearkit.sweeps import sheets
from rearkit.sweeps.runner import finished_groups
from rearkit.sweeps.sweep import Sweep
from rearkit.system.console import say
from rearkit.system.files import replacing, write_text


def write_docs(sweep: Sweep, command: str, table: Table, root: Path, target: Path) -> Path:
    """Write a sweep's page, and return its path.

    Args:
        sweep: the sweep.
        command: that made it, for readers.
        table: scores of the finished runs, by variant.
        root: the sweep's folder.
        target: folder to write ``NAME.md`` to, and all else into ``NAME/``.
    """
    groups = [group for group in finished_groups(sweep, root) if group.folders]
    found = find_order(sweep, root)
    # As a sweep's file asks for it; what others have diagnosed before is shown as well.
    images = sweep.table.diagnose
    named = {group.name: [diagnose(folder, images) for folder in group.folders] for group in groups} if images else {}
    files = target / sweep.name
    parts = {"Scores": sheets.scores(table)}
    if found is not None:
        parts["Is the order chance?"] = sheets.order(found)
    if named:
        parts["Why: the diagnosis"] = sheets.mechanism(named)
    parts["How far it was trained"] = sheets.regime(groups)
    charts = [*curves(groups), *(diagnosis_charts(named) if named else [])]
    lines = [*_head(sweep, command, found)]
    for title, sheet in parts.items():
        lines += [f"## {title}", sheet.markdown()]
        if sheet.name == "scores":
            lines += table.notes
        if sheet.name == "order" and found is not None:
            lines += [_how_sure(sweep, found)]
    lines += ["## Charts", *(_picture(files, chart) for chart in charts)]
    lines += ["## Samples", "The first run of each variant, the same seeds and classes.", *_samples(groups, files)]
    write_text(files / "table.csv", table.csv())
    write_text(files / "figures.csv", sheets.as_csv(parts.values()))
    page = target / f"{sweep.name}.md"
    write_text(page, "\n\n".join(lines) + "\n")
    return page


def find_order(sweep: Sweep, root: Path) -> Order | None:
    """Return the order of a sweep's variants; None if it has not asked for it, or has too few runs for it."""
    draws = sweep.table.resamples
    folders = {(run.variant, run.recipe.train.seed): RunFolder(root / run.name) for run in sweep.runs}
    done = {key for key, folder in folders.items() if folder.done("evaluate") is not None}
    # Paired: only seeds with which every variant has run.
    seeds = [seed for seed in sweep.table.seeds if all((name, seed) in done for name in sweep.variants)]
    if not draws or len(seeds) < 2 or len(sweep.variants) < 2:
        return None
    runs = [[folders[name, seed] for seed in seeds] for name in sweep.variants]
    fids_VS = np.array([[folder.result("evaluate")["fid"] for folder in row] for row in runs])
    drawn_VSD = np.array([[resampled_fids(folder, draws) for folder in row] for row in runs])
    return order(sweep.variants, fids_VS, drawn_VSD)


def _head(sweep: Sweep, command: str, found: Order | None) -> list[str]:
    lines = [
        f"# Measured: {sweep.name}",
        f"`{command}` wrote this page; no figure was typed by hand. Each stands unrounded in "
        f"[figures.csv]({sweep.name}/figures.csv), scores also in [table.csv]({sweep.name}/table.csv). "
        "Mean ± standard deviation over seeds of training and sampling.",
    ]
    if sweep.table.prediction:
        lines += ["## The prediction, made before the runs", sweep.table.prediction]
    if found is not None and sweep.table.expected:
        lines += [_verdict(sweep.table.expected, found)]
    return lines


def _verdict(expected: Sequence[str], found: Order) -> str:
    """Compare the order found with the expected one, pair by pair."""
    place = {name: index for index, name in enumerate(found.best_first)}
    pairs = list(itertools.combinations(expected, 2))
    wrong = [f"{better} before {worse}" for better, worse in pairs if place[better] > place[worse]]
    told = f"Expected by FID, best first: {', '.join(expected)}. Found: {', '.join(found.best_first)}. "
    if not wrong:
        return told + "The prediction held."
    return f"{told}{len(pairs) - len(wrong)} of {len(pairs)} pairs are as predicted; not so: {', '.join(wrong)}."


def _how_sure(sweep: Sweep, found: Order) -> str:
    return (
        f"A paired bootstrap over {found.seeds} seeds and {sweep.table.resamples} draws of each run's samples. The "
        f"whole order, {', '.join(found.best_first)}, comes out again in {found.same:.1%} of the resamples. With so "
        "few seeds the intervals are too narrow rather than too wide."
    )


def _picture(files: Path, chart: Chart) -> str:
    name = "".join(letter if letter.isalnum() else "-" for letter in chart.title.lower()).strip("-")
    write_text(files / f"{name}.svg", draw_file(chart))
    return f"![{chart.alt}]({files.name}/{name}.svg)"


def _samples(groups: Sequence[Group], files: Path) -> list[str]:
    lines = []
    for group in groups:
        grid = group.folders[0].sample_grid
        if grid.is_file():
            name = f"samples-{group.name}.png"
            with replacing(files / name) as temporary:
                shutil.copyfile(grid, temporary)
            lines += [f"**{group.name}**", f"![samples of {group.name}, a class a row]({files.name}/{name})"]
        else:
            say(f"{group.folders[0].path}: it has no picture of samples any more")
    return lines
