from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rearkit.sampling.parts import Parts, count_samples, write_npz, write_part
from rearkit.sampling.sampler import Samples, balanced_classes
from rearkit.stages.sample import missing_samples


def samples_of(numbers: list[int], side: int = 2) -> Samples:
    """Samples that tell their numbers."""
    values = np.array(numbers)
    images = np.broadcast_to(values[:, None, None, None] % 256, (len(values), side, side, 3)).astype(np.uint8)
    return Samples(images, values % 3, np.stack([values, values + 1], axis=1))


@given(st.integers(1, 40), st.integers(1, 9), st.randoms())
def test_parts_in_any_order_make_one_file_in_order(
    tmp_path_factory: pytest.TempPathFactory, count: int, batch: int, random: object
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    numbers = list(range(count))
    random.shuffle(numbers)  # type: ignore[attr-defined]
    for start in range(0, count, batch):
        write_part(folder, numbers[start : start + batch], samples_of(numbers[start : start + batch]))
    assert count_samples(folder) == count
    (folder / "manifest.json").write_text("{}")
    classes = balanced_classes(count, 3)
    write_npz(folder / "all.npz", Parts(folder), classes, folder / "manifest.json")
    with np.load(folder / "all.npz") as archive:
        images = archive["arr_0"]
        assert np.array_equal(images, samples_of(list(range(count))).images) and images.dtype == np.uint8
        assert archive["arr_1"].tolist() == classes
        assert sorted(archive.files) == ["arr_0", "arr_1", "manifest.json", "tokens"]
        assert archive["tokens"].tolist() == [[number, number + 1] for number in range(count)]


def test_what_is_missing_is_made_class_after_class(tmp_path: Path) -> None:
    classes = balanced_classes(12, 3)
    assert missing_samples(tmp_path, classes) == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    write_part(tmp_path, [3, 6], samples_of([3, 6]))
    assert missing_samples(tmp_path, classes) == [0, 9, 1, 4, 7, 10, 2, 5, 8, 11]


@pytest.mark.parametrize("damage", ["cut", "empty", "nonsense"])
def test_a_part_that_cannot_be_read_is_made_again(damage: str, tmp_path: Path) -> None:
    write_part(tmp_path, [0, 1], samples_of([0, 1]))
    write_part(tmp_path, [2, 3], samples_of([2, 3]))
    (path, _) = sorted(tmp_path.glob("*.safetensors"))
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-5], "empty": b"", "nonsense": b"\xff" * 50}[damage])
    assert missing_samples(tmp_path, [0, 1, 2, 0]) == [0, 1]
    assert not path.exists()


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        for start in range(0, count, 10):
            write_part(folder, list(range(start, start + 10)), samples_of(list(range(start, start + 10)), side=64))
        (folder / "manifest.json").write_text("{}")
        parts = Parts(folder)
        tracemalloc.start()
        write_npz(folder / "all.npz", parts, [0] * count, folder / "manifest.json")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = peak(100), peak(800)
    assert many < few + 100_000  # of 12,288 bytes an image
