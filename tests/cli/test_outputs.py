"""What a command is to write to, and numbers, are refused before its work, in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rearkit.cli.main import cli
from rearkit.cli.options import FiniteRange, Output

FILES = [
    "sample smoke --classes 3 --grid",
    "reconstruct smoke a.png --grid",
    "evaluate smoke --make-reference",
    "evaluate --samples s --reference r --to",
    "compare runs/a --page",
    "diagnose runs/a --page",
    "recipes --copy smoke --to",
    "convert a b --to published",
]
FOLDERS = [
    "sample smoke --to-folder",
    "reconstruct smoke a.png --to-folder",
    "data --from-folder a --to",
    "tokens --from-jsonl a --to",
    "new-plugin mine --into",
    "export runs/a",
]


def refused(command: str, target: Path) -> str:
    words = [str(target) if word == "b" else word for word in command.split()]
    found = CliRunner().invoke(cli, words if str(target) in words else [*words, str(target)])
    assert found.exit_code == 2 and "Error: Invalid value for" in found.output, found.output
    return " ".join(found.output.split())


@pytest.mark.parametrize("command", FILES)
def test_a_folder_in_the_place_of_a_file_is_refused(command: str, tmp_path: Path) -> None:
    assert "is a folder" in refused(command, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", FOLDERS)
def test_a_file_in_the_place_of_a_folder_is_refused(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "is no folder; choose" in refused(command, tmp_path / "file")


@pytest.mark.parametrize("command", [*FILES, *FOLDERS])
def test_a_place_below_a_file_is_refused(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for below in ("x", "deeper/x"):
        assert f"as {tmp_path / 'file'} is no folder" in refused(command, tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    for command in (FILES[0], FOLDERS[0]):
        assert os.strerror(errno.ENAMETOOLONG) in refused(command, tmp_path / ("x" * 300))


def test_paths_that_can_be_made_pass(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path in (tmp_path / "file", tmp_path / "link", tmp_path / "a" / "b", Path("new")):
        assert Output().convert(str(path), None, None) == path
    for path in (tmp_path, tmp_path / "a" / "b", Path(), Path("new")):
        assert Output(folder=True).convert(str(path), None, None) == path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_folder_that_nobody_may_write_into_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert f"without permission to write into {tmp_path}" in refused(FILES[0], tmp_path / "new" / "x.png")


@pytest.mark.parametrize("number", ["nan", "inf", "1e999"])
@pytest.mark.parametrize(
    "command",
    ["sample smoke --classes 3 --grid x.png --temperature", "plan smoke --gpu-memory", "plan smoke --reserve"],
)
def test_numbers_that_are_not_finite_are_refused(command: str, number: str) -> None:
    found = CliRunner().invoke(cli, [*command.split(), number])
    assert found.exit_code == 2 and "Error: Invalid value for" in found.output, found.output


def test_all_options_with_a_range_refuse_them() -> None:
    assert isinstance(cli, click.Group)
    parameters: Sequence[click.Parameter] = [one for command in cli.commands.values() for one in command.params]
    assert all(isinstance(one.type, FiniteRange) for one in parameters if isinstance(one.type, click.FloatRange))
    assert not [one.name for one in parameters if one.type is click.FLOAT]
