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
# A run in seconds: what it makes is not looked at.
BRIEF = {
    "data.source.train_per_class": 2,
    "data.source.held_out_per_class": 1,
    "tokenizer.hidden_channels": 4,
    "tokenizer.fit.steps": 2,
    "tokenizer.fit.warmup_steps": 1,
    "tokenizer.fit.batch": 4,
    "tokenizer.fit.min_psnr": 0,
    "tokens.min_psnr": 0,
    "tokens.min_codebook_use": 0,
    "train.steps": 2,
    "train.warmup_steps": 1,
    "train.global_batch": 4,
    "train.log_every": 1,
    "sample.num_images": 10,
    "evaluate.classifier.steps": 1,
    "evaluate.classifier.min_accuracy": 0,
}


def overrides() -> list[str]:
    return [word for key, value in BRIEF.items() for word in ("--set", f"{key}={value}")]


def test_installed_named_in_a_recipe_and_uninstalled(
    install: Callable[[Path], Path], rearkit: Command, tmp_path: Path
) -> None:
    site = install(PROJECT)

    listed = rearkit("plugins", path=[site])
    assert listed.returncode == 0, listed.stderr
    for component in ("noise cosine", "regularizer next-embedding"):
        assert f"{component}  rearkit-example 0.1.0" in listed.stdout
    assert "m at the start of training" in listed.stdout

    done = rearkit("run", str(RECIPE), "--out", str(tmp_path / "run"), *overrides(), path=[site])
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


def test_it_uses_public_names_only() -> None:
    for path in PROJECT.rglob("*.py"):
        for module in re.findall(r"(?:from|import) (rearkit(?:\.\w+)*)", path.read_text(encoding="utf-8")):
            assert module in {"rearkit", "rearkit.contracts", "rearkit.testing"}, f"{path} imports {module}"
