"""``new-plugin``: which names it takes, where it writes, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rearkit.cli.main import main
from rearkit.cli.new_plugin import KIND_TEXTS, SUFFIX, TEMPLATES, write_plugin
from rearkit.errors import RearkitError
from rearkit.registry.component import KINDS

ROOT = Path(__file__).parents[2]
each_kind = pytest.mark.parametrize("kind", KINDS)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def main_exits(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return int(exit_.value.code or 0)


def test_each_kind_has_templates_and_texts() -> None:
    assert sorted(KIND_TEXTS) == sorted(KINDS)
    folders = {path.relative_to(TEMPLATES).parts[0] for path in TEMPLATES.rglob(f"*{SUFFIX}")}
    assert folders == {*KINDS, "shared"}


def test_a_package_is_of_the_kind_noise_unless_told_otherwise(tmp_path: Path) -> None:
    assert main_exits(["new-plugin", "mine", "--into", str(tmp_path)]) == 0
    assert "rearkit_mine/noise.py" in files(tmp_path / "rearkit-mine")
    assert main_exits(["new-plugin", "ours", "--kind", "backbone", "--into", str(tmp_path)]) == 0
    assert "rearkit_ours/backbone.py" in files(tmp_path / "rearkit-ours")


def test_an_unknown_kind_is_answered_with_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_exits(["new-plugin", "mine", "--kind", "tokeniser", "--into", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "'tokeniser' is not one of" in said and all(repr(kind) in said for kind in KINDS)
    assert not list(tmp_path.iterdir())


@each_kind
@pytest.mark.parametrize("name", ["mine", "rearkit-mine"])
def test_it_writes_a_package(kind: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_plugin(name, tmp_path, kind)
    assert folder == tmp_path / "rearkit-mine"
    assert files(folder) == {
        "pyproject.toml",
        "README.md",
        "example.toml",
        "rearkit_mine/__init__.py",
        f"rearkit_mine/{kind}.py",
        "tests/test_rearkit_mine.py",
        f"tests/test_{kind}.py",
    }
    text = "".join((folder / name).read_text(encoding="utf-8") for name in files(folder))
    assert "$" not in text
    assert 'plugin = "rearkit_mine"' in text
    said = capsys.readouterr().out
    for what_to_do in (f"pip install -e {folder}", f"lists {kind} mine", f"python -m pytest {folder}"):
        assert what_to_do in said
    assert f"python -m rearkit run {folder / 'example.toml'}" in said
    assert (ROOT / f"docs/plugins/{kind}.md").is_file() and f"docs/plugins/{kind}.md" in said
    assert [path.name for path in tmp_path.iterdir()] == ["rearkit-mine"]


@each_kind
def test_its_readme_shows_the_recipe_that_uses_it(kind: str, tmp_path: Path) -> None:
    folder = write_plugin("mine", tmp_path, kind)
    example = (folder / "example.toml").read_text(encoding="utf-8")
    assert f"```toml\n{example}```" in (folder / "README.md").read_text(encoding="utf-8")
    assert 'extends = "smoke"' in example and 'requires = ["rearkit-mine"]' in example
    assert f'{KIND_TEXTS[kind].table}\nname = "mine"\n' in example


@pytest.mark.parametrize("name", ["two-words", "3d", "rearkit-rearkit-x", "a"])
def test_other_names_make_modules_too(name: str, tmp_path: Path) -> None:
    folder = write_plugin(name, tmp_path / "not" / "yet")
    (module,) = (path.name for path in folder.glob("rearkit_*"))
    assert module.isidentifier()
    for path in folder.rglob("*.py"):
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


@each_kind
@pytest.mark.parametrize("name", ["a", "some-words-of-a-name"])
def test_what_it_writes_is_formatted(kind: str, name: str, tmp_path: Path) -> None:
    """By rearkit's own rules where it is told them, and by its own pyproject.toml where it is not."""
    folder = write_plugin(name, tmp_path, kind)
    house = ["--config", str(ROOT / "pyproject.toml"), "--config", "src = ['.']"]
    for command in (["check", *house, "--per-file-ignores", "tests/**:D1"], ["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "."]
        done = subprocess.run(ruff, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_it_writes_has_types(tmp_path: Path) -> None:
    folders = [write_plugin(f"my-{kind}", tmp_path, kind) for kind in KINDS]
    modules = [str(next(folder.glob("rearkit_*"))) for folder in folders]
    mypy = [sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--ignore-missing-imports"]
    done = subprocess.run(
        [*mypy, "--config-file", os.devnull, "--cache-dir", str(tmp_path / "cache"), *modules],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": os.pathsep.join(map(str, [ROOT, *folders]))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name", ["", "rearkit-", "Mine", "my noise", "my_noise", "-x", "x-", "a--b", "../up", "é", "a\n"]
)
def test_a_name_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RearkitError, match="a plugin's name is lower-case words and numbers joined by hyphens"):
        write_plugin(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("noise", "linear"),
        ("regularizer", "codebook-embedding"),
        ("tokenizer", "maskgit-vqgan"),
        ("backbone", "dit-ar"),
        ("dataset", "folder"),
    ],
)
def test_a_name_of_its_kind_that_exists_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(RearkitError, match=f"'{name}': rearkit .* already has a {kind} of this name"):
        write_plugin(name, tmp_path, kind)
    assert not list(tmp_path.iterdir())


def test_a_name_of_another_kind_is_free(tmp_path: Path) -> None:
    assert write_plugin("linear", tmp_path, "dataset").is_dir()


def test_an_existing_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "rearkit-mine"
    folder.mkdir()
    assert main_exits(["new-plugin", "mine", "--into", str(tmp_path)]) == 2
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
