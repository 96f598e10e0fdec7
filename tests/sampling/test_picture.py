from __future__ import annotations

import pytest

from rearkit.errors import RearkitError
from rearkit.sampling.picture import class_text, find_class

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
        ("#7", 7),
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
        ("#10", "no class '#10'"),
        ("9" * 5000, "no class '999"),
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


@pytest.mark.parametrize("form", ["{}", "{:03}"])
def test_each_class_can_be_asked_for_where_names_are_other_numbers(form: str) -> None:
    names = [form.format(number) for number in range(1, 103)]
    for label in range(102):
        assert find_class(f"#{label}", names) == find_class(class_text(label, names), names) == label
    assert class_text(1, names) == ("#1" if names[0] == "1" else "1")
    assert find_class(names[101], names) == 101
    with pytest.raises(RearkitError, match=r'the name of class number 2; write "#3" or "#2"'):
        find_class(names[2], names)
