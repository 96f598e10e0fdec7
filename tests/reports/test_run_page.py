from __future__ import annotations

import json
import math
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rearkit.analysis.groups import Group
from rearkit.pipeline import _next
from rearkit.reports import charts, galleries
from rearkit.reports import run_page as report
from rearkit.reports.charts import POINTS, draw, fit_charts, training_charts
from rearkit.reports.comparison_page import outdated
from rearkit.reports.run_page import score_cards, score_notes, stage_rows, write_report
from rearkit.stages.flow import STAGES
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import save_resolved_recipe
from rearkit.stages.stage import stage_key
from rearkit.system.files import write_json, write_text
from rearkit.system.versions import git_revision

KEY = "key"

SCORES: dict[str, Any] = {
    "fid": 4.625,
    "inception_score": 7.75,
    "precision": 0.625,
    "recall": 0.375,
    "fid_floor": 1.125,
    "class_agreement": 0.875,
    "feature_space": "9 features of a classifier; not Inception, so not comparable",
    "classifier_accuracy": 0.9375,
    "num_samples": 12,
    "num_held_out": 30,
    "reference": "40 training images",
    "sfid": 5.5,
    "warnings": ["6 of 12 images are exact copies of others in the set"],
    "manifest": None,
    "held_out": {"fid": 1.125, "sfid": 2.25, "inception_score": 8.5, "precision": 0.75, "recall": 0.75},
    "nearest": {"among": "training images", "distance": 1.5, "held_out_distance": 1.75, "identical": 0, "shown": 6},
    "tokenizer": {
        "rfid": 3.25,
        "psnr": 23.5,
        "ssim": 0.875,
        "codebook_use": 0.75,
        "perplexity": 8.5,
        "bits_per_pixel": 0.4375,
        "num_images": 30,
        "images": "held-out",
    },
}
RESULTS: dict[str, dict[str, Any]] = {
    "data": {"images": {"train": 40, "held-out": 30}, "num_classes": 3},
    "tokenizer": {"num_tokens": 16, "codebook_size": 12},
    "tokens": {
        "checked_split": "held-out",
        "checked_images": 6,
        "psnr": 23.456,
        "codebook_use": 0.75,
        "perplexity": 8.5,
        "train_views": 40,
        "skipped": {},
    },
    "train": {"steps": 4, "parameters": 12345},
    "sample": {"images": 12, "grid_classes": 3},
    "evaluate": SCORES,
}
LOG = [
    {
        "step": step,
        "loss": 9.0 - step,
        "cross_entropy": 3.0 - step / 8,
        "accuracy": step / 10,
        "regularizer/codebook-embedding/encode": -0.5,
        "regularizer/codebook-embedding/decode": -0.25,
        "noise_level": 0.5 / step,
        "lr": 1e-3,
        "grad_norm": 1.5,
    }
    for step in (1, 2, 3)
] + [{"step": 3, "held_out/cross_entropy": 2.875, "held_out/accuracy": 0.25}]


