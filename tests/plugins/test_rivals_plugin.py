"""rearkit-rivals as its users have it: installed, named in recipes, planned, and missing where a recipe names it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "plugins" / "rearkit-rivals"
SWEEP = ROOT / "recipes" / "ablations" / "rivals.toml"
NAMES = (
    "noise scheduled-sampling",
    "noise nearest-code",
    "noise mask-token",
    "regularizer cluster-cross-entropy",
    "regularizer label-smoothing",
    "regularizer self-guided",
)
GUIDED = '[{name = "self-guided", projection_dim = 16}, {name = "label-smoothing"}]'


@pytest.mark.slow
def test_installed_its_methods_are_listed_and_train(
    install: Callable[[Path], Path], rearkit: Command, brief: list[str], tmp_path: Path
) -> None:
    site = install(PROJECT)
    listed = rearkit("plugins", path=[site])
    assert listed.returncode == 0, listed.stderr
    for component in NAMES:
        assert f"{component}  rearkit-rivals 0.1.0" in listed.stdout

    run = tmp_path / "run"
    done = rearkit("run", str(PROJECT / "mnist.toml"), "--out", str(run), *brief, path=[site])
    assert done.returncode == 0, done.stdout + done.stderr
    log = "".join(path.read_text() for path in (run / "train").glob("*.jsonl"))
    assert "regularizer/cluster-cross-entropy/cluster" in log and "regularizer/label-smoothing/smoothing" in log


@pytest.mark.slow
def test_a_plan_counts_the_teacher_and_the_second_pass(install: Callable[[Path], Path], rearkit: Command) -> None:
    site = install(PROJECT)
    plain, guided, drawn = (
        rearkit("plan", str(PROJECT / "mnist.toml"), *options, path=[site])
        for options in (
            ("--set=regularizers=[]",),
            (f"--set=regularizers={GUIDED}",),
            ("--set=regularizers=[]", "--set=noise.name='scheduled-sampling'"),
        )
    )
    assert plain.returncode == guided.returncode == drawn.returncode == 0, guided.stderr + drawn.stderr
    backbone = figure(plain.stdout, "backbone parameters")
    assert figure(guided.stdout, "frozen copies' parameters") == backbone
    assert "frozen copies' parameters" not in plain.stdout
    assert figure(guided.stdout, "training-only head parameters") == 2 * 128 * 16 + 16 * 16 + 16 + 16 + 128
    operations = [figure(done.stdout, "operations of a step") for done in (plain, drawn)]
    assert operations[1] == pytest.approx(operations[0] * 4 / 3, rel=0.02)


def figure(table: str, name: str) -> float:
    """The number beside a name in a table."""
    (line,) = (line for line in table.splitlines() if name in line)
    return float(line.split(name)[1].strip("│ ").split()[0].replace(",", ""))


def test_not_installed_its_recipes_say_which_package_to_install(rearkit: Command) -> None:
    for command, recipe in (("run", PROJECT / "mnist.toml"), ("sweep", SWEEP)):
        refused = rearkit(command, str(recipe))
        assert refused.returncode == 2
        assert "requires: rearkit-rivals is not installed; run: pip install ./plugins/rearkit-rivals" in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_each_variant_of_the_sweep_trains(
    install: Callable[[Path], Path], rearkit: Command, brief: list[str], tmp_path: Path
) -> None:
    site = install(PROJECT)
    once = tmp_path / "rivals.toml"
    text = SWEEP.read_text(encoding="utf-8").replace("seeds = [0, 1]", "seeds = [0]")
    once.write_text(text.replace('"base.toml"', f'"{SWEEP.with_name("base.toml")}"'), encoding="utf-8")
    done = rearkit("sweep", str(once), "--out", str(tmp_path / "sweep"), *brief, path=[site])
    assert done.returncode == 0, done.stdout + done.stderr
    for variant in ("neither", "both", "cluster", "smoothing", "sampling", "near", "mask", "guided"):
        assert list((tmp_path / "sweep").rglob(f"{variant}*/scores.json")), done.stdout


@pytest.mark.slow
def test_two_ranks_train_a_teacher_like_one(install: Callable[[Path], Path], rearkit: Command, tmp_path: Path) -> None:
    """Contrast depends on the micro-batch, so one rank accumulates two; all positions are drawn, in any order."""
    site = install(PROJECT)
    shared = [
        f"--set={setting}"
        for setting in (
            "train.steps=4", "train.warmup_steps=1", "train.log_every=1", "train.validate_every=0",
            "train.micro_batch=8", "tokenizer.fit.steps=6", "tokens.min_psnr=0", "tokens.min_codebook_use=0",
            "tokenizer.fit.min_psnr=0", "noise.name='scheduled-sampling'",
            'regularizers=[{name = "self-guided", projection_dim = 16, positions = 99, decay = 0.5}]',
        )
    ]  # fmt: skip
    smoke = str(ROOT / "recipes" / "smoke.toml")
    for stage in ("data", "tokenizer", "tokens"):
        done = rearkit(stage, smoke, *shared, "--out", str(tmp_path / "one"), path=[site])
        assert done.returncode == 0, done.stderr
    found = {}
    for name, options in {"one": (), "two": ("--num-gpus=2", "--set=train.zero_stage=3")}.items():
        if name == "two":
            shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=shutil.ignore_patterns("train"))
        done = rearkit("train", smoke, *shared, *options, "--out", str(tmp_path / name), path=[site])
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / name / "train" / "log.jsonl").read_text(encoding="utf-8").splitlines()
        found[name] = [json.loads(line)["loss"] for line in lines]
    assert len(found["one"]) == 4
    assert found["two"] == pytest.approx(found["one"], abs=1e-4)
