"""``plugins`` and ``new-plugin``: list the available components, and start a package with new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click
from rich.markup import escape

from rearkit.cli.examples import Command
from rearkit.cli.options import Output
from rearkit.registry.component import KINDS
from rearkit.registry.setting_types import in_words, is_enum, is_literal, members, plain


@click.command(cls=Command, example="plugins")
def plugins() -> None:
    """List the components that recipes can name, with their providers and settings."""
    show_plugins()


@click.command("new-plugin", cls=Command, example="new-plugin mine\nnew-plugin my-tokens --kind tokenizer")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), default="noise", show_default=True, help="What the package adds.")
@click.option("--into", type=Output(folder=True), default=Path(), help="Folder to create the package in.")
def new_plugin(name: str, kind: str, into: Path) -> None:
    """Write a working pip package, rearkit-NAME, with one component to change into your own."""
    from rearkit.cli.new_plugin import write_plugin

    write_plugin(name, into, kind)


def show_plugins() -> None:
    """Print every component, its provider, and its settings with defaults; then the plugins that failed to load."""
    from rich.table import Table

    from rearkit.registry.plugins import load_plugins
    from rearkit.system.console import console

    plugins = load_plugins()
    for component in plugins.registry.all():
        console.print(f"[bold]{component.kind} {component.name}[/bold]  [dim]{escape(component.provider)}[/dim]")
        console.print(f"  {escape(component.summary)}")
        if rivals := plugins.registry.rivals(component):
            also = f"also provided by {' and '.join(rivals)}: recipes cannot name it until one of them is uninstalled"
            console.print(f"  [red]{escape(also)}[/red]")
        table = Table("setting", "default", "meaning", box=None, padding=(0, 2), show_header=False)
        for field in attrs.fields(component.settings):
            default = "required" if field.default is attrs.NOTHING else _default(field.default)
            # Escaped, since rich takes [noise] for markup and would leave it out.
            table.add_row(f"  {field.name}", default, escape("; ".join(_meaning(field))))
        if table.row_count:
            console.print(table)
        console.print()
    # Last, where they are still on the screen: a plugin that fails to load must not go unnoticed.
    for plugin in plugins.broken:
        console.print(f"[red]failed to load:[/red] {escape(plugin.provider)}: {escape(plugin.reason)}")


def _meaning(field: attrs.Attribute[Any]) -> list[str]:
    """Return what a setting means, and its values where its type lists them."""
    listed = [in_words(t) for t in members(field.type) if is_literal(t) or is_enum(t)]
    return [field.metadata.get("doc", ""), *listed]


def _default(value: Any) -> str:
    """Return a default as a recipe would write it; booleans in lower case, as in TOML."""
    # A factory has no single value to print.
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        return ""
    value = plain(value)
    return escape(str(value).lower() if isinstance(value, bool) else str(value))
