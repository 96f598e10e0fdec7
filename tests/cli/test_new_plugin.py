"""``new-plugin``: which names it takes, where it writes, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rearkit.cli.main import main
from rearkit.cli.new_plugin import write_plugin
from rearkit.errors import RearkitError


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["mine", "rearkit-mine"])
def test_it_writes_a_package(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_plugin(name, tmp_path)
    assert folder == tmp_path / "rearkit-mine"
    assert files(folder) == {
        "pyproject.toml",
        "README.md",
        "rearkit_mine/__init__.py",
        "rearkit_mine/noise.py",
        "tests/test_rearkit_mine.py",
    }
    text = "".join((folder / name).read_text(encoding="utf-8") for name in files(folder))
    assert "$" not in text
    assert 'plugin = "rearkit_mine"' in text
    said = capsys.readouterr().out
    for what_to_do in (f"pip install -e {folder}", "python -m rearkit plugins", f"python -m pytest {folder}"):
        assert what_to_do in said
    assert [path.name for path in tmp_path.iterdir()] == ["rearkit-mine"]


@pytest.mark.parametrize("name", ["two-words", "3d", "rearkit-rearkit-x", "a"])
def test_other_names_make_modules_too(name: str, tmp_path: Path) -> None:
    folder = write_plugin(name, tmp_path / "not" / "yet")
    (module,) = (path.name for path in folder.glob("rearkit_*"))
    assert module.isidentifier()
    for path in folder.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


def test_what_it_writes_is_formatted(tmp_path: Path) -> None:
    folder = write_plugin("two-words", tmp_path)
    for command in (("check", "--select", "E,F,W,I,UP,B,SIM,RUF"), ("format", "--check")):
        ruff = [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache", "--line-length", "120", "."]
        done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name", ["", "rearkit-", "Mine", "my noise", "my_noise", "-x", "x-", "a--b", "../up", "é", "a\n"]
)
def test_a_name_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RearkitError, match="a plugin's name is lower-case words and numbers joined by hyphens"):
        write_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_noise_that_exists_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RearkitError, match=r"'linear': rearkit .* already has a noise of this name"):
        write_plugin("linear", tmp_path)


def test_an_existing_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "rearkit-mine"
    folder.mkdir()
    with pytest.raises(SystemExit) as exit_:
        main(["new-plugin", "mine", "--into", str(tmp_path)])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {folder}: exists already; choose another name, or another folder with --into\n"
    )
    assert not files(folder)


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for into in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RearkitError, match="not a folder"):
            write_plugin("mine", into)
    (tmp_path / "rearkit-mine").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RearkitError, match="exists already"):
        write_plugin("mine", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RearkitError, match="cannot be written"):
        write_plugin("mine", tmp_path)
