from __future__ import annotations

import torch

from rearkit.layers.distinct_classes import distinct_classes, known_distinct


def test_samples_of_a_class_share_it() -> None:
    classes_U, row_B = distinct_classes(torch.tensor([5, 3, 5, 9]))
    assert classes_U.tolist() == [3, 5, 9]
    assert row_B is not None and classes_U[row_B].tolist() == [5, 3, 5, 9]
    assert distinct_classes(torch.tensor([1, 2, 4]))[1] is None


def test_off_the_cpu_they_are_those_that_were_counted() -> None:
    classes_B = torch.zeros(4, dtype=torch.int64, device="meta")
    assert distinct_classes(classes_B) == (classes_B, None)
    known_U, known_B = torch.tensor([3, 7]), torch.tensor([0, 1, 1])
    with known_distinct(known_U, known_B):
        classes_U, row_B = distinct_classes(classes_B)
    # The decoder's fourth sample is its third once more.
    assert classes_U is known_U and row_B is not None and row_B.tolist() == [0, 1, 1, 1]
    assert distinct_classes(classes_B)[1] is None
