"""A sweep's page for documents: its figures are those of the runs, and making it again changes nothing."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from rearkit.analysis.chance import order
from rearkit.errors import RecipeError, StorageError
from rearkit.evaluation.fidelity import frechet
from rearkit.evaluation.gaussians import Gaussian
from rearkit.pipeline import run
from rearkit.stages.data import run_classes
from rearkit.stages.evaluate import features_and_reference
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import run_recipe
from rearkit.sweeps.claim import claim
from rearkit.sweeps.predictions import noted, verdict
from rearkit.sweeps.report import shown_command, sweep_and_report
from rearkit.sweeps.sharing import COMMON, link, prepare_common
from rearkit.sweeps.sweep import load_sweep
from rearkit.system.files import read_json
from tests.helpers.page_figures import check

ROOT = Path(__file__).parents[2]
# The second variant samples from the first one's models, so that two trainings are enough.
SWEEP = f"""
name = "small"
recipe = "{ROOT / "recipes" / "smoke.toml"}"
seeds = [0, 1]
prediction = "Guidance helps, since it always has."
expected = ["guided", "plain"]
resamples = 6
diagnose = 10
[variants.plain]
[variants.guided]
sample.guidance_scale = 3.0
[published]
guided = 2.5
"""
SMALLER = ["train.steps=6", "tokenizer.fit.steps=8", "sample.num_images=20", "evaluate.classifier.steps=20"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A sweep's file, its folder, and the folder of its page."""
    top = tmp_path_factory.mktemp("written")
    (top / "small.toml").write_text(SWEEP, encoding="utf-8")
    sweep = load_sweep(top / "small.toml", SMALLER)
    claim(sweep, top / "runs")
    # In this process, since starting one for each run takes longer than the runs.
    shared = prepare_common([run.recipe for run in sweep.runs], top / "runs")
    for planned, common in zip(sweep.runs, shared, strict=True):
        folder = RunFolder(top / "runs" / planned.name)
        folder.claim(planned.recipe.name)
        link(common, folder, (*COMMON, "classifier"))
        run(planned.recipe, folder.path)
    sweep_and_report(top / "small.toml", SMALLER, top / "runs", 2, top / "docs")
    return top / "small.toml", top / "runs", top / "docs"


def test_each_figure_of_the_page_is_in_its_files(swept: tuple[Path, Path, Path]) -> None:
    assert check(swept[2] / "small.md") > 60


def test_the_page_says_what_was_expected_and_what_was_found(swept: tuple[Path, Path, Path]) -> None:
    _, runs, docs = swept
    page = (docs / "small.md").read_text(encoding="utf-8")
    fids = {
        name: np.mean([RunFolder(runs / f"{name}-s{seed}").result("evaluate")["fid"] for seed in (0, 1)])
        for name in ("plain", "guided")
    }
    best = ", ".join(sorted(fids, key=fids.__getitem__))
    assert "Guidance helps, since it always has." in page
    assert f"Expected by FID, best first: guided, plain. Found: {best}. Pair by pair" in page
    assert re.search(r"(as predicted|the other way round|not to be told apart): guided before plain\.", page)
    assert "## The prediction, made before the runs" in page
    assert "| `sample.guidance_scale` |" in page and "Seeds 0, 1 of training" in page and "torch " in page
    assert "| published |" in page and page.count("| 2.50 |") == page.count("| – |") == 1
    assert f"The whole order, {best}, comes out again in" in page
    titles = run_classes(RunFolder(runs / "plain-s0")).titles
    assert f"seeds and classes; from top to bottom {', '.join(titles)}." in page
    assert f"From top to bottom: {', '.join(titles)}." in (runs / "comparison.html").read_text(encoding="utf-8")
    # The command as it can be run elsewhere, with what was changed; no path of this machine.
    assert f"sweep …/small.toml --set {' --set '.join(SMALLER)} --docs …/docs`" in page
    assert str(docs.parent) not in page


