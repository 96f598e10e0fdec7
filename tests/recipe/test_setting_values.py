"""Each type that a plugin's settings may have: read from a recipe, told in words, written back, and part of a key."""

from __future__ import annotations

import enum
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Optional, Union

import attrs
import pytest
import tomli_w
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rearkit import Component, setting, settings
from rearkit.cli.main import cli
from rearkit.errors import RecipeError
from rearkit.recipe import tables
from rearkit.recipe.loading import load_recipe, recipe_to_dict
from rearkit.recipe.tables import ComponentTable
from rearkit.registry import plugins
from rearkit.registry.component import KINDS, RESERVED, Registry
from rearkit.stages.flow import STAGES
from rearkit.stages.relevant import result_relevant
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import stage_key

Content = Callable[..., dict[str, Any]]


class Mode(enum.Enum):
    SLOW = "slow"
    FAST = "fast"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@settings
class Inner:
    """A table inside."""

    file: Path | None = setting("a file", default=None)
    rate: float = setting("a rate", default=0.5, ge=0)


@settings
class Many:
    """Settings of every type that works."""

    file: Path = setting("a file", default=Path("here"))
    mode: Mode = setting("a mode", default=Mode.SLOW)
    level: Level = setting("a level", default=Level.LOW)
    kind: Literal["plain", "rich", 3, True] = setting("a kind", default="plain")
    amount: int | float = setting("an amount", default=1, ge=0)
    word: str | None = setting("a word", default=None)
    names: str | tuple[str, ...] = setting("a name or several", default="one", min_len=1)
    size: int | Literal["auto"] = setting("a size", default="auto", ge=1)
    pair: tuple[int, str] = setting("two things", default=(1, "a"))
    files: tuple[Path, ...] = setting("files", default=())
    inner: Inner = setting("a table", default=Inner())
    inners: tuple[Inner, ...] = setting("tables", default=())
    either: Inner | bool = setting("a table, or none", default=False)
    old: Optional[Union[int, str]] = setting("as it was written before", default=None)  # noqa: UP007, UP045
    free: dict[str, Any] = setting("what you like", default=attrs.Factory(dict))


VALUES: dict[str, Any] = {
    "file": st.sampled_from(["a/b.txt", "c"]),
    "mode": st.sampled_from(["slow", "fast"]),
    "level": st.sampled_from([1, 2]),
    "kind": st.sampled_from(["plain", "rich", 3, True]),
    "amount": st.one_of(st.integers(0, 9), st.floats(0, 9)),
    "word": st.sampled_from(["", "word"]),
    "names": st.one_of(st.just("one"), st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=3)),
    "size": st.one_of(st.just("auto"), st.integers(1, 9)),
    "pair": st.just([2, "b"]),
    "files": st.lists(st.sampled_from(["a", "b"]), max_size=2),
    "inner": st.fixed_dictionaries({}, optional={"file": st.just("f"), "rate": st.floats(0, 1)}),
    "inners": st.lists(st.fixed_dictionaries({"file": st.just("f")}), max_size=2),
    "either": st.one_of(st.booleans(), st.just({"rate": 0.25})),
    "old": st.one_of(st.integers(0, 5), st.just("x")),
    "free": st.just({"a": [1, {"b": 2}]}),
}


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    found = plugins.load_plugins()
    registry = Registry()
    for component in found.registry.all():
        registry.add(component, component.provider, component.module)
    registry.add(Component("noise", "many", Many, lambda given: given), "theirs 1.0", __name__)
    with pytest.MonkeyPatch.context() as patch:
        load = lambda: attrs.evolve(found, registry=registry)  # noqa: E731
        patch.setattr(plugins, "load_plugins", load)
        yield


