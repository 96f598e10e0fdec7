"""A recipe that names a file of its own run is refused before the file is moved, and only where it would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rearkit import pipeline
from rearkit.errors import RearkitError
from rearkit.recipe.tables import Recipe
from rearkit.stages.flow import STAGES
from rearkit.stages.own_files import check_own_files
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Outcome, Stage, run_stage

REFUSED = "is of this run, which would move it aside"
REAL = {stage.name: stage for stage in STAGES}


def in_short(name: str, *inputs: str) -> Stage:
    """A stage with the tables of the real one, which writes one file."""

    def run(recipe: Recipe, folder: RunFolder) -> Outcome:
        (folder.stage(name) / "out").write_text(f"{name} {recipe.seed}")
        return Outcome({}, ("out",))

    return Stage(name, inputs, lambda recipe, folder: REAL[name].tables(recipe, None), run)


FLOW = (
    in_short("tokenizer"),
    in_short("train", "tokenizer"),
    in_short("sample", "train"),
    in_short("evaluate", "sample"),
)


@pytest.fixture
def folder(tiny: Callable[..., Recipe], tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    for stage in FLOW:
        run_stage(stage, tiny(), folder)
    return folder


@pytest.mark.parametrize(
    ("table", "key", "stage"),
    [
        ("tokenizer", "weights", "tokenizer"),
        ("backbone", "weights", "train"),
        ("evaluate", "reference", "evaluate"),
        ("evaluate", "feature_weights", "evaluate"),
    ],
)
def test_the_result_of_a_stage_that_would_be_made_anew_is_refused(
    table: str, key: str, stage: str, tiny: Callable[..., Recipe], folder: RunFolder
) -> None:
    file = folder.stage(stage) / "out"
    with pytest.raises(RearkitError, match=rf"\[{table}\] {key}: {file} {REFUSED}"):
        check_own_files(FLOW, tiny(**{table: {key: str(file)}}), folder, None)
    assert file.is_file()


def test_a_folder_of_tokens_is_refused_as_a_file_is(tiny: Callable[..., Recipe], folder: RunFolder) -> None:
    tokens = in_short("tokens")
    run_stage(tokens, tiny(), folder)
    with pytest.raises(RearkitError, match=rf"\[tokens\] pretokenized: .* {REFUSED}"):
        check_own_files([tokens], tiny(tokens={"pretokenized": str(folder.stage("tokens"))}), folder, None)


def test_files_of_stages_that_stay_may_be_named(tiny: Callable[..., Recipe], folder: RunFolder) -> None:
    named = tiny(evaluate={"reference": str(folder.stage("sample") / "out")})
    check_own_files(FLOW, named, folder, None)
    run_stage(FLOW[-1], named, folder)
    check_own_files(FLOW, named, folder, None)
    check_own_files(FLOW, named, folder, "evaluate")
    # But not where a stage before it, or itself, runs again.
    for again in ("sample", "tokenizer"):
        with pytest.raises(RearkitError, match=REFUSED):
            check_own_files(FLOW, named, folder, again)
    with pytest.raises(RearkitError, match=REFUSED):
        check_own_files(FLOW, tiny(seed=1, evaluate={"reference": named.evaluate.reference}), folder, None)
    check_own_files(FLOW[-1:], tiny(seed=1, evaluate={"reference": named.evaluate.reference}), folder, None)


def test_what_was_moved_aside_may_be_named_until_something_else_is(
    tiny: Callable[..., Recipe], folder: RunFolder
) -> None:
    place, kept = folder.stage("tokenizer"), folder.previous("tokenizer")
    kept.parent.mkdir()
    place.rename(kept)
    named = {"tokenizer": {"weights": str(kept / "out")}}
    check_own_files(FLOW[:1], tiny(**named), folder, None)
    place.mkdir()  # by a stage that failed: it is removed, and what was finished stays
    check_own_files(FLOW[:1], tiny(**named), folder, None)
    run_stage(FLOW[0], tiny(**named), folder)
    check_own_files(FLOW[:1], tiny(**named), folder, None)
    with pytest.raises(RearkitError, match=REFUSED):
        check_own_files(FLOW[:1], tiny(seed=1, **named), folder, None)


def test_links_do_not_hide_it(tiny: Callable[..., Recipe], folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder.path)
    (tmp_path / "file").symlink_to(folder.stage("train") / "out")
    for path in (tmp_path / "link" / "train" / "out", tmp_path / "file"):
        with pytest.raises(RearkitError, match=REFUSED):
            check_own_files(FLOW, tiny(backbone={"weights": str(path)}), folder, None)


def test_a_run_is_refused_before_anything_is_moved(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    for split in ("train", "held"):
        for label in range(2):
            (tmp_path / split / str(label)).mkdir(parents=True)
            for index in range(4):
                Image.fromarray(np.full((8, 8, 3), 100 * label + index, np.uint8)).save(
                    tmp_path / split / str(label) / f"{index}.png"
                )
    source = {"name": "folder", "train": str(tmp_path / "train"), "held_out": str(tmp_path / "held")}
    fit = {"steps": 1, "warmup_steps": 0, "batch": 4, "min_psnr": 0}
    recipe = tiny(data={"source": source}, tokenizer={"fit": fit}, sample={"num_images": 5})
    for stage in ("data", "tokenizer"):
        folder = pipeline.run(recipe, tmp_path / "run", only=stage)
    before = (folder.tokenizer.read_bytes(), folder.recipe.read_bytes())
    named = {"fit": fit, "weights": str(folder.tokenizer)}
    further = tiny(data={"source": source}, tokenizer=named, sample={"num_images": 5})
    for only in ("tokenizer", None):
        with pytest.raises(RearkitError, match=REFUSED):
            pipeline.run(further, folder.path, only=only)
    assert before == (folder.tokenizer.read_bytes(), folder.recipe.read_bytes())
    assert not folder.previous("tokenizer").exists()
