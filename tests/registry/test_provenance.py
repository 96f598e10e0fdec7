"""Edited plugins are noticed, and exceptions out of them are told by name; rearkit's own code is neither."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from rearkit.errors import DataError
from rearkit.registry import plugins
from rearkit.registry.component import Component
from rearkit.registry.provenance import BUILT_IN, _digest, blame, code_of, packages

NUMBERS = itertools.count()
PACKAGE = {
    "__init__.py": """
from rearkit import Component, hookimpl
from .noise import Half, Third
from .parts import build

@hookimpl
def rearkit_components():
    return [Component("noise", "half", Half, build), Component("noise", "third", Third, build)]
""",
    "noise.py": """
from rearkit import setting, settings
from .parts import divide

@settings
class Half:
    \"\"\"e = 1/2.\"\"\"

    def rates(self, progress, batch, generator):
        return divide(1, 0)

@settings
class Third:
    \"\"\"e = 1/3.\"\"\"

    def rates(self, progress, batch, generator):
        raise KeyError("third")
""",
    "parts.py": "def build(settings):\n    return settings\n\ndef divide(a, b):\n    return a / b\n",
    "kernels/add.cu": "// a kernel\n",
}
Write = Callable[..., tuple[Path, list[Component]]]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a package, import it, and return its folder and its components as they are registered."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)

    def put(files: dict[str, str], entry: str = "") -> tuple[Path, list[Component]]:
        name = f"rearkit_case_{next(NUMBERS)}b"
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(content, encoding="utf-8")
        (tmp_path / f"theirs-{name}.dist-info").mkdir()
        info = tmp_path / f"theirs-{name}.dist-info"
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[rearkit]\nx = {name}{entry}\n", encoding="utf-8")
        plugins.load_plugins.cache_clear()
        loaded = plugins.load_plugins()
        assert not loaded.broken, loaded.broken
        return tmp_path / name, [c for c in loaded.registry.all() if c.provider == "theirs 1.0"]

    yield put
    plugins.load_plugins.cache_clear()
    _digest.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("rearkit_case_"):
            del sys.modules[name]


def test_a_built_in_component_is_the_same_in_all_versions() -> None:
    for component in plugins.registry().all():
        if component.provider.startswith("rearkit "):
            assert code_of(component) == BUILT_IN
            assert packages(component) == []


@pytest.mark.parametrize("path", ["noise.py", "parts.py", "kernels/add.cu", "added.py"])
def test_edited_code_of_a_plugin_is_noticed(path: str, write: Write) -> None:
    folder, (half, third) = write(PACKAGE)
    before = code_of(half)
    assert before.startswith("theirs 1.0 ") and code_of(third) == before
    (folder / "notes.txt").write_text("not code", encoding="utf-8")
    (folder / "__pycache__").mkdir(exist_ok=True)
    (folder / "__pycache__" / "noise.cpython-310.pyc").write_bytes(b"compiled")
    _digest.cache_clear()
    assert code_of(half) == before
    with (folder / path).open("a", encoding="utf-8") as file:
        file.write("\n# edited\n")
    # A process goes on with what it has imported.
    assert code_of(half) == before
    _digest.cache_clear()
    assert code_of(half) != before


def test_the_code_that_was_imported_counts(write: Write) -> None:
    folder, (half, _) = write(PACKAGE)
    with (folder / "parts.py").open("a", encoding="utf-8") as file:
        file.write("\n# edited before anything asked for the digest\n")
    imported = code_of(half)
    _digest.cache_clear()
    assert code_of(half) != imported


def test_another_version_is_noticed(write: Write) -> None:
    import attrs

    _, (half, _) = write(PACKAGE)
    assert code_of(attrs.evolve(half, provider="theirs 1.1")).startswith("theirs 1.1 ")


def test_the_package_of_the_hook_counts_and_not_the_folders_beside_it(write: Write) -> None:
    files = {"__init__.py": "", "other.py": "", **{f"plugin/{path}": text for path, text in PACKAGE.items()}}
    folder, (half, _) = write(files, entry=".plugin")
    assert packages(half) == [f"{folder.name}.plugin"]


def test_what_another_library_builds_is_not_the_plugins_code(write: Write) -> None:
    code = PACKAGE["__init__.py"].replace("from .parts import build", "from collections import OrderedDict as build")
    folder, (half, _) = write({**PACKAGE, "__init__.py": code})
    assert packages(half) == [folder.name]


def test_an_exception_is_of_the_component_that_was_called(write: Write) -> None:
    folder, (half, third) = write(PACKAGE)
    for component, owner, error in ((half, "noise 'half'", ZeroDivisionError), (third, "noise 'third'", KeyError)):
        with pytest.raises(error) as caught, plugins.naming_plugins():
            component.build(component.settings()).rates(0, 1, None)
        found = plugins.blamed(caught.value)
        assert found is not None
        assert found.owner == f"{owner} of theirs 1.0"
        assert found.place.startswith(f"{folder / 'noise.py'}, line ")
        assert caught.value.__notes__ == [f"raised in {owner} of theirs 1.0, {found.place}"]


def test_of_a_function_that_components_share_the_package_is_named(write: Write) -> None:
    _, components = write(PACKAGE)
    module: ModuleType = sys.modules[f"{components[0].module}.parts"]
    with pytest.raises(ZeroDivisionError) as caught:
        module.divide(1, 0)
    found = blame(caught.value, components)
    assert found is not None and found.owner == "theirs 1.0"


def test_a_cause_is_looked_at_too(write: Write) -> None:
    _, (half, _) = write(PACKAGE)
    with pytest.raises(RuntimeError) as caught:
        try:
            half.settings().rates(0, 1, None)
        except ZeroDivisionError as error:
            raise RuntimeError("a reader failed") from error
    found = plugins.blamed(caught.value)
    assert found is not None and found.owner == "noise 'half' of theirs 1.0"


def test_other_exceptions_are_nobodys(write: Write) -> None:
    write(PACKAGE)
    for error in (ValueError("ours"), DataError("told in one line")):
        with pytest.raises(type(error)) as caught, plugins.naming_plugins():
            raise error
        assert plugins.blamed(caught.value) is None
        assert not getattr(caught.value, "__notes__", ())