class Page(HTMLParser):
    """The parts of a page that tests ask for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def finish(folder: RunFolder, recipe: Any, *names: str) -> None:
    """Leave the traces of finished stages, by hand."""
    for stage in STAGES:
        if stage.name in names:
            content = {"key": stage_key(stage, recipe, folder), "digest": stage.name, "seconds": 2.5, "outputs": {}}
            write_json(folder.stage(stage.name) / "stage.json", content | {"result": RESULTS[stage.name]})


def save_grid(path: Path, rows: int, columns: int, side: int = 8) -> None:
    """A grid of flat grey cells with two pixels between them, as the stages save it."""
    image = np.full((rows * (side + 2) + 2, columns * (side + 2) + 2, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = 2 + row * (side + 2), 2 + column * (side + 2)
            image[top : top + side, left : left + side] = 10 * row + column
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def whole(folder: RunFolder, tiny: Any) -> RunFolder:
    """A run whose stages have all finished."""
    finish(folder, tiny(), *RESULTS)
    write_json(folder.stage("data") / "shards.json", {"class_names": ["cat", "a <b>dog</b>", "eel"], "num_classes": 3})
    save_grid(folder.stage("sample") / "samples.png", rows=3, columns=4)
    save_grid(folder.stage("tokens") / "reconstructions.png", rows=2, columns=6)
    save_grid(folder.stage("evaluate") / "nearest.png", rows=4, columns=6)
    write_text(folder.stage("train") / "log.jsonl", "".join(json.dumps(line) + "\n" for line in LOG))
    fit = [{"step": float(step), "loss": 1 / step, "codes_used": 0.5} for step in (1, 2)]
    write_text(folder.stage("tokenizer") / "fit.jsonl", "".join(json.dumps(line) + "\n" for line in fit))
    return folder


def test_a_whole_run_shows_every_part(whole: RunFolder, tiny: Any) -> None:
    write_report(tiny(), whole, STAGES)
    page = Page(whole.path / "report.html")
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == ["scores", "samples", "nearest", "tokenizer", "training", "fit", "stages", "recipe", "versions"]
    for expected in (
        "4.62", "7.75", "0.625", "0.375", "87.5%", "93.8%",  # scores
        "FID 4.62 real images 1.12",
        "sFID 5.50 real images 2.25", "Precision 0.625 real images 0.750",
        "6 of 12 images are exact copies",
        "rFID of 30 held-out images 3.25", "SSIM of these 0.875", "Bits per pixel 0.438",
        "Median distance of a sample to the nearest image 1.5 The same for held-out images 1.75",
        "Feature space: 9 features of a classifier; not Inception, so not comparable.",
        "23.46 dB", "75.0% of 12", "8.5",  # tokenizer
        "12,345 parameters", "linear context noise", "codebook-embedding regularization",
        "mnist-5k",
    ):  # fmt: skip
        assert expected in page.words, expected
    for package in ("rearkit", "torch", "deepspeed", "torch-fidelity", "Python", "platform"):
        assert re.search(rf"{package} \S+", page.words[page.words.index("Versions") :]), package
    assert "has not run" not in page.words and "Out of date" not in page.words


def test_given_weights_are_not_called_trained(whole: RunFolder, tiny: Any) -> None:
    recipe = tiny(backbone={"weights": "some.safetensors"}, train={"steps": 0})
    said = report.summary(recipe, RESULTS | {"train": {"steps": 0, "parameters": 12345}})
    assert said.startswith("A dit-ar backbone of 12,345 parameters, with given weights on mnist-5k")
    (whole.stage("train") / "log.jsonl").unlink()
    write_report(recipe, whole, STAGES)
    assert "There is no training log" in Page(whole.path / "report.html").words


def test_charts_show_each_measurement(whole: RunFolder, tiny: Any) -> None:
    write_report(tiny(), whole, STAGES)
    page = Page(whole.path / "report.html")
    alts = [a["aria-label"] or "" for a in page.all("div") if a.get("role") == "img"]
    assert len(alts) == len(page.all("svg")) == 9
    for title in ("Total loss", "Cross-entropy", "Accuracy", "Noise level", "Learning rate", "Gradient norm"):
        assert any(alt.startswith(title) for alt in alts), title
    assert any("training from 2.875 at step 1 to 2.625 at step 3; held-out from 2.875 at step 3" in a for a in alts)
    assert any("codebook-embedding" in a and "encode from -0.5" in a and "decode from -0.25" in a for a in alts)
    assert any(alt.startswith("Codes in use") for alt in alts)


def test_the_page_refers_to_nothing_outside_itself(whole: RunFolder, tiny: Any) -> None:
    write_report(tiny(), whole, STAGES)
    page = Page(whole.path / "report.html")
    links = [
        value or ""
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href", "srcset", "poster", "data", "action")
    ]
    assert len(links) > 5
    assert [link for link in links if not link.startswith(("data:image/", "#"))] == []
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", page.source)
    assert str(whole.path) not in page.source


def test_samples_stand_beside_their_class(whole: RunFolder, tiny: Any) -> None:
    write_report(tiny(), whole, STAGES)
    page = Page(whole.path / "report.html")
    alts = [attributes["alt"] for attributes in page.all("img")]
    assert alts[:3] == ["Samples of class cat", "Samples of class a <b>dog</b>", "Samples of class eel"]
    assert all(alts)
    nearest = "Samples above, the nearest real image to each below"
    assert alts[3:7] == [nearest] * 4
    assert len(alts) == 9  # and the reconstructions, four columns a picture


def test_classes_have_numbers_once_the_data_is_deleted(whole: RunFolder) -> None:
    assert galleries.common_classes([whole, whole]) == "cat, a <b>dog</b>, eel"
    whole.images.unlink()
    assert galleries.common_classes([whole]) == "0, 1, 2"


def test_tokens_made_elsewhere_have_no_originals(whole: RunFolder, tiny: Any) -> None:
    done = whole.done("tokens")
    assert done is not None
    done["result"] = {"codebook_use": 0.75, "perplexity": 8.5, "train_views": 9, "survival": 0.625}
    write_json(whole.stage("tokens") / "stage.json", done)
    save_grid(whole.stage("tokens") / "reconstructions.png", rows=1, columns=9)
    write_report(tiny(), whole, STAGES)
    page = Page(whole.path / "report.html")
    assert [a["alt"] for a in page.all("img")].count("Images decoded from tokens") == 3
    assert "62.5%" in page.words and "PSNR" not in page.words and "original" not in page.words


def test_strips_are_cut_between_the_cells(tmp_path: Path) -> None:
    save_grid(tmp_path / "grid.png", rows=2, columns=7)
    strips = galleries._strips(tmp_path / "grid.png", rows=2, high=1, columns=5)
    assert [[picture["width"] for picture in row] for row in strips] == [[48, 18], [48, 18]]
    image = galleries._cut(Image.open(tmp_path / "grid.png"), 10, row=1, high=1, left=5, right=7)
    cells = np.asarray(image)[:, :, 0]
    assert (cells[:, :8] == 15).all() and (cells[:, 10:] == 16).all()


def test_samples_over_training_are_shown_for_some_checkpoints(whole: RunFolder, tiny: Any) -> None:
    place = whole.stage("train") / "pictures"
    place.mkdir()
    for step in range(1, 31):
        save_grid(place / f"{step * 100:08d}.png", rows=1, columns=3)
    write_report(tiny(), whole, STAGES)
    shown = [a["alt"] for a in Page(whole.path / "report.html").all("img") if a["alt"].startswith("Samples after")]
    assert len(shown) == 10 and shown[0] == "Samples after 100 steps" and shown[-1] == "Samples after 3000 steps"


def test_maps_of_samples_are_shown_with_what_they_are(whole: RunFolder, tiny: Any) -> None:
    save_grid(whole.sample_maps, rows=2, columns=3)
    record = json.loads(whole.record("sample").read_text())
    write_json(whole.record("sample"), record | {"result": record["result"] | {"maps": ["one", "two", "three"]}})
    write_report(tiny(), whole, STAGES)
    page = Page(whole.path / "report.html")
    assert "Samples beside maps: one, two, three" in [a["alt"] for a in page.all("img")]
    assert "one; two; three" in page.words


def test_what_the_user_wrote_is_escaped(whole: RunFolder, tiny: Any) -> None:
    attack = "<script>alert(1)<b>"
    write_report(tiny(name=attack), whole, STAGES)
    page = Page(whole.path / "report.html")
    assert not page.all("script") and "<b>dog</b>" not in page.source
    assert page.words.count(attack) >= 3  # title, heading, recipe
    assert "a <b>dog</b>" in page.words


@pytest.mark.parametrize("done", [(), ("data",), ("data", "tokenizer"), ("data", "tokenizer", "tokens", "train")])
def test_stages_that_have_not_run_are_said_to_be_missing(folder: RunFolder, tiny: Any, done: tuple[str, ...]) -> None:
    finish(folder, tiny(), *done)
    write_report(tiny(), folder, STAGES)
    page = Page(folder.path / "report.html")
    for name in RESULTS:
        said = f"the stage {name} has not run" in page.words
        assert said == (name != "data" and name not in done), name
    assert f"{len(done)} of 6 stages have run" in page.words
    assert not page.all("img") and not page.all("svg")


def states(recipe: Any, folder: RunFolder) -> dict[str, str]:
    return {row["name"]: row["state"] for row in stage_rows(recipe, folder, STAGES)}


def test_results_of_another_recipe_are_marked(whole: RunFolder, tiny: Any) -> None:
    assert set(states(tiny(), whole).values()) == {"done"}
    changed = tiny(train={"lr": 2e-2})
    expected = dict.fromkeys(("data", "tokenizer", "tokens"), "done")
    assert states(changed, whole) == expected | dict.fromkeys(("train", "sample", "evaluate"), "out of date")
    write_report(changed, whole, STAGES)
    page = Page(whole.path / "report.html")
    assert page.words.count("Out of date") == 4  # the evaluation's in two sections


def test_what_is_next_is_the_first_stage_that_has_anything_to_do(whole: RunFolder, tiny: Any) -> None:
    for only in (None, "tokenizer", "evaluate"):
        assert _next(tiny(), whole, only).startswith(f"open {whole.report}")
    changed = tiny(train={"lr": 2e-2})
    assert _next(changed, whole, "data").startswith("python -m rearkit train with the same recipe")
    whole.record("sample").unlink()
    assert _next(tiny(), whole, "tokenizer").startswith("python -m rearkit sample with the same recipe")


def test_a_run_out_of_date_is_brought_up_by_its_own_recipe(whole: RunFolder, tiny: Any) -> None:
    save_resolved_recipe(tiny(train={"lr": 2e-2}), whole)
    (told,) = outdated([Group("one", [whole])])
    assert told.endswith(f"train, sample, evaluate; run: python -m rearkit run {whole.recipe} --out {whole.path}")


def test_a_stage_cut_off_is_unfinished(folder: RunFolder, tiny: Any) -> None:
    finish(folder, tiny(), "data", "tokenizer", "tokens")
    write_text(folder.stage("train") / KEY, "key\n")
    write_text(folder.stage("train") / "log.jsonl", json.dumps(LOG[0]) + "\n" + '{"step": 2, "lo')
    assert states(tiny(), folder)["train"] == "unfinished"
    write_report(tiny(), folder, STAGES)
    page = Page(folder.path / "report.html")
    assert "The stage train has not finished" in page.words
    assert len(page.all("svg")) == 7  # what was logged is shown all the same


def test_an_older_report_survives_a_failure(whole: RunFolder, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tiny(), whole, STAGES)
    before = (whole.path / "report.html").read_bytes()
    monkeypatch.setattr(charts, "draw", lambda chart: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tiny(), whole, STAGES)
    assert (whole.path / "report.html").read_bytes() == before


def test_scores_that_could_not_be_computed_are_left_out() -> None:
    names = [card["name"] for card in score_cards(SCORES)]
    assert names == ["FID", "sFID", "Inception Score", "Precision", "Recall", "Class agreement"]
    assert [card["floor"] for card in score_cards(SCORES)] == ["1.12", "2.25", "8.50", "0.750", "0.750", "93.8%"]
    missing = dict.fromkeys(("fid_floor", "class_agreement", "classifier_accuracy", "precision", "recall", "sfid"))
    cards = score_cards(SCORES | missing | {"held_out": None})
    assert [(card["name"], card["floor"]) for card in cards] == [("FID", ""), ("Inception Score", "")]
    assert score_cards(None) == [] and score_notes(None) == []


def test_notes_say_what_scores_compare_with() -> None:
    assert "compare only roughly" in " ".join(score_notes(SCORES))
    equal = score_notes(SCORES | {"num_held_out": 12})
    assert "roughly" not in " ".join(equal) and "Published" not in " ".join(equal)
    inception = SCORES | {"feature_space": "Inception-v3 (a port)", "fid_floor": None}
    assert "Published scores are computed from 50,000 samples" in " ".join(score_notes(inception))
    assert "no held-out images" in " ".join(score_notes(inception))
    assert "Published" not in " ".join(score_notes(inception | {"num_samples": 50_000}))


def test_long_logs_are_averaged_and_keep_their_mean() -> None:
    log = [{"step": float(step), "loss": float(step % 7)} for step in range(1, 10_001)]
    (chart,) = training_charts(log)
    (series,) = chart.series
    assert len(series.values) <= POINTS and chart.averaged == 34
    assert sum(series.values) / len(series.values) == pytest.approx(3.0, abs=0.05)
    assert series.steps[0] == pytest.approx(17.5)


def test_values_that_are_not_finite_are_counted_not_drawn() -> None:
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}]
    (chart,) = training_charts(log)
    assert chart.series[0].steps == (1,) and chart.left_out == 2
    assert training_charts([{"step": 1, "loss": math.nan}]) == []


def test_a_fit_shows_what_a_third_party_logs() -> None:
    assert [chart.title for chart in fit_charts([{"step": 1.0, "adversarial_loss": 2.0}])] == ["Adversarial loss"]


def test_drawings_take_their_colours_from_the_page() -> None:
    (chart,) = training_charts([{"step": step, "loss": 1.0 / step, "held_out/loss": 2.0} for step in (1, 2)])
    svg = draw(chart)
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert "var(--series-1)" in svg and "var(--series-2)" in svg and "currentColor" in svg
    assert not re.search(r"#[0-9a-f]{6}\b(?!\))", re.sub(r'(id|href)="[^"]*"|url\([^)]*\)', "", svg))
    assert svg == draw(chart)


def test_a_line_of_many_points_has_no_markers() -> None:
    few, many = (training_charts([{"step": step, "loss": 1.0 / step} for step in range(1, n)])[0] for n in (20, 200))
    # Ticks are drawn in the same way: some of them are left.
    assert draw(few).count("<use") > 19 and draw(many).count("<use") < 19


def test_git_revision_tells_clean_from_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision() == "not a git checkout"
    (tmp_path / "file").write_text("one")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], check=True)
    assert re.fullmatch(r"[0-9a-f]{40}, clean", git_revision())
    (tmp_path / "file").write_text("two")
    assert re.fullmatch(r"[0-9a-f]{40}, with uncommitted changes", git_revision())
    monkeypatch.setenv("PATH", "")
    assert git_revision() == "not a git checkout"
