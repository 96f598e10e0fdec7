"""A sweep's page for documents: Markdown, its tables as CSV, its charts and pictures as files.

Nothing on the page is typed by hand, so that it can be made anew and compared with its figures.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tomli_w

from rearkit.analysis.chance import Order, order, resampled_fids
from rearkit.analysis.diagnose import read_diagnoses
from rearkit.analysis.groups import read_sweep
from rearkit.analysis.table import Group, Table, markdown_table
from rearkit.recipe.cleaning import without_folders_of_machine, without_places
from rearkit.recipe.loading import recipe_to_dict
from rearkit.reports.charts import Chart, draw_file
from rearkit.reports.comparison_page import curves, differences
from rearkit.reports.diagnosis import charts as diagnosis_charts
from rearkit.reports.galleries import common_classes
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import run_recipe
from rearkit.sweeps import sheets
from rearkit.sweeps.predictions import KEY, written
from rearkit.sweeps.sweep import Sweep, file_name
from rearkit.system.console import say
from rearkit.system.files import replacing, write_text

FEATURES = "features"
"""Folder in a sweep's folder, for the features that its runs share; it can be deleted at any time."""

# From so many seeds on, a deviation between them is known well enough to resample.
MANY_SEEDS = 8


def write_docs(sweep: Sweep, command: str, groups: Sequence[Group], table: Table, root: Path, target: Path) -> Path:
    """Write a sweep's page, and return its path.

    Args:
        sweep: the sweep.
        command: that made it, for readers.
        groups: the finished runs, by variant; each has at least one.
        table: their scores.
        root: the sweep's folder.
        target: folder to write ``NAME.md`` to, and all else into ``NAME/``.
    """
    found = find_order(sweep, root)
    named = {group.name: known for group in groups if (known := read_diagnoses(group))}
    files = target / sweep.name
    parts = {"Scores": sheets.scores(table)}
    if found is not None:
        parts["Is the order chance?"] = sheets.order(found)
    if named:
        images = max(one.images for members in named.values() for one in members)
        parts[f"Why: the diagnosis, on {images:,} held-out images"] = sheets.mechanism(named)
    parts["How far it was trained"] = sheets.regime(groups)
    lines = [*_head(sweep, command), *written((read_sweep(root) or {}).get(KEY, []), found)]
    for title, sheet in parts.items():
        lines += [f"## {title}", sheet.markdown()]
        if sheet.name == "scores":
            lines += [*table.notes, *_warnings(groups)]
        if sheet.name == "order" and found is not None:
            lines += [_how_sure(sweep, found)]
    charts = [*curves(groups), *(diagnosis_charts(named) if named else [])]
    lines += [
        "## Charts",
        "Means over the seeds; a band is one standard deviation on each side.",
        *(_picture(files, chart) for chart in charts),
    ]
    classes = common_classes(group.folders[0] for group in groups)
    lines += [
        "## Samples",
        "The first run of each variant, the same seeds and classes"
        + (f"; from top to bottom {classes}." if classes else "."),
        *_samples(groups, files),
    ]
    lines += _made_of(sweep, groups, files)
    write_text(files / "table.csv", table.csv())
    write_text(files / "figures.csv", without_folders_of_machine(sheets.as_csv(parts.values())))
    write_text(files / "charts.csv", sheets.charts_as_csv(charts))
    page = target / f"{sweep.name}.md"
    write_text(page, without_folders_of_machine("\n\n".join(lines) + "\n"))
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
    drawn_VSD = np.array([[resampled_fids(folder, draws, root / FEATURES) for folder in row] for row in runs])
    return order(sweep.variants, fids_VS, drawn_VSD)


def _head(sweep: Sweep, command: str) -> list[str]:
    return [
        f"# Measured: {sweep.name}",
        f"`{command}` wrote this page; no figure was typed by hand. Those of the tables stand unrounded in "
        f"[figures.csv]({sweep.name}/figures.csv), scores also in [table.csv]({sweep.name}/table.csv), those of the "
        f"charts in [charts.csv]({sweep.name}/charts.csv). Mean ± standard deviation over seeds of training and "
        "sampling.",
    ]


def _warnings(groups: Sequence[Group]) -> list[str]:
    """Return what the evaluation warned of, each once with the number of runs."""
    counts = Counter(
        text
        for group in groups
        for folder in group.folders
        for text in set(folder.result("evaluate").get("warnings", []))
    )
    return [f"**Warning**, of {count} runs: {text}." for text, count in counts.items()]


def _made_of(sweep: Sweep, groups: Sequence[Group], files: Path) -> list[str]:
    """Return the section that says what was compared, and how to make it again."""
    first = groups[0].folders[0]
    # Without folders of this machine, which would say nothing to a reader elsewhere.
    write_text(files / "recipe.toml", tomli_w.dumps(without_places(recipe_to_dict(run_recipe(first)))))
    seeds = ", ".join(map(str, sweep.table.seeds))
    lines = [
        "## What was compared",
        f"Seeds {seeds} of training and sampling; all else is in [recipe.toml]({files.name}/recipe.toml), the whole "
        f"recipe of {groups[0].name} with every default, but for these keys:",
    ]
    rows = [["", *(group.name for group in groups)], ["---"] * (1 + len(groups))]
    rows += [[f"`{key}`", *(f"`{value}`" for value in values)] for key, values in differences(groups, without_places)]
    lines += [markdown_table(rows)]
    manifest = first.result("evaluate").get("manifest") or {}
    made_with = ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
    return [*lines, *([f"Made with {made_with}."] if made_with else [])]


def _how_sure(sweep: Sweep, found: Order) -> str:
    return (
        f"A paired bootstrap over {found.seeds} seeds and {sweep.table.resamples} draws of each run's samples. The "
        f"whole order, {', '.join(found.best_first)}, comes out again in {found.same:.1%} of the resamples."
        + (" With so few seeds the intervals are too narrow rather than too wide." if found.seeds < MANY_SEEDS else "")
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
            name = f"samples-{file_name(group.name)}.png"
            with replacing(files / name) as temporary:
                shutil.copyfile(grid, temporary)
            lines += [f"**{group.name}**", f"![samples of {group.name}, a class a row]({files.name}/{name})"]
        else:
            say(f"{group.folders[0].path}: it has no picture of samples any more")
    return lines
