"""The check of a dataset fails where a clause is broken."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest

from rearkit.contracts import ImageSample
from rearkit.testing import check_dataset


class Grey:
    """A dataset that keeps the contract: six grey images of two classes in each split."""

    num_classes = 2

    def class_names(self) -> Sequence[str] | None:
        return ["dark", "light"]

    def size(self, split: str) -> int | None:
        return 6

    def shards(self, split: str) -> Sequence[str] | None:
        return None

    def images(self, split: str) -> Iterator[ImageSample]:
        for number in range(6):
            yield self.change(ImageSample(f"{number}", np.full((4, 5, 3), number, dtype=np.uint8), number % 2))

    def change(self, sample: ImageSample) -> ImageSample:
        return sample


class LabelsFromOne(Grey):
    def change(self, sample: ImageSample) -> ImageSample:
        return attrs.evolve(sample, label=sample.label + 1)


class SameKeys(Grey):
    def change(self, sample: ImageSample) -> ImageSample:
        return attrs.evolve(sample, key="image")


class DottedKeys(Grey):
    def change(self, sample: ImageSample) -> ImageSample:
        return attrs.evolve(sample, key=f"{sample.key}.png")


class FloatPixels(Grey):
    def change(self, sample: ImageSample) -> ImageSample:
        return attrs.evolve(sample, image=np.zeros((4, 5, 3), dtype=np.float32))


class ChannelsFirst(Grey):
    def change(self, sample: ImageSample) -> ImageSample:
        return attrs.evolve(sample, image=np.zeros((3, 4, 5), dtype=np.uint8))


class LostFile(Grey):
    def change(self, sample: ImageSample) -> ImageSample:
        return attrs.evolve(sample, image=Path("nowhere.png"))


class PairsInstead(Grey):
    def change(self, sample: ImageSample) -> ImageSample:
        return (sample.image, sample.label)  # type: ignore[return-value]


class Shuffled(Grey):
    def images(self, split: str) -> Iterator[ImageSample]:
        samples = list(super().images(split))
        return iter(random.sample(samples, len(samples)))


class EmptyHeldOut(Grey):
    def images(self, split: str) -> Iterator[ImageSample]:
        return iter(()) if split == "held-out" else super().images(split)


class CountsWrong(Grey):
    def size(self, split: str) -> int | None:
        return 7


class ThreeNames(Grey):
    def class_names(self) -> Sequence[str] | None:
        return ["dark", "middle", "light"]


class NoClasses(Grey):
    num_classes = 0


class OneShard(Grey):
    def shards(self, split: str) -> Sequence[str] | None:
        return "train.tar"


def test_a_good_dataset_passes() -> None:
    check_dataset(Grey())
    check_dataset(Grey(), limit=6)
    check_dataset(Grey(), limit=3)


def test_a_dataset_of_shards_yields_no_images() -> None:
    class Remote(Grey):
        def shards(self, split: str) -> Sequence[str] | None:
            return ["https://example.org/0.tar"] if split == "train" else []

        def images(self, split: str) -> Iterator[ImageSample]:
            raise NotImplementedError

    check_dataset(Remote())


@pytest.mark.parametrize(
    ("dataset", "clause"),
    [
        (LabelsFromOne, r"labels must lie in \[0, num_classes\), that is 0 to 1; image '1' has 2"),
        (SameKeys, "a key must be unique within a split; 'image' is not"),
        (DottedKeys, "a key must be a string without a dot"),
        (FloatPixels, "must be pixels, uint8 .* found float32"),
        (ChannelsFirst, r"must be pixels, uint8 of shape \(height, width, 3\).* found uint8 of shape \(3, 4, 5\)"),
        (LostFile, "there is no nowhere.png"),
        (PairsInstead, "must yield ImageSample"),
        (Shuffled, "must yield the same order each time"),
        (EmptyHeldOut, r"images\('held-out'\) must yield images"),
        (CountsWrong, "it is 7, and there are 6"),
        (ThreeNames, "must return a string for each of the 2 classes"),
        (NoClasses, "num_classes must be a whole number from 1; found 0"),
        (OneShard, "must be None, or a list of paths and URLs as strings; found 'train.tar'"),
        (object, "must have num_classes, class_names, size, shards and images"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_dataset_fails(dataset: type[Grey], clause: str) -> None:
    random.seed(0)
    with pytest.raises(AssertionError, match=clause):
        check_dataset(dataset())
