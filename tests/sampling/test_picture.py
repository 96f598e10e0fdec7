from __future__ import annotations

import pytest

from rearkit.errors import RearkitError
from rearkit.sampling.picture import find_class

NAMES = [
    "tench",
    "goldfish",
    "great white shark",
    "tiger shark",
    "tiger",
    "Tiger cat",
    "Crane",
    "crane",
    "maillot",
    "maillot",
]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("0", 0),
        (" 5 ", 5),
        ("goldfish", 1),
        ("GREAT WHITE SHARK", 2),
        ("gold", 1),
        ("tiger", 4),
        ("tiger c", 5),
        ("crane", 7),
    ],
)
def test_a_class_is_found_by_number_name_or_the_beginning_of_its_name(text: str, label: int) -> None:
    assert find_class(text, NAMES) == label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "no class '10'; there are numbers 0 to 9"),
        ("CRANE", "may be any of 2 classes (6 Crane, 7 crane)"),
        ("maillot", "may be any of 2 classes (8 maillot, 9 maillot)"),
        ("goldfsh", "did you mean 'goldfish'"),
        ("tiger cats", "did you mean 'Tiger cat'"),
        ("g", "may be any of 2 classes (1 goldfish, 2 great white shark)"),
        ("", "no class ''"),
        ("-1", "no class '-1'"),
    ],
)
def test_what_is_no_class_is_refused_with_a_hint(text: str, message: str) -> None:
    with pytest.raises(RearkitError) as caught:
        find_class(text, NAMES)
    assert message in str(caught.value)


def test_a_number_that_could_mean_two_classes_is_refused() -> None:
    names = ["0", "1", "2", "10", "3", "4", "5", "6", "7", "8", "9"]
    assert find_class("2", names) == 2
    with pytest.raises(RearkitError, match="'10' is the number of class '9' and the name of class number 3"):
        find_class("10", names)