@given(given_values=st.fixed_dictionaries({}, optional=VALUES))
def test_every_type_comes_back_from_a_file_and_stands_in_keys(
    given_values: dict[str, Any], tiny_recipe: Content, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = load_recipe(tiny_recipe(noise={"name": "many", **given_values}))
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    plain = recipe_to_dict(recipe)
    assert given_values.items() <= plain["noise"].items() or given_values.keys() & {"inner", "inners", "either"}
    file.write_text(tomli_w.dumps(plain), encoding="utf-8")
    assert load_recipe(file) == recipe
    json.dumps(result_relevant(recipe.noise))
    keys = [stage_key(stage, each, RunFolder(file)) for stage in STAGES for each in (recipe, load_recipe(file))]
    assert keys[::2] == keys[1::2]


def test_values_have_the_types_that_the_settings_say(tiny_recipe: Content) -> None:
    said = {"file": "a", "mode": "fast", "level": 2, "kind": 3, "amount": 2, "names": ["a"], "pair": [2, "b"]}
    recipe = load_recipe(tiny_recipe(noise={"name": "many", **said, "inner": {"file": "f"}, "either": {"rate": 1}}))
    assert recipe.noise is not None
    found = recipe.noise.settings
    assert (found.file, found.mode, found.level, found.kind) == (Path("a"), Mode.FAST, Level.HIGH, 3)
    assert type(found.amount) is int and found.names == ("a",) and found.pair == (2, "b")
    assert found.inner == Inner(file=Path("f")) and found.either == Inner(rate=1.0)
    # In Python, a setting's own value will do as well.
    of_python = load_recipe(tiny_recipe(noise={"name": "many", "file": Path("a"), "mode": Mode.FAST}))
    assert of_python.noise is not None and of_python.noise.settings == Many(file=Path("a"), mode=Mode.FAST)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("file", 3, "[noise] file: expected a path, got 3"),
        ("mode", "fsat", "[noise] mode: expected one of \"slow\", \"fast\", got 'fsat' (did you mean 'fast'?)"),
        ("level", 3, "[noise] level: expected one of 1, 2, got 3"),
        ("kind", 1, '[noise] kind: expected one of "plain", "rich", 3, true, got 1'),
        ("amount", "3", "[noise] amount: expected a whole number or a number, got '3'"),
        ("amount", -1, "[noise] amount: expected ≥ 0, got -1"),
        ("word", 3, "[noise] word: expected a string, got 3"),
        ("names", 3, "[noise] names: expected a string or a list of strings, got 3"),
        ("names", ["a", 3], "[noise.names] 1: expected a string, got 3"),
        ("names", [], "[noise] names: expected at least 1 value(s)"),
        ("size", "atuo", "[noise] size: expected one of \"auto\" or a whole number, got 'atuo'"),
        ("size", 0, "[noise] size: expected ≥ 1, got 0"),
        ("pair", [1], "[noise] pair: expected 2 values, got 1"),
        ("pair", [1, 2], "[noise.pair] 1: expected a string, got 2"),
        ("files", "a", "[noise] files: expected a list of paths, got 'a'"),
        ("inner", {"fil": "f"}, "[noise.inner] fil: unknown key (did you mean 'file'?)"),
        ("inners", [{}, {"file": 3}], "[noise.inners.1] file: expected a path, got 3"),
        ("either", {"rate": -1}, "[noise.either] rate: expected ≥ 0, got -1"),
        ("either", 3, "[noise] either: expected true or false or a table, got 3"),
        ("free", 3, "[noise] free: expected a table, got 3"),
    ],
)
def test_a_wrong_value_is_told_in_words(key: str, value: Any, problem: str, tiny_recipe: Content) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tiny_recipe(noise={"name": "many", key: value}))
    (line,) = caught.value.problems
    assert line.startswith(f"<recipe>: {problem}")


def test_the_command_plugins_shows_defaults_and_choices() -> None:
    output = CliRunner(env={"COLUMNS": "200"}).invoke(cli, ["plugins"]).output
    shown = output[output.index("noise many") :]
    for line in ("file here a file", 'mode slow a mode; one of "slow", "fast"', "level 1 a level; one of 1, 2"):
        assert line in " ".join(shown.split())


