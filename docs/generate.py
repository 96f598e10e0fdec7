"""Writes the reference pages of recipes, components and commands from the code, whenever the site is built.

A hook of mkdocs (see ``mkdocs.yml``): the pages are never files in the repository, so they cannot differ from the code.
Sentences, ranges and defaults of keys are those that `rearkit.setting` was given; of commands, what ``--help`` prints.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FREE = "†"
LEGEND = (
    f"{FREE} marks a key that cannot change what a stage computes: a finished stage does not run again when it changes."
)
WIDTH = 100  # of the lines of --help
PICTURE = "recipes/images/mnist_samples.png"


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and the picture of samples, to the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference/recipe.md", content=recipe_page()))
    files.append(File.generated(config, "reference/components.md", content=components_page()))
    files.append(File.generated(config, "reference/cli.md", content=commands_page()))
    files.append(File.generated(config, "images/mnist_samples.png", abs_src_path=str(ROOT / PICTURE)))
    return files


def recipe_page() -> str:
    """Return the page of every table and key of a recipe, and of a sweep file."""
    from rearkit.recipe.tables import Recipe
    from rearkit.sweeps.sweep import SweepTable

    lines = [
        "# Every table and key",
        "",
        "Made from the settings classes when the site is built. How tables of several files are merged, and an example "
        "with its reasons, stands in [Recipes](../recipes.md).",
        "",
        LEGEND,
    ]
    for heading, cls in tables(Recipe, ""):
        lines += ["", f"## {heading}", "", *section(cls)]
    lines += ["", "## A sweep file", "", *section(SweepTable)]
    return "\n".join(lines) + "\n"


def components_page() -> str:
    """Return the page of every component of this repository: the built-in ones, and those of its plugins."""
    from rearkit.registry.component import KINDS

    lines = [
        "# Every component",
        "",
        "Made from the settings classes when the site is built. `python -m rearkit plugins` prints the same of what is "
        "installed on your machine, other people's packages included.",
        "",
        LEGEND,
    ]
    found = list(components())
    for kind in KINDS:
        lines += ["", f"## {kind}"]
        for component, package in found:
            if component.kind != kind:
                continue
            lines += ["", f"### {kind} `{component.name}`", "", f"Comes with {package}.", ""]
            lines += section(component.settings)
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Return the page of every command: what its ``--help`` prints."""
    import click

    from rearkit.cli.main import CONTEXT, cli

    lines = [
        "# Command line",
        "",
        "What `python -m rearkit COMMAND --help` prints, taken from the commands when the site is built. What the exit "
        "codes mean stands in [Troubleshooting](../troubleshooting.md#exit-codes).",
    ]
    context: dict[str, Any] = CONTEXT | {"terminal_width": WIDTH}
    top = click.Context(cli, info_name="python -m rearkit", **context)
    lines += ["", "```text", cli.get_help(top), "```"]
    for name, command in sorted(cli.commands.items()):
        said = command.get_help(click.Context(command, info_name=name, parent=top, **context))
        lines += ["", f"## {name}", "", "```text", said, "```"]
    return "\n".join(lines) + "\n"


def components() -> Iterator[tuple[Any, str]]:
    """Yield each component with the words for what brings it."""
    from rearkit.registry import plugins

    for component in plugins.registry().all():
        if component.provider.startswith("rearkit "):
            yield component, "rearkit"
    for project in sorted((ROOT / "plugins").glob("*/pyproject.toml")):
        if str(project.parent) not in sys.path:
            sys.path.append(str(project.parent))
        entry_points = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["entry-points"]["rearkit"]
        for module in entry_points.values():
            for component in importlib.import_module(module).rearkit_components():
                yield component, f"the plugin `{project.parent.name}`"


