"""Recipes and ``--set`` values that nobody means: wrong kinds, infinities, nesting, names, circles of ``extends``."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from fuzzing import Case, command, damaged, fuzz
from ledger import Ledger, Outcome

from rearkit.recipe.loading import load_recipe, recipe_to_dict
from rearkit.recipe.recipe_files import read_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow

LITERALS = [
    "inf", "-inf", "nan", "1e400", "-1", "0", "1", "1.5", "1e-300", "1e300", "true", "false", '""', '"x"', "[]",
    "{}", "9" * 5000,
    "-9223372036854775808", "9223372036854775807", "18446744073709551616", "0x7fffffff", "1979-05-27T07:32:00Z",
    "07:32:00", '"\\u0000"', '"\\u001b[31mred"', '"a\\nb"', '"../x"', '"/etc/passwd"', '"pipe:touch started"',
    '"https://x.invalid/y"', '"hf://a/b"', '"1e-3"', '"10 s"', '[1, "a"]', "{ a = 1 }", '[""]', "[0, 0]", "[-1]",
    "[1e9]", '"{000..999999999}.tar"', '"{{{{"', '"}{"', '"' + "x" * 3000 + '"', "[" + "0, " * 20_000 + "]",
    "[" * 200 + "]" * 200, "[" * 5000 + "]" * 5000, '"ü€𝄞"', '"auto"', "[[]]", '{ name = "x" }', "1_000_000_007",
    '"\\u202e"', '"\\ud7ff"', "2000000000", "65537", "1000000",
]  # fmt: skip
NAMES = ["../x", "/tmp/x", "", "a\nb", "\x1b[31mx", "x" * 300, ".", "..", "a/b", "a\\b", "\0", " ", "-x", "CON",
"a\u202eb",
         "runs/../..", "~", "$HOME", "a\tb", ".hidden"]  # fmt: skip
HOLE = "@hole@"


def leaves(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys of all values and tables."""
    for key, value in table.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from leaves(value, (*above, key))


BASE = recipe_to_dict(load_recipe("smoke"))
KEYS = list(leaves(BASE))


def found(table: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table


def judge(code: int, keys: tuple[str, ...], written: Any, path: Path, *overrides: str) -> Outcome:
    """A value that is accepted is in the recipe as it was written; a number may be one of the other kind."""
    if code != 0:
        return "held"
    read = found(recipe_to_dict(load_recipe(path, overrides)), keys)
    if isinstance(written, str) and isinstance(read, str):
        # Paths are taken relative to the recipe.
        return "held" if read == written or read.endswith(written) else "silent"
    if isinstance(written, Mapping) or isinstance(read, Mapping):
        return "held" if isinstance(written, Mapping) else "silent"
    if isinstance(written, bool) != isinstance(read, bool):
        return "silent"
    return "held" if read == written else "silent"


def with_value(folder: Path, keys: tuple[str, ...], literal: str) -> Path:
    """Write the smoke recipe in full with one value replaced."""
    content = copy.deepcopy(BASE)
    table: Any = content
    for key in keys[:-1]:
        table = table[key]
    table[keys[-1]] = HOLE
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(content).replace(f'"{HOLE}"', literal), encoding="utf-8")
    return path


def value(draw: random.Random, folder: Path) -> Case:
    keys, literal = draw.choice(KEYS), draw.choice(LITERALS)
    if draw.random() < 0.15:
        # A key that there is not, near to one that there is.
        keys = (*keys[:-1], draw.choice([keys[-1] + "x", keys[-1][:-1], "__class__", "a b", ""]))
    path = with_value(folder, keys, literal)

    def work() -> Outcome:
        code, _ = command("show", str(path))
        return judge(code, keys, found(read_toml(path), keys), path) if code == 0 else "held"

    return f"{'.'.join(keys)} = {literal:.60}", work


def name(draw: random.Random, folder: Path) -> Case:
    chosen = draw.choice(NAMES) + draw.choice(["", "", "x", "/", "\n", "…", "."])
    path = with_value(folder, ("name",), tomli_w.dumps({"a": chosen})[4:-1])

    def work() -> Outcome:
        code, _ = command(draw.choice(["show", "show", "data"]), str(path), "--set", "data.source.train=nowhere")
        if code != 0:
            return "held"
        # Whatever is accepted is one name in a folder.
        one = Path(chosen).name == chosen and chosen.isprintable() and chosen not in (".", "..", "")
        return "held" if one else "let in"

    return repr(chosen), work


