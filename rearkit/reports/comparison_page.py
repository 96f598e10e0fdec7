"""``comparison.html``: one self-contained page that shows runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import attrs

from rearkit.analysis.diagnose import read_diagnoses
from rearkit.analysis.differences import ABSENT, differing
from rearkit.analysis.table import Group, Table, make_table
from rearkit.errors import shortened
from rearkit.recipe.loading import recipe_to_dict
from rearkit.reports.charts import Chart, Series, drawn
from rearkit.reports.diagnosis import charts as diagnosis_charts
from rearkit.reports.diagnosis import summary
from rearkit.reports.galleries import common_classes, sample_grid
from rearkit.reports.page_templates import page_template
from rearkit.reports.run_page import OUT_OF_DATE, stage_rows
from rearkit.stages.flow import STAGES
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import run_recipe
from rearkit.system.files import write_text
from rearkit.training.logs import read_log
from rearkit.training.validation import HELD_OUT_ACCURACY, HELD_OUT_LOSS

PAGE = "comparison.html"
# What the runs of a group may differ in.
OWN = ("name", "train.seed", "sample.seed")
SHOWN = 3  # keys named in a note
# Held-out values only: training's depend on each run's own noise and dropout, so they do not compare.
CURVES = (
    (HELD_OUT_LOSS, "Held-out cross-entropy", "nats per token, clean context", False),
    (HELD_OUT_ACCURACY, "Held-out accuracy", "share of tokens whose likeliest code is right", True),
)


def write_page(groups: Sequence[Group], path: Path, title: str, published_as: str = "published") -> Table:
    """Write the page that compares groups of runs, and return its table of scores.

    Args:
        groups: in the order to show them.
        path: of the page.
        title: of the page.
        published_as: heading of the groups' published figures.
    """
    table = make_table(groups, published_as)
    table = attrs.evolve(table, notes=(*table.notes, *mixed(groups), *outdated(groups)))
    write_text(path, page_template("comparison.html.j2").render(gather(groups, table, title)))
    return table


def gather(groups: Sequence[Group], table: Table, title: str) -> dict[str, Any]:
    """Return the template's variables; parts that no run has are empty."""
    diagnoses = {group.name: read_diagnoses(group) for group in groups}
    diagnosed = any(diagnoses.values())
    # Of a group's first run alone: the runs of a group differ by seed only, and the page stays small.
    pictures = {
        group: picture for group in groups if group.folders and (picture := sample_grid(group.folders[0])) is not None
    }
    return {
        "title": title,
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "runs": sum(len(group.folders) for group in groups),
        "groups": [group.name for group in groups],
        "several": any(len(group.folders) > 1 for group in groups),
        "table": table,
        "differences": differences(groups),
        "curves": drawn(curves(groups)),
        "samples": [{"label": group.name, "picture": picture} for group, picture in pictures.items()],
        "classes": common_classes(group.folders[0] for group in pictures),
        "diagnosis": drawn(diagnosis_charts(diagnoses)) if diagnosed else [],
        "diagnosis_rows": summary(diagnoses),
    }


def outdated(groups: Sequence[Group]) -> list[str]:
    """Return a note for each run with results of another recipe or other inputs, such as scores of earlier weights."""
    told = []
    for folder in (folder for group in groups for folder in group.folders):
        rows = stage_rows(run_recipe(folder), folder, STAGES)
        if names := [row["name"] for row in rows if row["state"] == OUT_OF_DATE]:
            told.append(
                f"{folder.path}: out of date, made with another recipe or other inputs: {', '.join(names)}; "
                f"run: python -m rearkit run {folder.recipe} --out {folder.path}"
            )
    return told


def mixed(groups: Sequence[Group]) -> list[str]:
    """Return a note for each group with runs of different recipes, as an edited sweep that was cut off leaves them."""
    notes = []
    for group in groups:
        found = differing([recipe_to_dict(run_recipe(folder)) for folder in group.folders])
        told = []
        for key, values in ((key, values) for key, values in found if key not in OWN):
            named = zip(group.folders, values, strict=True)
            told.append(
                f"{key} is {', '.join(f'{shortened(str(value), 60)} ({one.path.name})' for one, value in named)}"
            )
        if told:
            more = f"; and {len(told) - SHOWN} keys more" if len(told) > SHOWN else ""
            notes.append(f"{group.name}: its mean is over runs of different recipes: {'; '.join(told[:SHOWN])}{more}")
    return notes


def differences(
    groups: Sequence[Group], shown: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> list[tuple[str, list[str]]]:
    """Return the recipe keys that differ between groups, with each group's value; seeds and names are left out.

    Args:
        groups: of runs.
        shown: returns what is compared of a recipe's tables; everything if left out.
    """
    # Groups without a run have no recipe: they show dashes, but make no difference.
    firsts = [group.folders[0] if group.folders else None for group in groups]
    found = differing([shown(recipe_to_dict(run_recipe(one))) for one in firsts if one is not None])
    rows = []
    for key, values in found:
        if key not in OWN:
            told = iter(map(str, values))
            rows.append((key, [ABSENT if one is None else next(told) for one in firsts]))
    return rows


def curves(groups: Sequence[Group]) -> list[Chart]:
    """Return held-out curves: the mean over each group's runs, at the steps that all of them logged."""
    found = []
    for key, title, unit, share in CURVES:
        series = []
        for group in groups:
            # Groups without values get an empty series, so that all charts use the same colour for a group.
            logs = [_logged(folder, key) for folder in group.folders]
            steps = sorted(set.intersection(*(set(log) for log in logs))) if logs else []
            series.append(Series.mean(group.name, steps, ([log[step] for log in logs] for step in steps)))
        if any(one.steps for one in series):
            found.append(Chart(title, unit, tuple(series), share))
    return found


def _logged(folder: RunFolder, key: str) -> dict[float, float]:
    return {line["step"]: line[key] for line in read_log(folder.stage("train")) if key in line}
