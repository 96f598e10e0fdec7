"""What ``new-plugin`` writes works as it is: it installs, rearkit lists it, its own tests pass."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_new_plugin_works_as_it_is(
    install: Callable[[Path], Path], rearkit: Command, own_tests: Command, tmp_path: Path
) -> None:
    written = rearkit("new-plugin", "two-words", "--into", str(tmp_path / "new"))
    assert written.returncode == 0, written.stderr
    project = tmp_path / "new" / "rearkit-two-words"
    site = install(project)

    listed = rearkit("plugins", path=[site])
    assert listed.returncode == 0, listed.stderr
    assert "noise two-words  rearkit-two-words 0.1.0" in listed.stdout
    assert "failed to load" not in listed.stdout

    tested = own_tests(project, path=[site])
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "2 passed" in tested.stdout
