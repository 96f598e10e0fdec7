"""Commands and groups whose help, and whose usage errors, end with a line to copy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rearkit.errors import did_you_mean


def program() -> str:
    """Return how the command line was called: ``rearkit``, or else ``python -m rearkit``."""
    # Shell completion is by the name of a program, so it is for `rearkit` alone.
    return "rearkit" if Path(sys.argv[0]).stem == "rearkit" else "python -m rearkit"


class Command(click.Command):
    """A command with an example.

    Args:
        example: what to write after the program's name; the first of several lines is shown with errors.
    """

    def __init__(self, *arguments: Any, example: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each on a line of its own however long it is."""
        formatter.write_paragraph()
        formatter.write("".join(f"  {line}\n" for line in example_lines(self, ctx)))


class Group(click.Group, Command):
    """A group of commands with examples, which names the nearest command if there is none of a name."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = did_you_mean(args[0], self.list_commands(ctx))
            ctx.fail(f"no command {args[0]!r}{near}")
        return super().resolve_command(ctx, args)


def example_lines(command: click.Command, context: click.Context) -> list[str]:
    """Return the lines that show how a command is used; none for a command of another class."""
    name = context.find_root().info_name
    lines = command.example.splitlines() if isinstance(command, Command) else []
    return [f"Example: {name} {line.strip()}" for line in lines]
