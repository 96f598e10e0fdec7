from __future__ import annotations

import pytest

from rearkit.sampling.sampler import balanced_classes
from rearkit.stages.sample import grid_numbers


@pytest.mark.parametrize(
    ("num_images", "num_classes", "grid_classes", "per_class", "rows", "columns"),
    [(12, 3, 10, 10, 3, 4), (11, 3, 10, 10, 3, 3), (40, 4, 2, 5, 2, 5), (2, 5, 10, 10, 2, 1), (1, 5, 10, 10, 1, 1)],
)
def test_each_row_of_the_grid_is_one_class(
    num_images: int, num_classes: int, grid_classes: int, per_class: int, rows: int, columns: int
) -> None:
    classes = balanced_classes(num_images, num_classes)
    numbers, found = grid_numbers(classes, grid_classes, per_class)
    assert found == columns and len(numbers) == rows * columns
    assert len(set(numbers)) == len(numbers)
    for label in range(rows):
        assert {classes[number] for number in numbers[label * columns : (label + 1) * columns]} == {label}
