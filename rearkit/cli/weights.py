"""``convert``: convert weights from one layout to another."""

from __future__ import annotations

from pathlib import Path

import click

from rearkit.cli.examples import Command
from rearkit.cli.options import Output


@click.command(cls=Command, example="convert runs/mnist/train/model.safetensors published.safetensors --to published")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=Output())
@click.option("--to", type=click.Choice(["rearkit", "published"]), required=True, help="Layout to write.")
@click.option("--weights-key", help="State dict to take where SOURCE has several, such as ema.")
def convert(source: Path, target: Path, to: str, weights_key: str | None) -> None:
    """Convert weights SOURCE to TARGET, between rearkit's layout and the published one."""
    from rearkit.registry.plugins import registry
    from rearkit.weights import convert

    # All installed components are tried, plugins' included: the keys of a file say which one it belongs to.
    component = convert(source, target, to, registry().all(), weights_key)
    click.echo(f"{target}: weights of {component.kind} {component.name} in the layout of {to}")
