"""rearkit-titok as its users have it: installed, named in recipes, and missing where a recipe names it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "plugins" / "rearkit-titok"
IMAGENET = ROOT / "recipes" / "rear_b_titok_b64.toml"
BASELINE = ROOT / "recipes" / "ar_b_titok_b64.toml"
PUBLISHED = ROOT / "tests" / "reference" / "tiny_titok.weights.safetensors"


@pytest.mark.slow
def test_installed_it_is_listed_and_its_recipes_are_understood(
    install: Callable[[Path], Path], rearkit: Command, tmp_path: Path
) -> None:
    site = install(PROJECT)

    listed = rearkit("plugins", path=[site])
    assert listed.returncode == 0, listed.stderr
    assert "tokenizer titok  rearkit-titok 0.1.0" in listed.stdout

    for recipe in (IMAGENET, BASELINE):
        stopped = rearkit("run", str(recipe), path=[site])
        assert stopped.returncode != 0
        assert "missing: weights/tokenizer_titok_b64.bin: weights of TiTok-B-64's tokenizer" in stopped.stderr
        assert "https://github.com/bytedance/1d-tokenizer" in stopped.stderr
        assert len(stopped.stderr.splitlines()) <= 24  # one screen
        assert not (tmp_path / "runs").exists()

    told = rearkit("convert", str(PUBLISHED), "ours.safetensors", "--to", "rearkit", path=[site])
    assert told.returncode == 0, told.stderr
    assert "weights of tokenizer titok" in told.stdout


def test_not_installed_its_recipes_say_which_package_to_install(rearkit: Command) -> None:
    for recipe in (IMAGENET, BASELINE, PROJECT / "mnist.toml"):
        refused = rearkit("run", str(recipe))
        assert refused.returncode == 2
        lines = refused.stderr.splitlines()
        assert any("[tokenizer] name: unknown tokenizer 'titok'" in line for line in lines)
        assert lines[-1].endswith("requires: rearkit-titok is not installed; run: pip install ./plugins/rearkit-titok")
        assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_whole_run_on_digits(install: Callable[[Path], Path], rearkit: Command, tmp_path: Path) -> None:
    site = install(PROJECT)
    done = rearkit("run", str(PROJECT / "mnist.toml"), "--out", str(tmp_path / "run"), path=[site])
    assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["class_agreement"] > 0.2, scores  # by chance 0.1
    assert (tmp_path / "run" / "report.html").is_file()
    again = rearkit("run", str(PROJECT / "mnist.toml"), "--out", str(tmp_path / "run"), path=[site])
    assert again.stdout.count("up to date") == 6


@pytest.mark.slow
def test_show_counts_the_published_sizes(install: Callable[[Path], Path], rearkit: Command) -> None:
    shown = rearkit("show", str(IMAGENET), path=[install(PROJECT)])
    assert shown.returncode == 0, shown.stderr
    assert "204,814,095" in shown.stdout  # 819 MB in float32, as the recipe says
    assert "64 of 4096 codes" in shown.stdout
    assert re.search(r"tokenizer +│ +titok +│ +rearkit-titok 0\.1\.0", shown.stdout)
