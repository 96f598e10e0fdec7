from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rearkit.errors import DataError
from rearkit.evaluation.classifier import Classifier, save_classifier
from rearkit.evaluation.feature_spaces import classifier_space
from rearkit.evaluation.features import extract
from rearkit.evaluation.image_streams import MemoryImages, NpzImages, StreamedImages, in_batches, take


def pixels(count: int = 10, side: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_an_archive_reads_as_its_images_in_any_batches_and_as_often_as_asked(save, size: int, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    save(tmp_path / "set.npz", pixels(), np.arange(10))
    images = NpzImages.open(tmp_path / "set.npz")
    assert len(images) == 10
    for _ in range(2):
        parts = list(images.batches(size))
        assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
        np.testing.assert_array_equal(torch.cat(parts).permute(0, 2, 3, 1).numpy(), pixels())
    labels = images.labels()
    assert labels is not None and labels.tolist() == list(range(10))


def test_labels_that_are_no_classes_of_the_images_are_none(tmp_path: Path) -> None:
    for name, labels in (
        ("fewer", np.arange(9)),
        ("floats", np.zeros(10)),
        ("square", np.zeros((10, 2), int)),
        ("of images", np.arange(10) + 10**12),
    ):
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels(), arr_1=labels)
        assert NpzImages.open(tmp_path / f"{name}.npz").labels() is None
    np.savez(tmp_path / "none.npz", pixels())
    assert NpzImages.open(tmp_path / "none.npz").labels() is None


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pixels().astype(np.int64), r"int64, but pixels are uint8 from 0 to 255; .*255 \* x"),
        (pixels().astype(np.float32) * 9, r"float32, but pixels are uint8 .* lie in 0 to 2295, which is no range"),
        (pixels() / np.float32(64) - 2, r"float32, but pixels are uint8 .* lie in -2 to 1.984, which is no range"),
        (np.full((2, 4, 4, 3), np.nan), "lie in nan to nan"),
        (np.array([{"not": "images"}] * 3), "holds Python objects"),
        (np.full((2, 4, 4, 3), None), "holds Python objects"),
        (pixels()[..., 0], r"shape \(10, 4, 4\)"),
        (pixels()[:, :2], r"shape \(10, 2, 4, 3\)"),
        (pixels().transpose(1, 0, 2, 3)[:3], r"shape \(3, 10, 4, 3\)"),
        (np.asfortranarray(pixels()), "Fortran"),
        (pixels()[:0], "has no images"),
        (pixels()[:0].astype(np.float32), "has no images"),
    ],
)
def test_arrays_that_are_no_images_are_refused_by_name(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", array)
    with pytest.raises(DataError, match=rf"set\.npz: .*arr_0.*({message})"):
        NpzImages.open(tmp_path / "set.npz")


def test_missing_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.npz: no such file"):
        NpzImages.open(tmp_path / "gone.npz")
    (tmp_path / "text.npz").write_text("nonsense")
    with pytest.raises(DataError, match=r"text\.npz: no \.npz with images"):
        NpzImages.open(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", some=pixels(), others=pixels())
    with pytest.raises(DataError, match=r"other\.npz: no \.npz with images in arr_0 .*some \(10, 4, 4, 3\), others"):
        NpzImages.open(tmp_path / "other.npz")


def test_an_archive_whose_array_is_shorter_than_it_says_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, pixels())
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", buffer.getvalue()[:-50])
    with pytest.raises(DataError, match=r"short\.npz: .*arr_0.npy should have 480 bytes by its header, and has 430"):
        NpzImages.open(tmp_path / "short.npz")


def test_an_archive_that_is_cut_off_after_it_was_opened_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", pixels())
    images = NpzImages.open(tmp_path / "set.npz")
    (tmp_path / "set.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"set\.npz: damaged or truncated"):
        list(images.batches(3))


def test_digests_tell_sets_apart_by_content(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pixels())
    np.savez(tmp_path / "b.npz", pixels())
    changed = pixels()
    changed[9, 3, 3, 2] ^= 1
    np.savez(tmp_path / "c.npz", changed)
    a, b, c = (NpzImages.open(tmp_path / f"{name}.npz").digest() for name in "abc")
    assert a == b != c
    plain = torch.from_numpy(pixels()).permute(0, 3, 1, 2)
    same, other = MemoryImages(plain.clone()).digest(), MemoryImages(torch.from_numpy(changed).permute(0, 3, 1, 2))
    assert MemoryImages(plain).digest() == same != other.digest()


def test_images_are_taken_by_number_from_any_source() -> None:
    plain = torch.from_numpy(pixels()).permute(0, 3, 1, 2)
    streamed = StreamedImages(10, lambda size, _: in_batches(iter(plain), size), "name")
    for source in (MemoryImages(plain), streamed):
        assert torch.equal(take(source, [7, 0, 7, 9], batch=4), plain[[7, 0, 7, 9]])


def test_a_stream_may_hold_more_or_fewer_images_than_it_announces(tmp_path: Path) -> None:
    save_classifier(Classifier(3, 2, 4), tmp_path / "classifier.safetensors")
    space = classifier_space(tmp_path / "classifier.safetensors", "test")
    plain = torch.from_numpy(pixels()).permute(0, 3, 1, 2)
    expected = extract(MemoryImages(plain), space, 3, torch.device("cpu"))
    for announced in (0, 4, 25):
        source = StreamedImages(announced, lambda size, _: in_batches(iter(plain), size), "name")
        found = extract(source, space, 3, torch.device("cpu"))
        torch.testing.assert_close(found.features, expected.features)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"arr_0": pixels().astype(np.float32) / 255}, "read float32 from 0 to 1"),
        ({"arr_0": pixels().astype(np.float64) / 127.5 - 1}, "read float64 from -1 to 1"),
        ({"arr_0": (pixels() / 255).astype(np.float16)}, "read float16 from 0 to 1"),
        ({"arr_0": (pixels() / 255).astype(">f8")}, "read >f8 from 0 to 1"),
        ({"arr_0": pixels().astype(np.float32)}, "read float32 from 0 to 255"),
        ({"arr_0": pixels().transpose(0, 3, 1, 2)}, "read channels first"),
        ({"samples": pixels(), "classes": np.arange(10)}, "read from samples"),
        ({"x": pixels().transpose(0, 3, 1, 2) / 255}, "read from x, channels first, float64 from 0 to 1"),
    ],
)
def test_images_in_another_clear_layout_are_read_and_that_is_said(
    arrays: dict[str, np.ndarray], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    images = NpzImages.open(tmp_path / "set.npz")
    assert f"set.npz: images are {said}\n" in capsys.readouterr().out
    found = torch.cat(list(images.batches(3))).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(found, pixels())
    assert images.shape == (10, 4, 4, 3)
