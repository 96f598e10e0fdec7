"""A training goes on by a changed ``[train]``: weights, optimizer state and step stay, and the join is seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rearkit import pipeline
from rearkit.cli.main import main
from rearkit.errors import RearkitError
from rearkit.recipe.loading import load_recipe
from rearkit.stages.flow import STAGES
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import up_to_date
from rearkit.training.logs import read_log

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"
# In the warm-up and without noise, nothing depends on the number of steps: two halves must equal the whole.
SETTINGS = (
    "train.steps=6", "train.warmup_steps=5", "train.log_every=1", "noise.name=none", "tokenizer.fit.steps=6",
    "tokens.min_psnr=0", "tokens.min_codebook_use=0", "tokenizer.fit.min_psnr=0", "device=cpu",
)  # fmt: skip
MORE = "train.steps=9"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("course") / "run"
    recipe = load_recipe(SMOKE, SETTINGS)
    for stage in ("data", "tokenizer", "tokens", "train"):
        pipeline.run(recipe, out, only=stage)
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunFolder:
    """A copy of the trained run."""
    shutil.copytree(trained, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def command(*arguments: object) -> object:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def changed(*more: str) -> list[str]:
    return [f"--set={setting}" for setting in (*SETTINGS, *more)]


def test_two_halves_are_the_whole_and_the_join_is_seen(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(run.model)
    whole = RunFolder(tmp_path / "whole")
    shutil.copytree(run.path, whole.path)
    assert command("train", SMOKE, *changed(MORE), f"--out={whole.path}") == 0
    assert "going on from step" not in capsys.readouterr().out
    assert command("train", SMOKE, *changed(MORE), "--continue", f"--out={run.path}") == 0
    said = capsys.readouterr().out
    assert "goes on from step 6 with [train] steps 6 → 9; the learning rate goes from" in said
    assert "train: going on from step 6 of 9" in said
    found, expected = weights(run.model), weights(whole.model)
    assert any(not torch.equal(found[name], before[name]) for name in found)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    # What was there is kept, as weights alone.
    kept = weights(run.previous("train") / "model.safetensors")
    assert all(torch.equal(kept[name], before[name]) for name in before)
    assert not (run.previous("train") / "checkpoints").exists()
    # In the log, the record and the report.
    lines = read_log(run.stage("train"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [line["step"] for line in lines if "join" in line] == [6]
    assert run.result("train")["courses"] == [{"step": 6, "changed": {"steps": [6, 9]}}]
    page = run.report.read_text(encoding="utf-8")
    assert "Training went on from step 6 with [train] steps 6 → 9" in page and "; changed step 6" in page
    # The same line once more, as a scheduler would give it: there is nothing left to do.
    assert command("train", SMOKE, *changed(MORE), "--continue", f"--out={run.path}") == 0
    assert "train: up to date" in capsys.readouterr().out
    # And a second change of course, with another learning rate.
    third = changed("train.steps=12", "train.lr=1e-4", "train.end_lr=1e-5")
    assert command("train", SMOKE, *third, "--continue", f"--out={run.path}") == 0
    courses = run.result("train")["courses"]
    assert [course["step"] for course in courses] == [6, 9]
    assert courses[1]["changed"]["lr"][1] == 1e-4
    assert read_log(run.stage("train"))[-1]["lr"] <= 1e-4


def test_a_stage_that_is_run_alone_with_the_changed_recipe_does_not_stand_in_the_way(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    # As a training that was cut off after its last checkpoint.
    run.record("train").unlink()
    run.model.unlink()
    assert command("tokens", SMOKE, *changed(MORE), f"--out={run.path}") == 0
    assert command("train", SMOKE, *changed(MORE), "--continue", f"--out={run.path}") == 0
    assert "goes on from step 6 with [train] steps 6 → 9" in capsys.readouterr().out
    assert run.result("train")["courses"] == [{"step": 6, "changed": {"steps": [6, 9]}}]


def test_without_it_training_starts_anew(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("train", SMOKE, *changed(MORE), f"--out={run.path}") == 0
    assert "the earlier result is kept in" in capsys.readouterr().out
    assert "courses" not in run.result("train") and not any("join" in line for line in read_log(run.stage("train")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ("train.lr=1e-4",),
            "6 steps are taken, and [train] steps = 6 in all; say how many in all: --set train.steps=",
        ),
        ((MORE, "train.seed=5"), "[train] seed cannot change on the way"),
        ((MORE, "train.global_batch=8"), "[train] global_batch cannot change on the way"),
        ((MORE, "backbone.num_layers=2"), "only [train] may change, and [backbone] did"),
        ((MORE, "tokenizer.fit.steps=7"), "stage 'tokenizer' has changed, and training follows it"),
    ],
)
def test_what_cannot_go_on_is_refused_and_nothing_is_touched(
    settings: tuple[str, ...], message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", SMOKE, *changed(*settings), "--continue", f"--out={trained}") == 2
    assert message in capsys.readouterr().err
    assert up_to_date(STAGES[:4], load_recipe(SMOKE, SETTINGS), RunFolder(trained))
    assert not RunFolder(trained).previous("train").exists()


def test_without_a_training_or_a_checkpoint_it_is_refused(run: RunFolder, tmp_path: Path) -> None:
    recipe = load_recipe(SMOKE, (*SETTINGS, MORE))
    with pytest.raises(RearkitError, match="has no training to go on with; leave --continue out"):
        pipeline.run(recipe, tmp_path / "other", go_on=True)
    shutil.rmtree(run.stage("train") / "checkpoints")
    with pytest.raises(RearkitError, match="has no intact checkpoint; leave --continue out"):
        pipeline.run(recipe, run.path, go_on=True)


def test_again_and_continue_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("run", SMOKE, "--again=train", "--continue") == 2
    assert "give one of them" in capsys.readouterr().err
