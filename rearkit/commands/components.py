"""``plugins`` and ``new-plugin``: the components there are, and packages for more."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
def plugins() -> None:
    """List the components that recipes can name, who provides them, and their settings."""
    from rearkit.show import show_plugins

    show_plugins()


@click.command("new-plugin")
@click.argument("name")
@click.option("--into", type=click.Path(path_type=Path), default=Path(), help="Where to put the folder.")
def new_plugin(name: str, into: Path) -> None:
    """Write a pip package, rearkit-NAME, that adds a component, for you to fill in."""
    from rearkit.scaffold import write_plugin

    write_plugin(name, into)
