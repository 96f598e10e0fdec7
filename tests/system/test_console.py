"""What is printed obeys nobody: control characters out of names and files are written out."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from rearkit.system import console

FOREIGN = "plum\x1b[2J\x1b]0;owned\x07\r\u202e\x9b31m\ud800"
SHOWN = r"plum\x1b[2J\x1b]0;owned\x07\r\u202e\x9b31m\ud800"


def test_control_characters_are_written_out() -> None:
    assert console.printable(FOREIGN) == SHOWN
    assert console.printable("a\tb\nété [train]") == "a\tb\nété [train]"


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_and_tables_have_no_control_characters(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.StringIO()
    made = type(console.console)(file=printed, force_terminal=terminal, color_system=None, width=200, soft_wrap=True)
    monkeypatch.setattr(console, "console", made)
    table = Table("name")
    table.add_row(FOREIGN)
    console.say(FOREIGN)
    made.print(table)
    assert printed.getvalue().count(SHOWN) == 2
    assert not set(printed.getvalue()) & set("\x1b\x07\r\x9b\u202e\ud800")