def test_all_its_pictures_are_there_and_none_is_left_over(swept: tuple[Path, Path, Path]) -> None:
    page = (swept[2] / "small.md").read_text(encoding="utf-8")
    files = {path.name for path in (swept[2] / "small").iterdir()}
    named = {line.rpartition("(small/")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")}
    assert files == named | {"table.csv", "figures.csv", "charts.csv", "recipe.toml"}
    assert {"samples-plain.png", "exposure-bias-along-the-image.svg", "held-out-cross-entropy.svg"} <= named
    chart = (swept[2] / "small" / "held-out-cross-entropy.svg").read_text(encoding="utf-8")
    assert "guided" in chart and "Held-out cross-entropy" in chart and "var(" not in chart


def test_making_it_again_measures_nothing_and_changes_nothing(
    swept: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("rearkit.stages.evaluate.features_and_reference", refuse)
    monkeypatch.setattr("rearkit.analysis.diagnose.measure", refuse)
    file, runs, docs = swept
    sweep_and_report(file, SMALLER, runs, 2, tmp_path / "docs")
    for path in (path for path in docs.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "docs" / path.relative_to(docs)).read_bytes(), path


def test_draws_are_from_the_features_that_fid_is_of(swept: tuple[Path, Path, Path]) -> None:
    folder = RunFolder(swept[1] / "plain-s1")
    features_nF, reference = features_and_reference(run_recipe(folder), folder)
    rows = features_nF.astype(np.float64)
    found = frechet(Gaussian(rows.mean(0), np.cov(rows, rowvar=False)), reference)
    # The runs share what they are compared with.
    assert len(list((swept[1] / "features").iterdir())) == 1
    assert found == pytest.approx(folder.result("evaluate")["fid"], rel=1e-4)


def test_a_figure_changed_by_hand_is_noticed(swept: tuple[Path, Path, Path], tmp_path: Path) -> None:
    shutil.copytree(swept[2], tmp_path, dirs_exist_ok=True)
    page = tmp_path / "small.md"
    with (tmp_path / "small" / "figures.csv").open(encoding="utf-8") as file:
        shown = next(row["shown"] for row in csv.DictReader(file) if row["column"] == "FID ↓")
    page.write_text(page.read_text(encoding="utf-8").replace(shown, "1.00 ± 0.01"), encoding="utf-8")
    with pytest.raises(AssertionError):
        check(page)


def test_a_prediction_changed_after_the_runs_is_one_made_after_them(
    swept: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    file, runs, _ = swept
    later = tmp_path / "later.toml"
    later.write_text(file.read_text(encoding="utf-8").replace("Guidance helps, since", "It does harm, as"))
    kept = (runs / "sweep.json").read_bytes()
    sweep_and_report(later, SMALLER, runs, 2, tmp_path / "docs")
    page = (tmp_path / "docs" / "small.md").read_text(encoding="utf-8")
    before, after = page.split("## The prediction, made after 4 runs had been trained")
    assert "made before the runs" in before and "Guidance helps" in before and "It does harm" in after
    (runs / "sweep.json").write_bytes(kept)


def test_trainings_that_are_taken_over_were_known_when_a_prediction_was_made(
    swept: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    file, runs, _ = swept
    claim(load_sweep(file, SMALLER), tmp_path, [RunFolder(runs / "plain-s1")])
    (prediction,) = read_json(tmp_path / "sweep.json")["predictions"]
    assert prediction["trained"] == 2  # both variants have this model


def test_a_prediction_is_noted_once() -> None:
    first = noted(None, "a", ["x", "y"], 0)
    assert noted({"predictions": first}, "a", ["x", "y"], 4) == first
    second = noted({"predictions": first}, "b", ["x", "y"], 4)
    assert [(one["prediction"], one["trained"]) for one in second] == [("a", 0), ("b", 4)]
    assert noted(None, "", [], 0) == []
    # Taken out of the file, it stays what it was; an order alone is a prediction.
    assert noted({"predictions": first}, "", [], 4) == first
    assert len(noted({"predictions": first}, "", ["x", "y"], 4)) == 2


def test_a_verdict_is_only_of_what_can_be_told_apart() -> None:
    fids = np.array([[10.0, 10.1, 9.9], [8.0, 8.1, 7.9], [8.02, 7.98, 8.0]])
    noise = np.random.default_rng(0).normal(size=(3, 3, 50)) * 0.1
    told = verdict(["a", "b", "c"], order(["a", "b", "c"], fids, fids[..., None] + noise))
    assert "the other way round: a before b, a before c; not to be told apart: b before c." in told
    assert "as predicted" not in told and "There is no verdict" in verdict(["a", "b"], None)


def test_equal_variants_are_not_told_apart() -> None:
    fids = np.full((2, 3), 8.0)
    told = verdict(["a", "b"], order(["a", "b"], fids, fids[..., None]))
    assert told.endswith("agree, not to be told apart: a before b.")


def test_a_verdict_on_variants_that_are_gone_says_so() -> None:
    fids = np.array([[10.0, 10.1], [8.0, 8.1]])
    found = order(["a", "b"], fids, fids[..., None])
    for expected in (["x", "y"], ["a", "y"]):
        assert verdict(expected, found).endswith("no two of these variants are in the sweep's file any more.")
    assert verdict(["a", "y", "b"], found).endswith("agree, the other way round: a before b.")


def test_a_command_shows_no_path_of_the_machine_and_can_be_run() -> None:
    source = 'data.source={name="folder",train="/home/anna/my/train",held_out="relative/test"}'
    told = shown_command(Path("recipes/a.toml"), [source, "train.lr=1e-3"], Path("docs/of me"))
    assert told == (
        'python -m rearkit sweep recipes/a.toml --set \'data.source={name="folder",train="…/train",'
        "held_out=\"relative/test\"}' --set train.lr=1e-3 --docs 'docs/of me'"
    )
    assert shown_command(Path("/a/c.toml"), [], Path("/docs")) == "python -m rearkit sweep …/c.toml --docs …/docs"


def test_a_folder_that_cannot_be_written_is_told_before_the_runs(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SWEEP, encoding="utf-8")
    with pytest.raises(StorageError, match=r"--docs: .*s\.toml: File exists; choose another folder"):
        sweep_and_report(tmp_path / "s.toml", SMALLER, tmp_path / "runs", 1, tmp_path / "s.toml")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("expected", ['"plain"', '"plain", "plain"'])
def test_an_expected_order_has_two_variants_each_once(tmp_path: Path, expected: str) -> None:
    (tmp_path / "s.toml").write_text(SWEEP.replace('"guided", "plain"', expected), encoding="utf-8")
    with pytest.raises(RecipeError, match="two variants or more, each once"):
        load_sweep(tmp_path / "s.toml")


def test_an_order_of_unknown_variants_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SWEEP.replace('"guided", "plain"', '"guided", "plian"'), encoding="utf-8")
    with pytest.raises(RecipeError, match="expected: no variant 'plian'; there are plain, guided"):
        load_sweep(tmp_path / "s.toml")
