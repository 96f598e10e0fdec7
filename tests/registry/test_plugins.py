"""Discovery: what is found among the installed distributions, and what is set aside with a reason."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rearkit.errors import PluginError, RecipeError
from rearkit.recipe.loading import load_recipe
from rearkit.registry import plugins

HEAD = """
import torch
from rearkit import Component, hookimpl, setting, settings

@settings
class Half:
    \"\"\"e = 1/2.\"\"\"

    def rates(self, progress, batch, generator):
        return torch.full((batch,), 0.5)

def noise(name):
    return Component("noise", name, Half, lambda schedule: schedule)
"""
NUMBERS = itertools.count()
Add = Callable[..., str]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Add]:
    """Put a distribution on the path: its name, its module's code after `HEAD`; returns the module's name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def put(name: str, code: str, version: str = "1.0", entry_points: str | None = None, front: bool = False) -> str:
        module = f"rearkit_case_{next(NUMBERS)}"
        folder = tmp_path / module
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(HEAD + code, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        default = f"[rearkit]\nplugin = {module}\n"
        (info / "entry_points.txt").write_text(entry_points or default, encoding="utf-8")
        sys.path.insert(0 if front else len(sys.path), str(folder))
        plugins.load_plugins.cache_clear()
        return module

    yield put
    plugins.load_plugins.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("rearkit_case_"):
            del sys.modules[name]


def broken() -> dict[str, str]:
    """Reasons by provider, after making sure that the rest works."""
    found = plugins.load_plugins()
    assert "linear" in found.registry.names("noise")
    return {plugin.provider: plugin.reason for plugin in found.broken}


def test_the_built_in_components_come_from_the_distribution_rearkit() -> None:
    components = plugins.registry().all()
    assert {component.kind for component in components} == {
        "dataset",
        "tokenizer",
        "backbone",
        "noise",
        "regularizer",
    }
    assert plugins.find("noise", "linear").provider.startswith("rearkit ")


def test_a_distribution_adds_components_by_entry_point(add: Add) -> None:
    add("rearkit-half", "@hookimpl\ndef rearkit_components():\n    return [noise('half')]", version="2.3")
    assert plugins.find("noise", "half").provider == "rearkit-half 2.3"
    assert not broken()


def test_a_hook_may_yield(add: Add) -> None:
    add("rearkit-half", "@hookimpl\ndef rearkit_components():\n    yield noise('half')\n    yield noise('half-2')")
    assert {"half", "half-2"} <= set(plugins.registry().names("noise"))


def test_a_recipe_names_a_plugin_component(add: Add, tiny_recipe: Callable[..., dict[str, object]]) -> None:
    add("rearkit-half", "@hookimpl\ndef rearkit_components():\n    return [noise('half')]")
    recipe = load_recipe(tiny_recipe(noise={"name": "half"}))
    assert recipe.noise is not None
    assert recipe.noise.provider == "rearkit-half 1.0"
    with pytest.raises(RecipeError, match=r"\[noise\] level: unknown key"):
        load_recipe(tiny_recipe(noise={"name": "half", "level": 1}))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libmissing.so.1: cannot open')", "ImportError: libmissing.so.1: cannot open"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        (
            "def rearkit_components():\n    return [noise('half')]",
            "no rearkit_components() marked with @rearkit.hookimpl",
        ),
        ("@hookimpl\ndef rearkit_componentz():\n    return []", "no rearkit_components() marked"),
        ("@hookimpl\ndef rearkit_components(recipe):\n    return []", "recipe"),
        ("@hookimpl\ndef rearkit_components():\n    return 1 / 0", "ZeroDivisionError: division by zero"),
        ("@hookimpl\ndef rearkit_components():\n    raise SystemExit('bye')", "SystemExit: bye"),
        ("@hookimpl\ndef rearkit_components():\n    yield noise('half')\n    raise KeyError('x')", "KeyError: 'x'"),
        ("@hookimpl\ndef rearkit_components():\n    return noise('half')", "not a list of rearkit.Component"),
        ("@hookimpl\ndef rearkit_components():\n    pass", "returned None, not a list of rearkit.Component"),
        ("@hookimpl\ndef rearkit_components():\n    return [Half]", "not a rearkit.Component"),
        ("@hookimpl\ndef rearkit_components():\n    return [noise('half')] * 2", "returned noise 'half' twice"),
        ("@hookimpl\ndef rearkit_components():\n    return [noise('Half')]", "ValueError: noise 'Half': a name is"),
        (
            "@hookimpl\ndef rearkit_components():\n    return [Component('noise', 'half', dict, dict)]",
            "TypeError: noise 'half': its settings are not",
        ),
        (
            "@settings\nclass Odd:\n    items: list = setting('some')\n\n"
            "@hookimpl\ndef rearkit_components():\n    return [Component('noise', 'half', Odd, Odd)]",
            "TypeError: noise 'half': Odd.items: list is no type of a setting; what works: int, float, str, bool, Path",
        ),
        (
            "@settings\nclass Odd:\n    weights: str = setting('some')\n\n"
            "@hookimpl\ndef rearkit_components():\n    return [Component('backbone', 'half', Odd, Odd)]",
            "TypeError: backbone 'half': Odd.weights: its table has a key of this name; rename the setting",
        ),
    ],
)
def test_a_broken_plugin_is_set_aside_with_its_reason(add: Add, code: str, reason: str) -> None:
    add("rearkit-broken", code)
    add("rearkit-good", "@hookimpl\ndef rearkit_components():\n    return [noise('good')]")
    (found,) = broken().items()
    assert found[0] == "rearkit-broken 1.0"
    assert reason in found[1]
    assert "\n" not in found[1]
    assert "half" not in plugins.registry().names("noise")
    assert plugins.find("noise", "good").provider == "rearkit-good 1.0"


