"""Run a sweep and write its table: on the screen, as CSV, as Markdown and on a page."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from rearkit.analysis.diagnose import diagnose
from rearkit.analysis.groups import run_folders
from rearkit.analysis.table import Group, Table, make_table
from rearkit.errors import RearkitError, StorageError
from rearkit.recipe.cleaning import without_folders_of_machine
from rearkit.reports.comparison_page import PAGE, write_page
from rearkit.stages.run_folder import RunFolder, folder_of
from rearkit.sweeps.claim import claim
from rearkit.sweeps.runner import finished_groups, run_sweep
from rearkit.sweeps.sharing import UNSCORED, stages_to_take
from rearkit.sweeps.sweep import Sweep, load_sweep
from rearkit.sweeps.write_up import write_docs
from rearkit.system.console import console, say
from rearkit.system.files import write_text


def sweep_and_report(
    path: Path,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    num_jobs: int | None = None,
    docs: Path | None = None,
    reuse: Sequence[Path] = (),
) -> Table:
    """Run a sweep and write its table; if runs fail, the table of the others is still written.

    Args:
        path: of the sweep file.
        overrides: ``key=value`` each, for all runs.
        out: the sweep's folder; None for ``runs/NAME``.
        num_jobs: runs at once; None for one a GPU, or one a core.
        docs: folder to write a page for documents to, with its tables and pictures; None for no such page.
        reuse: folders of earlier runs or sweeps, whose stages are taken over where they are the same.

    Raises:
        RearkitError: the sweep file or folder can't be used, or some runs failed.
    """
    sweep = load_sweep(path, overrides)
    if docs is not None:
        _check_docs(docs)
    donors = [folder for one in reuse for folder in _donors(sweep, one)]
    root = folder_of(sweep.name, out)
    say(f"{sweep.name}: {len(sweep.runs)} runs of {len(sweep.variants)} variants in {root}")
    # Before anything is written there: a folder that is refused keeps the tables that it has.
    claim(sweep, root, donors)
    try:
        for folder in itertools.chain(*run_sweep(sweep, root, num_jobs, donors).values()):
            if sweep.table.diagnose:
                diagnose(folder, sweep.table.diagnose)
    finally:
        # Also after an error or Ctrl-C: a sweep takes days, and what has finished can be read already.
        groups = finished_groups(sweep, root)
        table = _write(sweep, groups, root)
    if docs is not None:
        page = write_docs(sweep, shown_command(path, overrides, docs), groups, table, root, docs)
        say(f"page for documents: {page}")
    return table


def _donors(sweep: Sweep, path: Path) -> list[RunFolder]:
    if not (found := run_folders(path)):
        raise RearkitError(f"--reuse: {path}: no folder of a run or sweep; give such a folder")
    if not any(stages_to_take(run.recipe, donor, UNSCORED) for run in sweep.runs for donor in found):
        say(f"--reuse: {path}: nothing of it can be taken over, as no stage is the same")
    return found


def _check_docs(docs: Path) -> None:
    """Make the folder of the page, before the runs: they take too long to fail in the end."""
    try:
        docs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--docs: {docs}: {error.strerror}; choose another folder") from None
    if not os.access(docs, os.W_OK):
        raise StorageError(f"--docs: {docs}: no permission to write; choose another folder")


def shown_command(path: Path, overrides: Sequence[str], docs: Path) -> str:
    """Return the command that made a page, for readers elsewhere: of absolute paths the last part is shown."""
    words = ["python", "-m", "rearkit", "sweep", str(path)]
    words += [word for one in overrides for word in ("--set", one)]
    return without_folders_of_machine(shlex.join([*words, "--docs", str(docs)]))


def _write(sweep: Sweep, groups: Sequence[Group], root: Path) -> Table:
    table = make_table(groups, sweep.table.published_as)
    # Without a finished run there is nothing to show, and the tables of an earlier call stay as they are.
    if any(group.folders for group in groups):
        write_text(root / "table.csv", table.csv())
        write_text(root / "table.md", table.markdown())
        console.print(table.for_screen())
        for note in table.notes:
            say(note)
        write_page(groups, root / PAGE, sweep.name, sweep.table.published_as)
        say(f"table: {root / 'table.md'}, {root / 'table.csv'}; page: {root / PAGE}")
    return table
