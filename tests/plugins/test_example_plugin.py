"""The example plugin as its users have it: built, pip-installed, named in a recipe, and uninstalled again."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "plugins" / "rearkit-example"
RECIPE = PROJECT / "example.toml"


def test_installed_named_in_a_recipe_and_uninstalled(
    install: Callable[[Path], Path], rearkit: Command, brief: list[str], tmp_path: Path
) -> None:
    site = install(PROJECT)

    listed = rearkit("plugins", path=[site])
    assert listed.returncode == 0, listed.stderr
    for component in ("noise cosine", "regularizer next-embedding"):
        assert f"{component}  rearkit-example 0.1.0" in listed.stdout
    assert "m at the start of training" in listed.stdout

    done = rearkit(
        "run", str(RECIPE), "--out", str(tmp_path / "run"), *brief, "--set", "tokenizer.hidden_channels=4", path=[site]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    log = "".join(path.read_text() for path in (tmp_path / "run" / "train").glob("*.jsonl"))
    assert "regularizer/next-embedding/next" in log
    assert "regularizer/codebook-embedding/encode" in log

    shutil.rmtree(site)
    refused = rearkit("run", str(RECIPE), "--out", str(tmp_path / "again"), path=[site])
    assert refused.returncode == 2
    assert "Traceback" not in refused.stdout + refused.stderr
    lines = refused.stderr.splitlines()
    assert all(line.startswith(f"error: {RECIPE}: ") for line in lines)
    assert lines[-1].endswith("requires: rearkit-example is not installed; run: pip install ./plugins/rearkit-example")
    assert any(re.search(r"\[noise\] name: unknown noise 'cosine'", line) for line in lines)
    assert any("unknown regularizer 'next-embedding'" in line for line in lines)
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_a_whole_run_with_both(install: Callable[[Path], Path], rearkit: Command, tmp_path: Path) -> None:
    site = install(PROJECT)
    done = rearkit("run", str(RECIPE), "--out", str(tmp_path / "run"), path=[site])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    assert rearkit("run", str(RECIPE), "--out", str(tmp_path / "run"), path=[site]).stdout.count("up to date") == 6