def test_the_reference_tells_every_type() -> None:
    place = Path(__file__).parents[2] / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", place)
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    rows = [row.strip("| ").split(" | ")[:3] for row in generate.section(Many)[4:]]
    assert {key.strip("`"): (of_type, default) for key, of_type, default in rows} == {
        "file": ("path", '`"here"`'),
        "mode": ('one of "slow", "fast"', '`"slow"`'),
        "level": ("one of 1, 2", "`1`"),
        "kind": ('one of "plain", "rich", 3, true', '`"plain"`'),
        "amount": ("whole number or number", "`1`"),
        "word": ("string", "left out"),
        "names": ("string or list of strings", '`"one"`'),
        "size": ('one of "auto" or whole number', '`"auto"`'),
        "pair": ("list of whole numbers, strings", '`[1, "a"]`'),
        "files": ("list of paths", "none"),
        "inner": ("table", "see the table"),
        "inners": ("list of tables", "none"),
        "either": ("true or false or table", "`false`"),
        "old": ("whole number or string", "left out"),
        "free": ("table", "see the table"),
    }


@pytest.mark.parametrize(
    ("of_type", "reason"),
    [
        (list[int], "list[int] is no type of a setting"),
        (set, "set is no type of a setting"),
        (Any, "Any is no type of a setting"),
        (dict[str, int], "dict[str, int] is no type of a setting"),
        (tuple[list[int], ...], "list[int] is no type of a setting"),
        (int | bytes, "bytes is no type of a setting"),
        (None, "it has no type"),
        (str | Path, "str and Path look alike in a recipe"),
        (Mode | str, "Mode and str look alike in a recipe"),
        (tuple[int, ...] | tuple[str, ...], "tuple[int, ...] and tuple[str, ...] look alike in a recipe"),
        (Inner | dict[str, Any], "Inner and dict[str, Any] look alike in a recipe"),
        (enum.Enum("Odd", {"A": (1, 2)}), "Odd has the value (1, 2), which TOML cannot hold"),
        (Literal[b"x"], "Literal[b'x'] has the value b'x', which TOML cannot hold"),
    ],
)
def test_another_type_is_refused_with_what_works(of_type: Any, reason: str) -> None:
    cls = attrs.make_class("Theirs", {"odd": attrs.field(type=of_type, default=None)}, frozen=True)
    with pytest.raises(TypeError) as caught:
        Component("noise", "odd", cls, lambda given: given)
    assert str(caught.value).startswith(f"noise 'odd': Theirs.odd: {reason}; what works: int, float, str, bool, Path, ")
    inside = attrs.make_class("Outer", {"inner": attrs.field(type=cls, default=None)}, frozen=True)
    with pytest.raises(TypeError, match=r"noise 'odd': Outer\.inner: Theirs\.odd: "):
        Component("noise", "odd", inside, lambda given: given)


def test_types_that_are_there_for_checkers_only_are_refused() -> None:
    cls = attrs.make_class("Theirs", {"odd": attrs.field(type="NoSuchName", default=None)}, frozen=True)
    with pytest.raises(TypeError, match=r"name 'NoSuchName' is not defined: .* not only under TYPE_CHECKING"):
        Component("noise", "odd", cls, lambda given: given)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in RESERVED[kind]])
def test_names_that_a_table_has_itself_are_refused(kind: str, name: str) -> None:
    cls = attrs.make_class("Theirs", {name: attrs.field(type=int, default=3)}, frozen=True)
    with pytest.raises(TypeError, match=rf"{kind} 'odd': Theirs\.{name}: its table has a key of this name; rename"):
        Component(kind, "odd", cls, lambda given: given)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reserved_names_are_those_of_the_tables(kind: str) -> None:
    classes = [value for value in vars(tables).values() if isinstance(value, type)]
    (table,) = (c for c in classes if issubclass(c, ComponentTable) and getattr(c, "kind", None) == kind)
    own = {field.name for field in attrs.fields(table)} - {"settings", "provider"}
    assert own == set(RESERVED[kind])
