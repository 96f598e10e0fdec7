"""The registry: what can be registered, and what a failed registration or look-up says."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rearkit import Component, setting, settings
from rearkit.errors import PluginError, did_you_mean
from rearkit.registry.component import KINDS, Registry

NAMES = st.from_regex(r"[a-z0-9]{1,6}(-[a-z0-9]{1,4}){0,2}", fullmatch=True)


@settings
class Nothing:
    """Settings without any.

    More of the docstring.
    """

    level: float = setting("a level", default=0.0)


def component(kind: str = "noise", name: str = "quiet", settings: Any = Nothing) -> Component:
    return Component(kind, name, settings, lambda given: given)


def test_a_component_is_found_by_kind_and_name() -> None:
    registry = Registry()
    registry.add(component(), "rearkit-quiet 1.2")
    found = registry.get("noise", "quiet")
    assert (found.provider, found.summary, found.settings) == ("rearkit-quiet 1.2", "Settings without any.", Nothing)


@pytest.mark.parametrize("build", [None, Nothing()])
def test_what_builds_a_component_can_be_called(build: Any) -> None:
    with pytest.raises(TypeError, match="noise 'quiet': its build must be a class or a function; found "):
        Component("noise", "quiet", Nothing, build)


def test_a_name_may_be_used_once_in_each_kind() -> None:
    registry = Registry()
    for kind in KINDS:
        registry.add(component(kind), "rearkit-quiet 1.2")
    assert [found.kind for found in registry.all()] == list(KINDS)
    registry.add(component("tokenizer"), "rearkit-loud 3")
    # Told to those who ask for it, and to nobody else.
    assert registry.get("noise", "quiet").provider == "rearkit-quiet 1.2"
    assert registry.names("tokenizer") == ["quiet"]
    first, second = (found for found in registry.all() if found.kind == "tokenizer")
    assert registry.rivals(first) == [second.provider] and registry.rivals(second) == [first.provider]
    assert not registry.rivals(registry.get("noise", "quiet"))
    with pytest.raises(PluginError) as caught:
        registry.get("tokenizer", "quiet")
    assert str(caught.value) == (
        "tokenizer 'quiet' is provided by both rearkit-quiet 1.2 and rearkit-loud 3; uninstall one of them"
    )


def test_an_unknown_name_is_told_with_the_nearest_and_all_there_are() -> None:
    registry = Registry()
    for name in ("linear", "fixed"):
        registry.add(component(name=name), "rearkit 1")
    registry.add(component("tokenizer", "liner"), "rearkit 1")
    with pytest.raises(PluginError) as caught:
        registry.get("noise", "liner")
    assert str(caught.value) == "unknown noise 'liner' (did you mean 'linear'?); installed: fixed, linear"
    with pytest.raises(PluginError) as caught:
        registry.get("noise", "xyz")
    assert str(caught.value) == "unknown noise 'xyz'; installed: fixed, linear"


@given(st.lists(st.tuples(st.sampled_from(KINDS), NAMES), unique=True))
def test_all_is_sorted_by_kind_then_name_and_complete(keys: list[tuple[str, str]]) -> None:
    registry = Registry()
    for kind, name in keys:
        registry.add(component(kind, name), "rearkit 1")
    found = [(each.kind, each.name) for each in registry.all()]
    assert found == sorted(keys, key=lambda key: (KINDS.index(key[0]), key[1]))
    for kind in KINDS:
        assert registry.names(kind) == [name for k, name in found if k == kind]


@pytest.mark.parametrize(
    "name", ["", "Quiet", "qui et", "quiet_noise", "-quiet", "quiet-", "a--b", "é", "a.b", None, 3]
)
def test_a_name_is_lower_case_words_joined_by_hyphens(name: Any) -> None:
    with pytest.raises(ValueError, match="a name is lower-case words and numbers joined by hyphens"):
        component(name=name)


def test_a_kind_must_be_known() -> None:
    with pytest.raises(
        ValueError, match=r"unknown kind of component 'tokeniser' .did you mean 'tokenizer'.*; kinds: d"
    ):
        component("tokeniser")


@pytest.mark.parametrize("settings", [dict, Nothing(), None])
def test_settings_must_be_a_settings_class(settings: Any) -> None:
    with pytest.raises(TypeError, match=r"noise 'quiet': its settings are not a class made by rearkit\.settings"):
        component(settings=settings)


@given(st.text(max_size=12), st.lists(NAMES, max_size=5))
def test_a_hint_is_one_of_the_names_or_nothing(name: str, names: list[str]) -> None:
    hint = did_you_mean(name, names)
    assert hint in {"", *(f" (did you mean {each!r}?)" for each in names)}
    assert hint or name not in names


def test_the_core_imports_no_component_and_no_stage() -> None:
    core = ["contracts", "registry.component", "registry.plugins", "recipe.loading", "model", "objective"]
    program = (
        "import sys; import "
        + ", ".join(f"rearkit.{name}" for name in core)
        + "; print(sorted(n for n in sys.modules if n.startswith('rearkit.')))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    rooms = ("components", "stages", "training", "sampling", "evaluation", "tokenization", "pipeline", "cli")
    for room in rooms:
        assert f"'rearkit.{room}" not in loaded, f"the core imports rearkit.{room}: {loaded}"