def tables(cls: type, path: str) -> Iterator[tuple[str, type]]:
    """Yield the heading and the settings class of each table, a table before those inside it."""
    from rearkit.recipe.tables import ComponentTable

    yield f"`[{path}]`" if path and not path.startswith("[") else f"`{path}`" if path else "Top level", cls
    types_of = _types(cls)
    names = types_of if not issubclass(cls, ComponentTable) else [name for name in types_of if name == "fit"]
    for name in names:
        inner, many = _table_in(types_of[name])
        if inner is not None:
            below = f"{path}.{name}" if path else name
            yield from tables(inner, f"[[{below}]]" if many else below)


def section(cls: type) -> list[str]:
    """Return what a settings class says of itself, and a table of its keys."""
    from rearkit.recipe.tables import ComponentTable

    if issubclass(cls, ComponentTable):
        return _component_section(cls)
    lines = [_sentences(cls)]
    if fields := attrs.fields(cls):
        types_of = _types(cls)
        lines += ["", "| key | type | default | range | meaning |", "| --- | --- | --- | --- | --- |"]
        lines += [_row(field, types_of[field.name]) for field in fields]
    return lines


def _component_section(cls: Any) -> list[str]:
    """A table that names a component: its own keys, and where those of the component stand."""
    from rearkit.registry import plugins

    said = dict(re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", inspect.getdoc(cls) or "", re.DOTALL | re.MULTILINE))
    built_in = [c for c in plugins.registry().all() if c.kind == cls.kind and c.provider.startswith("rearkit ")]
    links = ", ".join(f"[`{c.name}`](components.md#{cls.kind}-{c.name})" for c in built_in)
    lines = [_sentences(cls), "", "| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    lines.append(f"| `name` | string | required | the {cls.kind}: {links}, or a plugin's |")
    for field in attrs.fields(cls):
        if field.name in ("name", "settings", "provider"):
            continue
        lines.append(f"| `{field.name}` | {_type(_types(cls)[field.name])} | left out | {_cell(said[field.name])} |")
    return [*lines, "", f"All other keys are settings of the {cls.kind}: see [components](components.md#{cls.kind})."]


def _row(field: Any, of_type: Any) -> str:
    mark = f" {FREE}" if field.metadata.get("cosmetic") else ""
    limits = ", ".join(field.metadata.get("limits", ()))
    cells = (f"`{field.name}`{mark}", _type(of_type), _default(field.default), limits, field.metadata.get("doc", ""))
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _default(value: Any) -> str:
    if value is attrs.NOTHING:
        return "required"
    if value is None:
        return "left out"
    if value == () or isinstance(value, attrs.Factory) or attrs.has(type(value)):  # type: ignore[arg-type]
        return "none" if value == () else "see the table"
    from rearkit.registry.setting_types import plain

    items = [plain(item) for item in value] if isinstance(value, tuple) else plain(value)
    return f"`{json.dumps(items, ensure_ascii=False)}`"


def _type(t: Any) -> str:
    from rearkit.registry.setting_types import in_words

    return in_words(t)


def _table_in(t: Any) -> tuple[type | None, bool]:
    """Return the settings class that a field holds, if it does, and whether it holds many."""
    from rearkit.registry.setting_types import members

    # Of a union, the table is what has a section of its own.
    tables = [member for member in members(t) if isinstance(member, type) and attrs.has(member)]
    lists = [member for member in members(t) if typing.get_origin(member) is tuple]
    t, many = (tables or lists or [t])[0], False
    if typing.get_origin(t) is tuple:
        t, many = typing.get_args(t)[0], True
    return (t, many) if isinstance(t, type) and attrs.has(t) else (None, many)


def _types(cls: type) -> dict[str, Any]:
    attrs.resolve_types(cls)
    return {field.name: field.type for field in attrs.fields(cls)}


def _sentences(cls: type) -> str:
    """The docstring without its section of attributes, with single backquotes."""
    return re.split(r"\n\s*Attributes:", inspect.getdoc(cls) or "")[0].replace("``", "`").strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", r"\|")