def test_an_interrupt_is_not_taken_for_a_broken_plugin(add: Add) -> None:
    add("rearkit-slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        plugins.load_plugins()


def test_a_failed_look_up_names_the_broken_plugins(add: Add) -> None:
    add("rearkit-broken", "raise ImportError('no libmissing')")
    with pytest.raises(PluginError) as caught:
        plugins.find("noise", "half")
    assert str(caught.value).endswith("; note: rearkit-broken 1.0 failed to load (ImportError: no libmissing)")


@pytest.mark.parametrize("name", ["linear", "half"])
def test_two_providers_of_a_name_are_both_named_to_who_asks_for_it(add: Add, name: str) -> None:
    add("rearkit-one", f"@hookimpl\ndef rearkit_components():\n    return [noise('{name}')]")
    if name == "half":
        add("rearkit-two", "@hookimpl\ndef rearkit_components():\n    return [noise('half')]", version="2")
    assert not broken()
    assert plugins.find("noise", "fixed").provider.startswith("rearkit ")
    with pytest.raises(PluginError) as caught:
        plugins.find("noise", name)
    message = str(caught.value)
    assert message.startswith(f"noise '{name}' is provided by both ")
    assert "rearkit-one 1.0" in message
    assert ("rearkit-two 2" if name == "half" else "rearkit 0.") in message


def test_the_first_of_two_copies_of_a_distribution_counts(add: Add) -> None:
    """As with a checkout's metadata before the installed one's, which Python's import finds first, too."""
    add("Rearkit_Half", "@hookimpl\ndef rearkit_components():\n    return [noise('half')]")
    add("rearkit-half", "@hookimpl\ndef rearkit_components():\n    return [noise('newer')]", version="2", front=True)
    assert plugins.find("noise", "newer").provider == "rearkit-half 2"
    assert "half" not in plugins.registry().names("noise")


def test_a_distribution_may_have_several_entry_points(add: Add) -> None:
    first = add("rearkit-first", "@hookimpl\ndef rearkit_components():\n    return [noise('first')]", entry_points="\n")
    points = f"[rearkit]\na = {first}\nb = no_such_module\n[console_scripts]\nx = {first}:noise\n"
    add("rearkit-many", "", entry_points=points)
    assert plugins.find("noise", "first").provider == "rearkit-many 1.0"
    assert broken() == {"rearkit-many 1.0": "ModuleNotFoundError: No module named 'no_such_module'"}
