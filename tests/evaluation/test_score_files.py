"""``evaluate --samples X.npz --reference Y.npz`` and ``evaluate --compare A B``, through the command line."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from rearkit.analysis.differences import describe, difference_lines
from rearkit.cli.main import cli
from rearkit.errors import RearkitError, WeightsError
from rearkit.evaluation import scores as scoring
from rearkit.evaluation.classifier import Classifier, save_classifier
from rearkit.evaluation.feature_spaces import inception_space, space_of_file
from rearkit.evaluation.features import FeatureCache, extract
from rearkit.evaluation.image_streams import MemoryImages, NpzImages
from rearkit.evaluation.score_files import evaluate_files as evaluate_by
from rearkit.evaluation.scores import Scorer
from rearkit.sampling.manifest import MEMBER, read_manifest

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"


def evaluate_files(samples: Path, reference: Path, weights: str, cache: FeatureCache | None = None, k: int = 3) -> Any:
    scorer = Scorer(space_of_file(weights), 64, k, "auto", cache or FeatureCache.default())
    return evaluate_by(samples, reference, scorer)


MANIFEST: dict[str, Any] = {
    "format": 1,
    "weights": {"backbone": "ab" * 32, "tokenizer": "cd" * 32},
    "seeds": {"seed": 3},
    "num_images": 12,
    "counts_per_class": [4, 4, 4],
    "versions": {"rearkit": "0.1.0"},
    "recipe": {
        "name": "mine",
        "backbone": {"name": "dit-ar"},
        "data": {"source": {"name": "mnist-5k"}},
        "regularizers": [{"name": "codebook-embedding", "weight": 1.0}],
        "sample": {"guidance_scale": 2.0, "temperature": 1.0},
    },
}


def save(path: Path, seed: int, count: int = 12, side: int = 8, manifest: Any = None, **arrays: Any) -> Path:
    generator = np.random.default_rng(seed)
    images = arrays.pop("images", generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8))
    np.savez(path, images, **arrays)
    if manifest is not None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(MEMBER, json.dumps(manifest))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    classifier = Classifier(3, 4, 6)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.mul_(3)
    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_classifier(classifier, path)
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return save(tmp_path / "reference.npz", 100, count=20)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])


def warned(samples: Path, reference: Path, weights: Path, tmp_path: Path) -> list[str]:
    return evaluate_files(samples, reference, str(weights), cache=FeatureCache(tmp_path / "cache")).warnings


def test_two_files_are_scored_without_a_recipe(weights: Path, reference: Path, tmp_path: Path) -> None:
    samples = save(tmp_path / "x.npz", 1, manifest=MANIFEST, arr_1=np.arange(12) % 3)
    found = run(
        "--samples", samples, "--reference", reference, "--feature-weights", weights, "--cache", tmp_path / "cache",
        "--to", tmp_path / "scores.json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["manifest"] == MANIFEST and scores["warnings"] == []
    for expected in (
        f"FID {scores['fid']:.2f} (12 samples against reference.npz)",
        f"sFID {scores['sfid']:.2f}",
        f"precision {scores['precision']:.3f}, recall {scores['recall']:.3f}",
        "x.npz: recipe mine: dit-ar trained on mnist-5k, guidance_scale 2.0, temperature 1.0",
        "12 images, 4 of each of 3 classes, seed 3",
        "not comparable with published scores",
    ):
        assert expected in found.output, expected
    assert "no manifest in it" in run("--samples", reference, "--reference", reference, "--feature-weights", weights,
                                      "--cache", tmp_path / "cache").output  # fmt: skip


def test_features_are_kept_by_content_of_images_and_weights(
    weights: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    plain = scoring.extract
    monkeypatch.setattr(scoring, "extract", lambda *given: passes.append(given[4]) or plain(*given))
    cache = FeatureCache(tmp_path / "cache")
    samples = save(tmp_path / "x.npz", 1)

    def scored(path: Path) -> Any:
        return evaluate_files(path, reference, str(weights), cache=cache)

    first = scored(samples)
    assert passes == ["samples", "reference images"]
    copy = tmp_path / "copy.npz"
    copy.write_bytes(samples.read_bytes())
    assert scored(copy) == first and len(passes) == 2
    save(samples, 2)
    assert scored(samples).fid != first.fid and len(passes) == 3
    for path in (tmp_path / "cache").glob("*"):
        path.write_bytes(path.read_bytes()[:100])
    assert scored(copy) == first and len(passes) == 5


def test_nothing_is_said_of_a_proper_set(weights: Path, reference: Path, tmp_path: Path) -> None:
    samples = save(tmp_path / "x.npz", 1, manifest=MANIFEST, arr_1=np.arange(12) % 3)
    assert warned(samples, reference, weights, tmp_path) == []


def test_what_is_suspicious_is_told(weights: Path, reference: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    twice = noise.copy()
    twice[6:] = twice[:6]
    other = {**MANIFEST, "recipe": {**MANIFEST["recipe"], "data": {"source": {"name": "folder", "train": "cats"}}}}
    imagenet = save(tmp_path / "VIRTUAL_imagenet8.npz", 100, count=20)
    theirs = save(tmp_path / "theirs.npz", 100, count=20, manifest=other)
    cases = [
        ({"images": twice}, reference, r"6 of 12 images are exact copies of others in the set \(one occurs 2 times"),
        ({"images": noise % 2}, reference, "values lie in 0 to 1: saved without scaling"),
        ({"images": noise % 90}, reference, "span only 0 to 89 of 0 to 255"),
        ({"arr_1": np.array([0] * 6 + [1] * 3 + [2] * 3)}, reference, "unbalanced: 3 to 6 samples a class over 3"),
        ({"arr_1": np.array([0] * 6 + [2] * 6)}, reference, "unbalanced: 0 to 6 samples a class over 3"),
        ({"manifest": {"format": 1}, "images": noise % 90}, reference, "span only 0 to 89"),  # and no number in it
        ({"manifest": MANIFEST, "count": 11}, reference, "the manifest is of 12 images, the set has 11"),
        ({"manifest": MANIFEST, "arr_1": np.array([0] * 12)}, reference, "the classes in arr_1 are not those that"),
        ({"side": 16}, reference, "samples are of 16 pixels a side, the reference's images of 8"),
        ({"manifest": MANIFEST}, imagenet, r"another dataset\? .* trained on mnist-5k, .* called VIRTUAL_imagenet8"),
        ({"manifest": MANIFEST}, theirs, "trained on mnist-5k, the reference is of folder cats"),
        ({"images": noise // 60 + 190}, reference, "no image of the reference lies within the samples' manifold"),
    ]
    for arrays, against, expected in cases:
        samples = save(tmp_path / "x.npz", 1, **arrays)
        found = warned(samples, against, weights, tmp_path)
        assert any(re.search(expected, line) for line in found), (expected, found)
        assert len(found) <= 3, found


def test_mistakes_are_told_in_a_line(weights: Path, reference: Path, tmp_path: Path) -> None:
    samples = save(tmp_path / "x.npz", 1)
    assert "give a RECIPE, or --samples" in run().output
    assert "give a RECIPE, or --samples" in run("--samples", samples, "--compare", samples, samples).output
    assert "--samples needs --reference" in run("--samples", samples).output
    for arguments, expected in (
        ((SMOKE, "--reference", reference, "--batch", 64), "--reference, --batch: not with a RECIPE; --set evaluate."),
        (("--samples", samples, "--reference", reference, "--set", "a=1", "--tokenizer"),
         "--set, --tokenizer: not with --samples"),
        (("--compare", samples, samples, "--to", tmp_path / "x.json", "--out", tmp_path),
         "--out, --to: not with --compare"),
    ):  # fmt: skip
        found = run(*arguments)
        assert found.exit_code == 2 and expected in found.output, found.output
    with pytest.raises(RearkitError, match=r"--reference: .*gone\.npz"):
        evaluate_files(samples, tmp_path / "gone.npz", str(weights))
    with pytest.raises(RearkitError, match=r"other\.safetensors: not the classifier of a run"):
        save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
        evaluate_files(samples, reference, str(tmp_path / "other.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:50])
    with pytest.raises(WeightsError, match=r"cut\.safetensors: not a readable weights file"):
        evaluate_files(samples, reference, str(tmp_path / "cut.safetensors"))
    with pytest.raises(RearkitError, match=r"few\.npz: scores need more than 4 images, and there are 3; .*--nearest-k"):
        evaluate_files(samples, save(tmp_path / "few.npz", 1, count=3), str(weights))
    with pytest.raises(RearkitError, match="the samples: scores need more than 4 images"):
        evaluate_files(tmp_path / "few.npz", reference, str(weights))


# What differs


def test_compare_names_each_setting_that_differs(tmp_path: Path) -> None:
    changed = json.loads(json.dumps(MANIFEST))
    changed["recipe"]["sample"]["temperature"] = 0.5
    changed["recipe"]["regularizers"][0]["weight"] = 2.0
    changed["weights"]["backbone"] = "ef" * 32
    del changed["recipe"]["backbone"]
    a = save(tmp_path / "a.npz", 1, manifest=MANIFEST)
    b = save(tmp_path / "b.npz", 2, manifest=changed)
    found = run("--compare", a, b)
    assert found.exit_code == 0, found.output
    assert sorted(line.split(":")[0] for line in found.output.splitlines()) == [
        "recipe.backbone.name", "recipe.regularizers.0.weight", "recipe.sample.temperature", "weights.backbone",
    ]  # fmt: skip
    assert "recipe.sample.temperature: 1 → 0.5" in found.output
    assert "recipe.backbone.name: dit-ar → –" in found.output
    assert "no setting differs" in run("--compare", a, a).output


def test_compare_takes_runs_and_scores_too_and_shows_their_numbers(tmp_path: Path) -> None:
    scores = {"fid": 2.0, "feature_space": "s", "reference": "r", "num_samples": 12, "manifest": MANIFEST}
    (tmp_path / "run" / "sample").mkdir(parents=True)
    save(tmp_path / "run" / "sample" / "samples.npz", 1, manifest=MANIFEST)
    (tmp_path / "run" / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "scores.json").write_text(json.dumps({**scores, "fid": 3.0, "reference": "q"}))
    lines = difference_lines(describe(tmp_path / "run"), describe(tmp_path / "scores.json"))
    assert lines[0].startswith("no setting differs")
    assert lines[1:] == ["scores.reference: r → q", "scores.fid: 2 → 3"]
    save(tmp_path / "run" / "sample" / "samples.npz", 2, manifest={**MANIFEST, "seeds": {"seed": 4}})
    assert describe(tmp_path / "run").manifest == MANIFEST  # the scores are not of the newer samples


def test_compare_says_where_there_is_nothing_to_compare(tmp_path: Path) -> None:
    plain, good = save(tmp_path / "plain.npz", 1), save(tmp_path / "good.npz", 1, manifest=MANIFEST)
    for path, message in ((plain, "neither a manifest"), (tmp_path / "gone", "no such file")):
        with pytest.raises(RearkitError, match=message):
            describe(path)
    (tmp_path / "scores.json").write_text(json.dumps({"fid": 1.0, "feature_space": "s", "manifest": None}))
    assert difference_lines(describe(good), describe(tmp_path / "scores.json"))[0].endswith("settings are unknown")


# torch-fidelity's Inception, with random weights


def test_inception_gives_what_adms_evaluator_takes(inception: Path, tmp_path: Path) -> None:
    images = NpzImages.open(save(tmp_path / "x.npz", 1, count=6, side=16))
    space = inception_space(str(inception))
    found = extract(images, space, 4, torch.device("cpu"))
    assert found.features.shape == (6, 2048)
    assert found.spatial.mu.shape == (17 * 17 * 7,) and found.spatial.sigma.shape == (2023, 2023)
    network = space.load(cuda=False)
    kept = []
    network.get_submodule("Mixed_6d.branch1x1").register_forward_hook(lambda _m, _i, output: kept.append(output))
    with torch.no_grad():
        pool, logits = network(next(images.batches(6)))
    torch.testing.assert_close(found.features, pool, rtol=1e-4, atol=1e-5)
    assert logits.shape == (6, 1008)
    maps = kept[0][:, :7].double().mean(0)  # (7, 17, 17); flattened row by row, channels last
    np.testing.assert_allclose(found.spatial.mu.reshape(17, 17, 7)[3, 5, 2], maps[2, 3, 5].item(), rtol=1e-4)


def test_scores_in_inceptions_space_say_so_and_warn_of_their_number(inception: Path, tmp_path: Path) -> None:
    samples, reference = save(tmp_path / "x.npz", 1, count=6), save(tmp_path / "y.npz", 2, count=6)
    found = evaluate_files(samples, reference, str(inception), FeatureCache(tmp_path / "cache"), 1)
    assert found.feature_space.startswith("Inception-v3")
    assert any("6 samples, where published scores are of 50,000" in line for line in found.warnings)


def test_weights_with_more_than_tensors_in_them_are_never_loaded(tmp_path: Path) -> None:
    class Sneaky:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"fc.weight": Sneaky()}, tmp_path / "weights.pth")
    with pytest.raises(RearkitError, match="holds more than tensors"):
        inception_space(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "touched").exists()
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(RearkitError, match=r"weights\.pth: not the weights of inception-v3-compat"):
        inception_space(str(tmp_path / "weights.pth")).load(cuda=False)


def test_a_set_in_memory_and_in_an_archive_have_the_same_features(weights: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", 1)
    memory = MemoryImages(torch.cat(list(NpzImages.open(path).batches(5))))
    space, device = space_of_file(str(weights)), torch.device("cpu")
    one, other = extract(memory, space, 4, device), extract(NpzImages.open(path), space, 7, device)
    torch.testing.assert_close(one.features, other.features)
    assert torch.equal(one.hashes, other.hashes)
    assert (one.lowest, one.highest, one.side) == (other.lowest, other.highest, other.side)
    np.testing.assert_allclose(one.spatial.sigma, other.spatial.sigma, rtol=1e-5, atol=1e-9)


def test_a_file_that_holds_no_manifest_has_none(tmp_path: Path) -> None:
    assert read_manifest(save(tmp_path / "plain.npz", 1)) is None
    assert read_manifest(save(tmp_path / "text.npz", 1, manifest="words")) is None
    assert read_manifest(tmp_path / "gone.npz") is None
