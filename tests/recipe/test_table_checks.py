"""A recipe's name is one folder in ``runs/``, and nothing that a terminal would obey."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from rearkit.cli.main import cli
from rearkit.errors import RecipeError
from rearkit.recipe.loading import load_recipe


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "../x",
        "..",
        ".",
        "/x",
        "a/b",
        "a\\b",
        "a\nb",
        "a\x1b[31mb",
        "x" * 300,
        "é" * 100,
        "\u202ea",
        "a ",
    ],
)
def test_a_name_that_is_no_folder_is_refused_in_one_line(name: str, tiny_recipe: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(RecipeError, match="name: expected the name of one folder in runs/, got") as caught:
        load_recipe({**tiny_recipe(), "name": name})
    assert len(caught.value.problems) == 1
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["mnist", "été 2", "..a", "rear-b_1.5=x", "x" * 160])
def test_other_names_are_taken(name: str, tiny_recipe: Callable[..., dict[str, Any]]) -> None:
    assert load_recipe({**tiny_recipe(), "name": name}).name == name


def test_nothing_is_written_for_a_name_with_a_path(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["run", "mnist", "--set", "name=../../x"])
    assert isinstance(result.exception, RecipeError)
    assert not list(tmp_path.iterdir())
