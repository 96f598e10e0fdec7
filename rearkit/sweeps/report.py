"""A sweep from its file to its table: on the screen, as CSV and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rearkit.analysis.table import Group, Table, make_table
from rearkit.pipeline import DEFAULT_ROOT
from rearkit.reports.comparison_page import PAGE, write_page
from rearkit.sweeps.runner import finished, run_sweep
from rearkit.sweeps.sweep import Sweep, load_sweep
from rearkit.system.console import console, say
from rearkit.system.files import write_text


def sweep_and_report(
    path: Path, overrides: Sequence[str] = (), out: Path | None = None, num_jobs: int | None = None
) -> Table:
    """Run a sweep and write its table; where runs fail, that of the others, before the error.

    Raises:
        RearkitError: whatever the user can mend.
    """
    sweep = load_sweep(path, overrides)
    root = DEFAULT_ROOT / sweep.name if out is None else out
    say(f"{sweep.name}: {len(sweep.runs)} runs of {len(sweep.variants)} variants in {root}")
    try:
        run_sweep(sweep, root, num_jobs)
    finally:
        table = _write(sweep, root)
    return table


def _write(sweep: Sweep, root: Path) -> Table:
    found = finished(sweep, root)
    groups = [Group(name, found[name], sweep.published.get(name)) for name in sweep.variants]
    table = make_table(groups, sweep.published_as)
    if any(found.values()):
        write_text(root / "table.csv", table.csv())
        write_text(root / "table.md", table.markdown())
        console.print(table.for_screen())
        for note in table.notes:
            say(note)
        write_page(groups, root / PAGE, sweep.name, sweep.published_as)
        say(f"table: {root / 'table.md'}, {root / 'table.csv'}; page: {root / PAGE}")
    return table
