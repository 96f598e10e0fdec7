"""The command line in this process: to start one takes seconds, and longer than most commands at the tests' sizes."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest

from rearkit.cli.main import main


def rearkit(*arguments: object, code: int = 0, cwd: Path | None = None) -> str:
    """Return what a command writes to the terminal; it must end with a given exit code."""
    written, before = io.StringIO(), Path.cwd()
    os.chdir(cwd or before)
    try:
        with (
            contextlib.redirect_stdout(written),
            contextlib.redirect_stderr(written),
            pytest.raises(SystemExit) as ended,
        ):
            main([str(argument) for argument in arguments])
    finally:
        os.chdir(before)
    assert (ended.value.code or 0) == code, written.getvalue()
    assert "Traceback" not in written.getvalue()
    return written.getvalue()
