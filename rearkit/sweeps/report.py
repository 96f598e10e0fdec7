"""Run a sweep and write its table: on the screen, as CSV, as Markdown and on a page."""

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
    """Run a sweep and write its table; if runs fail, the table of the others is still written.

    Args:
        path: of the sweep file.
        overrides: ``key=value`` each, for all runs.
        out: the sweep's folder; None for ``runs/NAME``.
        num_jobs: runs at once; None for one a GPU, or one a core.

    Raises:
        RearkitError: the sweep file or folder can't be used, or some runs failed.
    """
    sweep = load_sweep(path, overrides)
    root = DEFAULT_ROOT / sweep.name if out is None else out
    say(f"{sweep.name}: {len(sweep.runs)} runs of {len(sweep.variants)} variants in {root}")
    try:
        run_sweep(sweep, root, num_jobs)
    finally:
        # Also after an error or Ctrl-C: a sweep takes days, and what has finished can be read already.
        table = _write(sweep, root)
    return table


def _write(sweep: Sweep, root: Path) -> Table:
    found = finished(sweep, root)
    groups = [Group(name, found[name], sweep.published.get(name)) for name in sweep.variants]
    table = make_table(groups, sweep.published_as)
    # Without a finished run there is nothing to show, and the tables of an earlier call stay as they are.
    if any(found.values()):
        write_text(root / "table.csv", table.csv())
        write_text(root / "table.md", table.markdown())
        console.print(table.for_screen())
        for note in table.notes:
            say(note)
        write_page(groups, root / PAGE, sweep.name, sweep.published_as)
        say(f"table: {root / 'table.md'}, {root / 'table.csv'}; page: {root / PAGE}")
    return table
