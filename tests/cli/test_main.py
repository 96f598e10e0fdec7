"""The command line as a whole: its name, examples, near misses, shell completion, versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.shell_completion import ShellComplete

from rearkit.cli import COMMANDS
from rearkit.cli.main import cli, main
from rearkit.errors import EXIT_USAGE
from rearkit.recipe.recipe_files import own_files

NAMES = [command.name for command in COMMANDS if command.name is not None]


def rearkit(*arguments: str) -> object:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code


def offered(*words: str) -> list[str]:
    *before, incomplete = words
    return [item.value for item in ShellComplete(cli, {}, "rearkit", "_X").get_completions(list(before), incomplete)]


@pytest.mark.parametrize("name", NAMES)
def test_each_command_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rearkit(name, "--help") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  Example: ")]
    assert lines
    for line in lines:
        words = line.removeprefix("  Example: python -m rearkit ").split()
        assert words[0] == name
        # Its options and arguments are parsed; nothing is run.
        command = cli.commands[name]
        command.make_context(name, words[1:], resilient_parsing=False)
        for word in words[1:2]:
            assert word.startswith("-") or "/" in word or word in own_files() or name == "new-plugin"


def test_more_ranks_than_gpus_are_refused_before_they_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("rearkit.system.launch.launch", lambda *given: pytest.fail("started"))
    assert rearkit("run", "mnist", "--num-gpus", "2") == EXIT_USAGE
    told = '--num-gpus: 2 ranks, and torch sees 1 GPU(s); use --num-gpus 1 or device = "cpu"'
    assert told in " ".join(capsys.readouterr().err.split())


def test_without_arguments_it_shows_where_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert rearkit() == 0
    said = capsys.readouterr()
    assert "\n  Example: python -m rearkit run mnist\n" in said.out and not said.err
    for name in NAMES:
        assert f"\n  {name} " in said.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("evalute",), ("no command 'evalute' (did you mean 'evaluate'?)", "Example: python -m rearkit run mnist")),
        (("xyzzy",), ("no command 'xyzzy'\n", "Example: python -m rearkit run mnist")),
        (("train",), ("Missing argument 'RECIPE'", "Example: python -m rearkit train mnist")),
        (("plan", "mnist", "--gpu", "3"), ("No such option '--gpu'", "Example: python -m rearkit plan rear_b_maskgit")),
        (("sample", "smok"), ("smok: no such recipe (did you mean 'smoke'?)",)),
        (("sweep", "componets"), ("componets: no such sweep (did you mean 'components'?)",)),
    ],
)
def test_a_mistake_shows_what_was_meant(
    arguments: tuple[str, ...], expected: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rearkit(*arguments) == 2
    said = capsys.readouterr().err.replace("No such option: --gpu", "No such option '--gpu'")  # of click before 8.2
    for text in expected:
        assert text in said


def test_both_names_are_the_same(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ((), ("run", "--help"), ("runn",), ("sample",)):
        rearkit(*arguments)
        module = capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["/somewhere/bin/rearkit"])
            rearkit(*arguments)
        script = capsys.readouterr()
        assert "Usage: rearkit" in script.out + script.err and "Example: rearkit" in script.out + script.err
        for ours, theirs in ((module.out, script.out), (module.err, script.err)):
            assert ours.replace("python -m rearkit", "rearkit").split() == theirs.split()


def test_shell_completion_offers_commands_and_recipes() -> None:
    assert offered("sw") == ["sweep"]
    assert set(offered("run", "rear_b")) == {
        "rear_b",
        "rear_b_alitok",
        "rear_b_llamagen",
        "rear_b_maskgit",
        "rear_b_titok_b64",
    }
    assert "components" not in offered("run", "comp") and "components" in offered("sweep", "comp")
    assert "weight" in offered("recipes", "--copy", "w")
    assert "--num-gpus" in offered("run", "mnist", "--num")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell: str, tmp_path: Path) -> None:
    """By a process of the name, since completion goes by it."""
    script = tmp_path / "rearkit"
    script.write_text("from rearkit.cli.main import main\nmain()\n", encoding="utf-8")
    environment = os.environ | {"_REARKIT_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
    if "Bash version" not in done.stderr:  # one that is too old, or not there
        assert "_REARKIT_COMPLETE" in done.stdout and "rearkit" in done.stdout.split()


def test_versions_are_what_issues_ask_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert rearkit("version") == 0
    (short,) = capsys.readouterr().out.splitlines()
    assert short.startswith("rearkit ")
    assert rearkit("version", "--verbose") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == short
    entries = dict(line.split(": ", 1) for line in lines[1:])
    assert {"installed in", "Python", "torch", "deepspeed", "platform", "CPU"} <= entries.keys()
    assert any(name.startswith("CUDA") for name in entries)
    (ours,) = (text for name, text in entries.items() if name.startswith("components of rearkit "))
    assert "tokenizer maskgit-vqgan" in ours and "noise linear" in ours
    templates = (Path(__file__).parents[2] / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    assert all("`python -m rearkit version --verbose`" in path.read_text(encoding="utf-8") for path in templates)


def without_locale(command: str) -> subprocess.CompletedProcess[str]:
    places = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "0"}
    return subprocess.run(
        ["bash", "-c", command.replace("rearkit", f"{sys.executable} -m rearkit", 1)],
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("rearkit plugins", 0),
        ("rearkit show nonexist\u00e9", 2),
        ("rearkit recipes >&-", 0),
        ("rearkit show smoke >&- 2>&-", 0),
        ("rearkit recipes > /dev/full", 4),
    ],
)
def test_no_terminal_makes_a_traceback(command: str, code: int) -> None:
    done = without_locale(command)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
