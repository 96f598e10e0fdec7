"""A model whose classes have numbers as names, other than their own: each can be asked for, and drawn once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs
import pytest

from rearkit.contracts import Classes
from rearkit.model import Model
from rearkit.serving.served import Served

NAMES = tuple(str(number) for number in range(1, 11))


@pytest.fixture(scope="module")
def numbered(trained: tuple[Model, dict[str, Path]], serving: Callable[..., Iterator[Any]]) -> Iterator[Any]:
    model, files = trained
    yield from serving(served=Served.of(attrs.evolve(model, classes=Classes(10, NAMES)), files, 8))


def classes(job: Any) -> list[int]:
    return [image["class"] for image in job["images"]]


def test_a_json_number_is_a_classs_number(numbered: Any) -> None:
    job = numbered.draw(classes=list(range(10)))
    assert classes(job) == list(range(10))
    assert [image["name"] for image in job["images"]] == list(NAMES)
    # As the page does with a link.
    link = parse_qs(urlsplit(job["link"]).query)["classes"][0]
    assert classes(numbered.draw(classes=[int(text) for text in link.split(",")])) == classes(job)
    assert ' --classes "0,#1,#2,#3,#4,#5,#6,#7,#8,#9" -k 1 ' in job["command"]


def test_texts_are_numbers_with_a_sign_and_names_where_they_are_no_numbers(numbered: Any) -> None:
    assert classes(numbered.draw(classes=["#3", "10"])) == [3, 9]
    told = numbered.ask("POST", "/v1/images", {"classes": ["3"]})
    assert told.status == 400 and 'write "#3" or "#2"' in told.json["error"]


@pytest.mark.parametrize("wanted", [10, -1, "9" * 5000])
def test_a_number_of_no_class_is_refused(wanted: int | str, numbered: Any) -> None:
    told = numbered.ask("POST", "/v1/images", {"classes": [wanted]})
    assert told.status == 400 and "classes: no class" in told.json["error"]
