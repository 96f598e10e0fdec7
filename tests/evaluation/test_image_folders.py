"""Samples as image files, through the command line: the same scores as those of the same pixels in an ``.npz``."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from rearkit.cli.main import cli
from rearkit.data.decoding import Decoding
from rearkit.data.image_files import ImageFile
from rearkit.errors import DataError, RearkitError
from rearkit.evaluation.classifier import Classifier, save_classifier
from rearkit.evaluation.fidelity import read_reference
from rearkit.evaluation.image_folders import FileImages, open_samples

CLASSES = 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    classifier = Classifier(CLASSES, 4, 6)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.mul_(3)
    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_classifier(classifier, path)
    return path


def pixels(count: int = 12, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def lay(root: Path, images: np.ndarray, classes: np.ndarray | None = None, suffix: str = "png") -> Path:
    """Write images as files, flat or in class folders."""
    for number, image in enumerate(images):
        folder = root if classes is None else root / str(classes[number])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.{suffix}")
    return root


def run(*arguments: object) -> Result:
    found = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
    assert found.exit_code == 0, found.output
    return found


def scored(samples: Path, reference: Path, weights: Path, *more: object) -> dict[str, object]:
    to = reference.with_name("scores.json")
    cache = reference.with_name("cache")
    run(
        "--samples",
        samples,
        "--reference",
        reference,
        "--feature-weights",
        weights,
        "--to",
        to,
        "--cache",
        cache,
        *more,
    )
    found: dict[str, object] = json.loads(to.read_text())
    return found


@pytest.mark.parametrize("kind", ["flat", "tar", "bmp"])
def test_files_are_scored_as_their_pixels_in_an_archive(kind: str, weights: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", pixels(20, seed=1))
    np.savez(tmp_path / "x.npz", pixels())
    source = lay(tmp_path / "set", pixels(), suffix="bmp" if kind == "bmp" else "png")
    if kind == "tar":
        with tarfile.open(tmp_path / "set.tar", "w") as archive:
            archive.add(source, arcname="set")
        source = tmp_path / "set.tar"
    expected = scored(tmp_path / "x.npz", tmp_path / "reference.npz", weights)
    assert scored(source, tmp_path / "reference.npz", weights) == expected


def test_class_folders_are_mixed_so_that_no_score_collapses(weights: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", pixels(20, seed=1))
    classes = np.repeat(np.arange(CLASSES), 50)
    images = pixels(200)
    np.savez(tmp_path / "sorted.npz", images, arr_1=classes)
    in_order = scored(tmp_path / "sorted.npz", tmp_path / "reference.npz", weights)
    assert any("in class order (by arr_1)" in str(line) for line in in_order["warnings"])  # type: ignore[attr-defined]
    found = scored(lay(tmp_path / "set", images, classes), tmp_path / "reference.npz", weights)
    assert found["warnings"] == []
    assert found["fid"] == pytest.approx(in_order["fid"], abs=1e-4)


def test_sorted_samples_are_shuffled_on_request(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rearkit.evaluation import class_predictions

    monkeypatch.setattr(class_predictions, "SPLIT", 50)
    np.savez(tmp_path / "reference.npz", pixels(20, seed=1))
    images, classes = pixels(200), np.repeat(np.arange(CLASSES), 50)
    np.savez(tmp_path / "sorted.npz", images, arr_1=classes)
    plain = scored(tmp_path / "sorted.npz", tmp_path / "reference.npz", weights)
    for seed in (0, 7):
        found = scored(tmp_path / "sorted.npz", tmp_path / "reference.npz", weights, "--shuffle", seed)
        # Image i is in the split that its place in the permutation falls into.
        order = torch.randperm(200, generator=torch.Generator().manual_seed(seed)).argsort().numpy()
        np.savez(tmp_path / "mixed.npz", images[order], arr_1=classes[order])
        mixed = scored(tmp_path / "mixed.npz", tmp_path / "reference.npz", weights)
        assert found["inception_score"] == pytest.approx(mixed["inception_score"], rel=1e-5)
        assert found["inception_score"] != plain["inception_score"]
        assert found["fid"] == pytest.approx(plain["fid"])
        assert found["shuffle"] == seed and plain["shuffle"] is None
        assert not any("in class order" in str(line) for line in found["warnings"])  # type: ignore[attr-defined]
    told = run("--samples", tmp_path / "sorted.npz", "--reference", tmp_path / "reference.npz", "--feature-weights",
               weights, "--cache", tmp_path / "cache", "--shuffle", 7).output  # fmt: skip
    assert f"Inception Score {found['inception_score']:.2f} (on a permutation, seed 7)" in told


def test_what_is_no_sample_is_refused_by_name(tmp_path: Path) -> None:
    lay(tmp_path / "sizes", pixels(3))
    Image.new("RGB", (8, 9)).save(tmp_path / "sizes" / "5.png")
    with pytest.raises(DataError, match=r"5\.png: 8×9 pixels, but the first image has 8×8; resize them"):
        list(open_samples(tmp_path / "sizes").batches(2))
    oblong = tmp_path / "oblong"
    oblong.mkdir()
    Image.new("RGB", (8, 9)).save(oblong / "1.png")
    with pytest.raises(DataError, match=r"1\.png: 8×9 pixels, but images are squares"):
        open_samples(oblong)
    lay(tmp_path / "broken", pixels(2))
    (tmp_path / "broken" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png: image cannot be decoded; make it again"):
        list(open_samples(tmp_path / "broken").batches(2))


def test_photographs_become_squares_of_a_reference(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number, size in enumerate(((40, 30), (30, 50), (64, 64))):
        Image.new("RGB", size, (number, 9, 9)).save(tmp_path / "photos" / f"{number}.jpg")
    (part,) = FileImages.open(tmp_path / "photos", Decoding(16, "adm")).batches(8)
    assert part.shape == (3, 3, 16, 16)


def test_files_are_read_a_batch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_samples(lay(tmp_path / "set", pixels(60)))
    read: list[str] = []
    plain = ImageFile.read
    monkeypatch.setattr(ImageFile, "read", lambda file: read.append(file.name) or plain(file))
    parts = source.batches(4)
    for number in range(1, 4):
        assert len(next(parts)) == 4 and len(read) == 4 * number


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_reference_of_files_gives_the_scores_of_their_pixels(kind: str, weights: Path, tmp_path: Path) -> None:
    real = pixels(30, seed=1)
    np.savez(tmp_path / "direct.npz", real)
    np.savez(tmp_path / "x.npz", pixels())
    source = lay(tmp_path / "real", real)
    if kind == "shards":
        (tmp_path / "shards").mkdir()
        for start in (0, 15):
            with tarfile.open(tmp_path / "shards" / f"{start:06d}.tar", "w") as archive:
                for number in range(start, start + 15):
                    archive.add(source / f"{number}.png", arcname=f"{number}.png")
        source = tmp_path / "shards"
    told = run("--images", source, "--make-reference", tmp_path / "made.npz", "--feature-weights", weights,
               "--cache", tmp_path / "cache").output  # fmt: skip
    assert "made.npz: 30 images and their statistics" in told
    with np.load(tmp_path / "made.npz") as made:
        assert set(made.files) == {"arr_0", "mu", "sigma", "mu_s", "sigma_s", "manifest.json"}
        assert made["mu"].shape == (6,) and made["sigma"].dtype == np.float64
        assert sorted(map(bytes, made["arr_0"])) == sorted(map(bytes, real))
    direct, found = (scored(tmp_path / "x.npz", tmp_path / f"{name}.npz", weights) for name in ("direct", "made"))
    for key in ("fid", "sfid", "precision", "recall", "inception_score", "warnings"):
        assert found[key] == pytest.approx(direct[key], rel=1e-6)


def test_the_forms_of_the_command_are_kept_apart(tmp_path: Path) -> None:
    for arguments, expected in (
        (("--images", tmp_path), "--images needs --make-reference OUT.npz"),
        (("--samples", tmp_path, "--make-reference", "x.npz"), "--make-reference: not with --samples"),
        (("--images", tmp_path, "--shuffle", 1), "--shuffle: not with --images"),
        (("mnist", "--make-reference", "x.npz", "--image-size", 8), "--image-size: not with a RECIPE"),
    ):
        found = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
        assert found.exit_code == 2 and expected in found.output, found.output
    with pytest.raises(RearkitError, match=r"--reference: .* evaluate --images FOLDER --make-reference OUT"):
        read_reference(tmp_path, "--reference")
