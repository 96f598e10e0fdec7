"""Recipe files: reading one, and finding those that come with rearkit by their names.

A name is a word without a folder and without a suffix: ``mnist`` is the file ``mnist.toml`` among rearkit's own, unless
there is a file ``mnist``. The files are those of ``recipes/`` in a checkout; a wheel has them as ``rearkit/_recipes``.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from rearkit.errors import RecipeError, did_you_mean, first_line
from rearkit.system.hub import is_hub, local_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A symbolic link in a checkout, a folder in a wheel. Resolved, so that messages name the file that one would edit.
FOLDER = (Path(__file__).parents[1] / "_recipes").resolve()
LIST = "python -m rearkit recipes"
# The file of an exported model, which contains its recipe, in a folder that `export` wrote.
MODEL = "model.safetensors"
# A line such as `# Takes: 5 minutes on 2 CPU cores` among the first comments of a file.
ENTRY = re.compile(r"(Takes|Needs): (.*)")

# Bytes of a recipe; a device such as /dev/zero never ends.
LARGEST = 1 << 24
# No table of a recipe is nested deeper than a few levels.
DEEPEST = 20
TOO_DEEP = f"tables and lists are nested more than {DEEPEST} deep; no recipe needs that"


@attrs.frozen
class OwnRecipe:
    """A file that comes with rearkit, as its own first lines describe it.

    Attributes:
        path: the file; its name without the suffix is the recipe's.
        sweep: whether it is a sweep file.
        what: the first sentence of the comment at its top.
        takes: how long and on what; of the nearest file that it extends, if it does not say so itself.
        needs: what has to be there before it can run; likewise.
    """

    path: Path
    sweep: bool
    what: str
    takes: str
    needs: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name that commands take."""
        return self.path.stem


def read_toml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """Read a TOML file; ``what`` names its kind in error messages.

    Raises:
        RecipeError: the file is missing, unreadable, or not valid TOML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise RecipeError([f"{path}: larger than {LARGEST >> 20} MiB, so no {what}; name another file"])
        # Line ends of any system, as text is read everywhere else, and the mark that editors of Windows begin it with.
        content = tomllib.loads(io.TextIOWrapper(io.BytesIO(text), encoding="utf-8-sig").read())
    except FileNotFoundError:
        raise RecipeError([missing(path, what)]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"{path}: cannot be read: {error}"]) from None
    # ValueError: besides what is no TOML, a number of thousands of digits, or a path with a NUL character.
    except ValueError as error:
        raise RecipeError([f"{path}: not valid TOML: {first_line(error)}"]) from None
    except RecursionError:
        raise RecipeError([f"{path}: {TOO_DEEP}"]) from None
    check_depth(content, str(path))
    return content


def missing(path: Path, what: str = "recipe", besides: Sequence[Path] = ()) -> str:
    """Say that a file is missing, and which one may be meant; none of ``besides``."""
    near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.toml") if p.resolve() not in besides])
    if path.stem in own_files():
        near = f" (did you mean {path.stem!r}, without a folder and a suffix? it comes with rearkit)"
    return f"{path}: no such {what} file{near}"


def check_depth(content: Any, where: str) -> None:
    """Check that tables and lists are not nested deeper than `DEEPEST`.

    Raises:
        RecipeError: they are.
    """
    # Without recursion, which is what others of this content would come to.
    level = [content]
    for _ in range(DEEPEST):
        tables = [one.values() if isinstance(one, Mapping) else one for one in level]
        level = [item for items in tables for item in items if isinstance(item, Mapping | list | tuple)]
        if not level:
            return
    raise RecipeError([f"{where}: {TOO_DEEP}"])


def own_files() -> dict[str, Path]:
    """Return the files that come with rearkit by their names."""
    return {path.stem: path for path in sorted(FOLDER.rglob("*.toml"))}


def is_name(source: str | Path) -> bool:
    """Return whether a source could be a name rather than a path: it has no folder and no suffix."""
    path = Path(source)
    return path.parent == Path() and bool(path.name) and not path.suffix


def find_file(source: str | Path, what: str = "recipe", beside: Path | None = None) -> Path:
    """Return the file that a name or a path means.

    Args:
        source: a name, or a path; of a folder with an exported model, the model is meant.
        what: ``recipe`` or ``sweep``, for error messages.
        beside: the file in which ``source`` was read; paths are relative to its folder. Left out: the working folder.

    Raises:
        RecipeError: no file that comes with rearkit has this name.
    """
    if is_hub(source):
        return local_file(source)
    path = Path(source) if beside is None else beside.parent / source
    if path.is_file() or not is_name(source):
        return path / MODEL if (path / MODEL).is_file() else path
    own = own_files()
    name = str(source)
    if name not in own and (path / MODEL).is_file():
        return path / MODEL
    if name not in own:
        if path.exists():
            return path
        said = "" if beside is None else f"{beside}: "
        near = did_you_mean(name, [*own, *(p.name for p in path.parent.glob("*.toml"))])
        raise RecipeError([f"{said}{name}: no such {what}{near}; {LIST} lists those that come with rearkit"])
    return own[name]


def is_exported(file: Path) -> bool:
    """Return whether a recipe's file, as `find_file` returns it, is an exported model."""
    return file.suffix == ".safetensors"


def own_recipes() -> list[OwnRecipe]:
    """Describe the recipes and sweep files that come with rearkit: first those that need nothing."""
    found = [_described(path) for path in own_files().values()]
    return sorted(found, key=lambda recipe: (recipe.sweep, len(recipe.needs), recipe.needs, recipe.name))


def takes(path: Path) -> str:
    """Return how long a recipe takes and on what, by its own comment; empty if it does not say so.

    Ours say the same as the file that they extend unless they say otherwise; other people's may do much more.
    """
    if path.resolve() in own_files().values():
        return _described(path.resolve()).takes
    return "" if path.suffix != ".toml" else _own_time(path)


def _described(path: Path) -> OwnRecipe:
    content = read_toml(path)
    what, entries = _heading(path)
    parent = content.get("extends") or content.get("recipe")
    base = None if parent is None else _described(find_file(parent, beside=path))
    time = _own_time(path) or ("" if base is None else base.takes)
    needs = [text for kind, text in entries if kind == "Needs"]
    needs += [f"{need['what']} ({need['size']})" for need in content.get("needs", ())]
    needs += [f"the plugin {entry.partition('@')[0].strip()}" for entry in content.get("requires", ())]
    own = tuple(needs) or (() if base is None else base.needs)
    return OwnRecipe(path, "recipe" in content, what, time, own)


def _own_time(path: Path) -> str:
    return " ".join(text for kind, text in _heading(path)[1] if kind == "Takes")


def _heading(path: Path) -> tuple[str, list[tuple[str, str]]]:
    """Return the first sentence of the comment at the top of a file, and its entries."""
    words, entries = [], []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if match := ENTRY.fullmatch(text):
            entries.append((match[1], match[2]))
        else:
            words.append(text)
    return re.split(r"(?<=\.)\s", " ".join(words))[0], entries
