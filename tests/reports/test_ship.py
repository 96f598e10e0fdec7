"""An exported model stands alone, and tells nothing of the machine that trained it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import rearkit
from rearkit.cli.main import main
from rearkit.contracts import Classes
from rearkit.errors import RearkitError, WeightsError
from rearkit.model import build
from rearkit.recipe.loading import load_recipe, recipe_to_dict
from rearkit.recipe.tables import Recipe
from rearkit.reports.ship import export_run
from rearkit.sampling.sampler import sample
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import save_resolved_recipe
from rearkit.stages.train import export
from rearkit.system.files import sha256, write_json
from rearkit.system.weight_files import read_state_dict
from rearkit.weights import write_state_dict

NAMES = ("cat", "dog", "a third thing")
HELD = ("README.md", "classes.json", "manifest.json", "model.safetensors", "recipe.toml", "samples.png")


@pytest.fixture(scope="module")
def run(tiny: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A trained run of a folder of photographs, as far as exporting it looks at it."""
    home = tmp_path_factory.mktemp("anna-home")
    recipe = tiny(
        data={"source": {"name": "folder", "train": str(home / "train"), "held_out": str(home / "val")}},
        train={"trackers": {"wandb_entity": "anna"}},
        evaluate={"reference": str(home / "reference.npz")},
    )
    model = build(recipe, classes=Classes(3, NAMES))
    folder = RunFolder(home / "runs" / "tiny")
    folder.tokenizer.parent.mkdir(parents=True)
    write_state_dict(folder.tokenizer, model.tokenizer.state_dict())
    export(model, 4, folder)
    write_json(folder.record("train"), {"key": "x", "digest": "", "outputs": {}, "result": {}})
    # What a run has besides, and is not to leave it.
    folder.nearest.parent.mkdir()
    Image.new("RGB", (8, 8)).save(folder.nearest)
    scores = {
        "fid": 3.25, "inception_score": 2.0, "precision": 0.5, "recall": 0.25, "fid_floor": None,
        "class_agreement": None, "feature_space": f"the classifier {home}/c.safetensors; not comparable",
        "classifier_accuracy": None, "num_samples": 4, "num_held_out": 0, "reference": f"{home}/reference.npz",
        "manifest": {"format": 1, "weights": {"backbone": sha256(folder.model)}, "recipe": {"name": str(home)}},
    }  # fmt: skip
    write_json(folder.scores, scores)
    return folder