def text(draw: random.Random, folder: Path) -> Case:
    path = folder / "recipe.toml"
    original = (
        Path("recipes/smoke.toml").resolve().with_name(draw.choice(["smoke", "mnist", "rear_s_maskgit"]) + ".toml")
    )
    content, hows = original.read_bytes(), []
    for _ in range(draw.choice([1, 1, 2, 5])):
        how, content = damaged(draw, content)
        hows.append(how)
    path.write_bytes(content.replace(b'"mnist.toml"', b'"mnist"'))

    def work() -> Outcome:
        # What is accepted is a recipe; which one, the text says.
        command("show", str(path))
        return "held"

    return f"{original.stem}: {', '.join(hows)}", work


def extends(draw: random.Random, folder: Path) -> Case:
    how = draw.choice(
        ["circle", "chain", "itself", "missing", "list", "number", "outside", "folder", "empty", "device"]
    )
    length = draw.randrange(1, 200)
    names = [f"r{index}.toml" for index in range(length)]
    parents: dict[str, Any] = {
        "circle": names[0], "chain": "smoke", "itself": names[-1], "missing": f"nothing-{length}",
        "list": ["smoke"] * length,
        "number": length, "outside": "../" * length + "etc/passwd", "folder": ".", "empty": "", "device": "/dev/zero",
    }  # fmt: skip
    for index, one in enumerate(names):
        last = index == length - 1
        table = {"extends": parents[how] if last else names[index + 1]}
        (folder / one).write_text(tomli_w.dumps(table), encoding="utf-8")

    def work() -> Outcome:
        code, _ = command("show", names[0])
        return "held" if code != 0 or how in ("chain", "list") else "silent"

    return f"{how}, {length} files", work


def override(draw: random.Random, folder: Path) -> Case:
    keys, literal = draw.choice(KEYS), draw.choice(LITERALS)
    if literal.startswith("[" * 9) and draw.random() < 0.5:
        literal = literal[:-1]
    given = f"{'.'.join(keys)}={literal}"
    odd = ["", "=", "a..b=1", "train.lr", "train.lr=[", "regularizers.5.x=1", ".=1", "train=1", "x" * 5000,
    "train.lr.x=1",
           "train.lr=1=2", "\0=1", "regularizers.-1.name=x", "regularizers.0=1", "é=1", "train.lr= ",
           "name=../x"]  # fmt: skip
    strange = draw.random() < 0.2
    if strange:
        given = draw.choice(odd) + draw.choice(["", "", "1", "]", "}"])

    def work() -> Outcome:
        code, _ = command("show", "smoke", "--set", given)
        if strange or code != 0:
            return "held"
        try:
            written = tomllib.loads(f"a = {literal}")["a"]
        except (ValueError, RecursionError):
            written = literal
        return judge(0, keys, written, Path("smoke"), given)

    return f"{given:.80}", work


def planned(draw: random.Random, folder: Path) -> Case:
    numbers = ["0", "1", "-1", "7", "1000000", "2000000000", "1e18", "65537", "3.5", "inf", "true", '"x"', "9" * 30]
    keys = draw.choice([keys for keys in KEYS if keys[0] in ("tokenizer", "backbone", "train", "noise", "tokens")])
    sets = [f"{'.'.join(keys)}={draw.choice(numbers)}", "device=cpu"]
    gpus = draw.choice(["1", "8", "0", "-1", "1000000", "x", "7"])
    memory = draw.choice(["80", "0", "nan", "inf", "1e-9", "1e300", "x"])

    def work() -> Outcome:
        code, _ = command(
            "plan", "smoke", *(f"--set={one}" for one in sets), f"--gpus={gpus}", f"--gpu-memory={memory}"
        )
        # Accepted where it is no number: the tables would be of nothing.
        return "silent" if code == 0 and memory in ("0", "nan") else "held"

    return f"{sets[0]:.80} {gpus} {memory}", work


@pytest.mark.parametrize("build", [value, name, text, extends, override, planned], ids=lambda build: build.__name__)
def test_no_recipe_brings_a_traceback(build: Any, tmp_path: Path) -> None:
    ledger = Ledger()
    # What is imported now is not what a fault has started.
    command("show", "smoke")
    if build is planned:
        command("plan", "smoke", "--set=device=cpu")
    fuzz(ledger, f"recipe, {build.__name__}", tmp_path, build)
    ledger.check()
