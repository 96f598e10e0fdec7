"""The commands ``compare`` and ``diagnose``: write tables to the screen, and a page, from runs' folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rearkit.analysis.diagnose import diagnose
from rearkit.analysis.groups import find_groups, place_for_page, published_as
from rearkit.analysis.table import Group
from rearkit.reports.comparison_page import PAGE, write_page
from rearkit.reports.diagnosis import screen_tables
from rearkit.reports.run_page import write_report
from rearkit.stages.flow import STAGES
from rearkit.stages.run_recipe import run_recipe
from rearkit.system.console import console, say


def compare(paths: Sequence[Path], page: Path | None = None) -> None:
    """Show runs side by side.

    Args:
        paths: folders of runs and of sweeps.
        page: file to write; left out, ``comparison.html`` in the folder that contains them.

    Raises:
        RearkitError: a folder is neither a run nor a sweep.
    """
    _show(find_groups(paths), paths, page)


def diagnose_and_compare(paths: Sequence[Path], page: Path | None = None, max_images: int = 1000) -> None:
    """Diagnose runs, add the diagnoses to their reports, and show the runs side by side.

    Args:
        paths: folders of runs and of sweeps.
        page: file to write; left out, ``comparison.html`` in the folder that contains them.
        max_images: images to measure on, for each run.

    Raises:
        RearkitError: a folder is neither a run nor a sweep, or holds nothing to diagnose.
    """
    groups = find_groups(paths)
    # All runs are diagnosed before any report is written, so that an error leaves the reports as they were.
    found = {group.name: [diagnose(folder, max_images) for folder in group.folders] for group in groups}
    for group in groups:
        for folder in group.folders:
            write_report(run_recipe(folder), folder, STAGES)
    for table in screen_tables(found):
        console.print(table)
    _show(groups, paths, page)


def _show(groups: Sequence[Group], paths: Sequence[Path], page: Path | None) -> None:
    place = place_for_page(paths)
    page = place / PAGE if page is None else page
    table = write_page(groups, page, ", ".join(path.resolve().name for path in paths), published_as(paths))
    console.print(table.for_screen())
    for note in table.notes:
        say(note)
    say(f"page: {page}")