@pytest.fixture(scope="module")
def shipped(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("shipped") / "model"
    export_run(run.path, target, "mit")
    return target


def test_the_folder_has_the_model_and_nothing_of_the_machine(run: RunFolder, shipped: Path) -> None:
    names = sorted(path.name for path in shipped.iterdir())
    assert names == sorted((*HELD, "scores.json", "tokenizer.safetensors"))
    for path in shipped.iterdir():
        content = path.read_bytes()
        for told in (b"anna", str(Path.cwd()).encode(), str(run.path.parent).encode()):
            assert told not in content, (path.name, told)
    with safe_open(shipped / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["rearkit"])["steps"] == 4


def test_the_card_says_what_it_is_and_scores(shipped: Path) -> None:
    card = (shipped / "README.md").read_text(encoding="utf-8")
    front = card.split("---\n")[1]
    assert "library_name: rearkit\n" in front and "license: mit\n" in front
    assert "- FID 3.25 (4 samples against reference.npz)" in card
    assert "the classifier c.safetensors; not comparable" in card
    assert "3 classes: cat, dog, a third thing" in card and "Trained for 4 steps of 8 images" in card
    assert all(f"`{name}`" in card for name in (*HELD[1:], "scores.json"))
    assert json.loads((shipped / "classes.json").read_text()) == list(NAMES)
    manifest = json.loads((shipped / "manifest.json").read_text())
    assert manifest["weights"]["backbone"] == sha256(shipped / "model.safetensors")
    assert load_recipe(shipped / "recipe.toml").data.source.settings.train == "train"
    # A row for each class.
    assert Image.open(shipped / "samples.png").size == (8 * 98 + 2, 3 * 98 + 2)


def test_the_folder_is_a_model(run: RunFolder, shipped: Path) -> None:
    alone, in_run = rearkit.load_model(shipped), rearkit.load_model(run.model)
    assert alone.classes == Classes(3, NAMES)
    found, expected = (sample(model, [0, 1, 2]) for model in (alone, in_run))
    assert np.array_equal(found.images, expected.images)
    for name, value in in_run.tokenizer.state_dict().items():
        assert torch.equal(alone.tokenizer.state_dict()[name], value)


def rearkit_line(*arguments: object) -> object:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def test_the_commands_take_the_folder(
    run: RunFolder, shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rearkit_line("export", run.path, tmp_path / "again") == 0
    for path in shipped.iterdir():
        if path.name != "README.md":  # which names the licence
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert "license" not in (tmp_path / "again" / "README.md").read_text(encoding="utf-8")
    assert rearkit_line("sample", shipped, "--to-folder", tmp_path / "pngs") == 0
    assert len(list((tmp_path / "pngs").glob("*.png"))) == 4
    assert rearkit_line("sample", shipped, "--class=dog", "--grid", tmp_path / "dogs.png") == 0
    photo = next((tmp_path / "pngs").glob("*.png"))
    assert rearkit_line("reconstruct", shipped, photo, "--grid", tmp_path / "rebuilt.png") == 0
    capsys.readouterr()
    assert rearkit_line("export", run.path, shipped) == 2
    assert "not an empty folder; choose another, or remove it" in capsys.readouterr().err
    assert rearkit_line("evaluate", shipped) == 2
    assert "it needs --reference FILE" in capsys.readouterr().err


def test_a_folder_of_a_model_is_scored_against_a_reference(shipped: Path, tmp_path: Path) -> None:
    from rearkit.evaluation.classifier import Classifier, save_classifier

    torch.manual_seed(0)
    save_classifier(Classifier(3, 4, 6), tmp_path / "c.safetensors")
    np.savez(tmp_path / "r.npz", np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    line: tuple[Any, ...] = ("--reference", tmp_path / "r.npz", "--feature-weights", tmp_path / "c.safetensors")
    changed = ("--set=sample.num_images=12", "--cache", tmp_path / "cache", "--to", tmp_path / "scores.json")
    assert rearkit_line("evaluate", shipped, *line, *changed) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["num_samples"] == 12 and found["manifest"]["weights"]["backbone"]


def test_what_is_no_trained_run_or_no_model_is_refused(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(RearkitError, match="no run that is trained to its end"):
        export_run(tmp_path, tmp_path / "x")
    with pytest.raises(WeightsError, match=r"no model\.safetensors in it"):
        rearkit.load_model(tmp_path)


def test_scores_of_other_weights_are_left_out(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run.scores.read_text()
    try:
        run.scores.write_text(whole.replace(sha256(run.model), "0" * 64))
        export_run(run.path, tmp_path / "x")
    finally:
        run.scores.write_text(whole)
    assert "of other weights than the run's, and left out" in capsys.readouterr().out
    assert not (tmp_path / "x" / "scores.json").exists()
    assert "None yet." in (tmp_path / "x" / "README.md").read_text(encoding="utf-8")


def test_a_model_is_not_exported_with_another_tokenizer(run: RunFolder, tmp_path: Path) -> None:
    whole, scores = run.tokenizer.read_bytes(), run.scores.read_text()
    changed = {name: value + 1 for name, value in read_state_dict(run.tokenizer).items()}
    try:
        write_state_dict(run.tokenizer, changed)
        with pytest.raises(WeightsError, match="not the tokenizer that"):
            export_run(run.path, tmp_path / "x")
        assert not (tmp_path / "x").exists()
        run.tokenizer.write_bytes(whole)
        content = json.loads(scores)
        content["manifest"]["weights"]["tokenizer"] = "0" * 64
        write_json(run.scores, content)
        export_run(run.path, tmp_path / "y")
    finally:
        run.tokenizer.write_bytes(whole)
        run.scores.write_text(scores)
    assert not (tmp_path / "y" / "scores.json").exists()


def test_the_settings_of_sampling_are_those_of_the_samples_and_scores(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_scale(scale: float) -> dict[str, Any]:
        return {**recipe_to_dict(trained), "sample": {**recipe_to_dict(trained)["sample"], "guidance_scale": scale}}

    def exported(place: str) -> tuple[float, bool]:
        export_run(run.path, tmp_path / place)
        scale = load_recipe(tmp_path / place / "recipe.toml").sample.guidance_scale
        assert rearkit.load_model(tmp_path / place).recipe.sample.guidance_scale == scale
        return scale, (tmp_path / place / "scores.json").exists()

    trained, whole = load_recipe(run.model, trust=True), run.scores.read_text()
    weights = {"backbone": sha256(run.model)}
    try:
        # Run again with another guidance, as far as drawing.
        save_resolved_recipe(load_recipe(with_scale(3.0)), run)
        assert exported("without samples") == (3.0, True)
        run.samples.parent.mkdir()
        np.savez(run.samples, np.zeros((1, 8, 8, 3), np.uint8))
        manifest = {"format": 1, "weights": weights, "recipe": with_scale(5.0)}
        with zipfile.ZipFile(run.samples, "a") as archive:
            archive.writestr("manifest.json", json.dumps(manifest))
        assert exported("with samples") == (5.0, True)
        write_json(run.scores, {**json.loads(whole), "manifest": {**manifest, "recipe": with_scale(2.0)}})
        assert exported("with scores of others") == (5.0, False)
        assert "the scores are of other settings of [sample] than the run's, and left out" in capsys.readouterr().out
        write_json(run.scores, {**json.loads(whole), "manifest": manifest})
        assert exported("with scores of the same") == (5.0, True)
    finally:
        run.scores.write_text(whole)
        run.samples.unlink(missing_ok=True)
        run.recipe.unlink(missing_ok=True)
