"""The house is built as CONTRIBUTING draws it: imports run down the bands, without circles; files are short."""

from __future__ import annotations

from pathlib import Path

import house
import pytest

PACKAGE = house.ROOT / "rearkit"
MODULES = house.sources(PACKAGE)
GRAPH = house.arrows(PACKAGE)
LIBRARIES = ("training", "sampling", "evaluation", "planning", "tokenization", "data", "components")
# Declares a field, with a keyword for each kind of limit, as attrs has a validator for each.
KEYWORDS = ("settings.setting", "cached_attention_kernel._attend")


def importing(rooms: tuple[str, ...], forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"rearkit.{module} imports rearkit.{other}"
        for module, others in GRAPH.items()
        for other in sorted(others)
        if house.room(module) in rooms and house.room(other) in forbidden
    ]


def test_every_room_is_in_a_band() -> None:
    rooms = {house.room(module) for module in MODULES if not module.startswith("__")}
    assert rooms == set(house.LEVEL)
    assert "contracts" in GRAPH["model"]  # so that the arrows below are seen at all


def test_imports_run_down_the_bands() -> None:
    assert house.upward(GRAPH) == []


def test_no_library_imports_a_stage() -> None:
    assert importing(LIBRARIES, ("stages",)) == []


def test_data_knows_no_recipe() -> None:
    assert importing(("data",), ("recipe", "model")) == []


def test_nothing_imports_the_components() -> None:
    others = tuple(room for room in house.LEVEL if room != "components")
    assert importing(others, ("components",)) == []


def test_a_component_imports_none_of_another_kind() -> None:
    kinds = {module: module.split(".")[1] for module in MODULES if module.count(".") > 1 and "components." in module}
    assert len(set(kinds.values())) == 5
    crossing = [(a, b) for a in kinds for b in GRAPH[a] if kinds.get(b, kinds[a]) != kinds[a]]
    assert crossing == []


def test_there_are_no_circles() -> None:
    assert house.circles(GRAPH) == []
    assert house.circles(house.by_room(GRAPH)) == []


def test_a_base_name_stands_for_one_module() -> None:
    assert house.namesakes(PACKAGE) == []


def test_what_is_read_to_train_on_and_what_is_sampled_have_unlike_names() -> None:
    homes = [module for module, path in MODULES.items() if "\nclass Samples" in path.read_text(encoding="utf-8")]
    assert homes == ["sampling.sampler"]


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_of_a_size_to_read(module: str) -> None:
    path = MODULES[module]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= house.LONGEST_FILE
    for name, lines, parameters in house.functions(path):
        assert lines <= house.LONGEST_FUNCTION, f"{name} has {lines} lines"
        if not house.commands(path) and name not in KEYWORDS:
            assert parameters <= house.MOST_PARAMETERS, f"{name} has {parameters} parameters"


def test_what_the_measures_find(tmp_path: Path) -> None:
    """The measures themselves find what they are for."""
    package = tmp_path / "rearkit"
    for name, content in {
        "data/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rearkit.data import b\n",
        "data/b.py": "import rearkit.data.a\nfrom rearkit.stages.a import x\n",
        "stages/a.py": "x = 1\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    graph = house.arrows(package)
    assert house.upward(graph) == ["rearkit.data.b imports rearkit.stages.a"]
    assert house.circles(graph) == [["data.a", "data.b"]]
    assert house.namesakes(package) == ["a.py × 2"]
