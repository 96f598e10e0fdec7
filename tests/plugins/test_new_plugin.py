"""What ``new-plugin`` writes works as it is: it installs, rearkit lists it, its own tests pass, its example runs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rearkit.cli.new_plugin import write_plugin
from rearkit.registry.component import KINDS

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_tests_pass_before_it_is_installed(kind: str, own_tests: Command, tmp_path: Path) -> None:
    project = write_plugin("two-words", tmp_path / "new", kind)
    tested = own_tests(project, path=[])
    assert tested.returncode == 0, tested.stdout + tested.stderr
    # The example, a recipe, finds components of installed packages only.
    assert " passed, 1 skipped" in tested.stdout


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
    assert "3 passed" in tested.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_example_runs_once_it_is_installed(
    kind: str, install: Callable[[Path], Path], rearkit: Command, own_tests: Command, tmp_path: Path
) -> None:
    project = write_plugin("two-words", tmp_path / "new", kind)
    site = install(project)
    tested = own_tests(project, path=[site])
    assert tested.returncode == 0 and "skipped" not in tested.stdout, tested.stdout + tested.stderr
    ran = rearkit("run", str(project / "example.toml"), path=[site])
    assert ran.returncode == 0, ran.stderr
    assert "finished in" in ran.stdout + ran.stderr
    assert (tmp_path / "runs" / "two-words" / "report.html").is_file()
