"""``export``: a trained model in one folder, to give away."""

from __future__ import annotations

from pathlib import Path

import click

from rearkit.cli.examples import Command
from rearkit.cli.options import Output


@click.command(cls=Command, example="export runs/mnist my-model")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("folder", metavar="FOLDER", type=Output(folder=True))
@click.option("--license", "licence", metavar="ID", help="Licence for the model card, such as mit or apache-2.0.")
def export(run: Path, folder: Path, licence: str | None) -> None:
    """Write RUN's trained model to FOLDER: weights, tokenizer, recipe, classes, scores, a picture and a model card.

    `sample`, `evaluate` and load_model take FOLDER, and the Hugging Face hub takes it as it is. Nothing of this machine
    is in it: no training image, no path, no account.
    """
    from rearkit.reports.ship import export_run

    export_run(run, folder, licence)
