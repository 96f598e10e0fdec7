"""``sweep``, ``compare`` and ``diagnose``: commands for several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from rearkit.cli.examples import Command
from rearkit.cli.options import SET, Output, complete_recipes

# Shared by `compare` and `diagnose`.
RUNS = click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
PAGE = click.option("--page", type=Output(), help="Page to write; left out: comparison.html.")


@click.command(cls=Command, example="sweep components")
@click.argument("sweep", metavar="SWEEP", type=click.Path(path_type=Path), shell_complete=complete_recipes)
@SET
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the sweep; left out: runs/NAME.")
@click.option("--jobs", type=click.IntRange(1), help="Runs at once; left out: one per GPU, or one per core.")
@click.option(
    "--docs", type=click.Path(path_type=Path), help="Folder for a page of the results in Markdown, with CSV and SVG."
)
@click.option(
    "--reuse",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder of an earlier run or sweep: stages that are the same are taken over; repeatable.",
)
def sweep(
    sweep: Path, overrides: Sequence[str], out: Path | None, jobs: int | None, docs: Path | None, reuse: Sequence[Path]
) -> None:
    """Run all variants and seeds of SWEEP, a TOML file, and compare them in a table and on a page.

    Finished runs are skipped and interrupted ones resume. --set changes a key in all runs.
    """
    from rearkit.sweeps.report import sweep_and_report

    sweep_and_report(sweep, overrides, out, jobs, docs, reuse)


@click.command(cls=Command, example="compare runs/mnist runs/mnist_ar")
@RUNS
@PAGE
def compare(runs: Sequence[Path], page: Path | None) -> None:
    """Compare runs, given by their folders: scores, recipes, curves, samples. A sweep's folder means all its runs."""
    from rearkit.reports.compare import compare

    compare(runs, page)


@click.command(cls=Command, example="diagnose runs/mnist")
@RUNS
@PAGE
@click.option("--images", type=click.IntRange(10), default=1000, show_default=True, help="Images to measure on.")
def diagnose(runs: Sequence[Path], page: Path | None, images: int) -> None:
    """Diagnose trained runs (exposure bias, embedding awareness, decode consistency), then compare them."""
    from rearkit.reports.compare import diagnose_and_compare

    diagnose_and_compare(runs, page, images)
