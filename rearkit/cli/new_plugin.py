"""``new-plugin``: write a pip package that adds a component, from the files in ``templates/plugin``.

``shared`` has what packages of all kinds have in common; the folder of a kind has its component, the test of what the
component means, and a recipe that uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template

import attrs

from rearkit.errors import RearkitError
from rearkit.registry import plugins
from rearkit.system.console import say
from rearkit.system.files import replacing

PREFIX = "rearkit-"
TEMPLATES = Path(__file__).parent / "templates" / "plugin"
# Templates have a suffix of their own so that pytest, linters and setuptools do not take them for Python files.
SUFFIX = ".tmpl"
EXAMPLE = "example.toml"
ITSELF = "It needs no state, so its settings are the component itself."
BUILT = "Called with the settings"


@attrs.frozen
class KindText:
    """What the shared files say of a kind; each field fills in the placeholder of its name.

    Attributes:
        what: what the kind is called in a sentence.
        table: where a recipe names it.
        does: what the component that is written does.
        needs: the distribution that the component imports besides rearkit.
        imports: what the package's hook imports of the component's module.
        arguments: the settings class and what builds the component, as `rearkit.Component` takes them.
        built: a comment on how it is built.
    """

    what: str
    table: str
    does: str
    needs: str
    imports: str
    arguments: str
    built: str


KIND_TEXTS = {
    "noise": KindText(
        what="noise schedule",
        table="[noise]",
        does="e ~ U[0, level] during the first part of training, no noise after it",
        needs="torch",
        imports="StepNoise",
        arguments="StepNoise, lambda schedule: schedule",
        built=ITSELF,
    ),
    "regularizer": KindText(
        what="regularizer",
        table="[[regularizers]]",
        does="a linear layer tells from a block's output which of the tokens that it read were replaced",
        needs="torch",
        imports="FindNoise, FindNoiseSettings",
        arguments="FindNoiseSettings, FindNoise",
        built=f"{BUILT} and a RegularizerContext: the sizes, the codebook, the backbone.",
    ),
    "tokenizer": KindText(
        what="tokenizer",
        table="[tokenizer]",
        does="cuts an image into patches, and makes each the nearest of a learned codebook",
        needs="torch",
        imports="PatchSettings, PatchTokenizer",
        arguments="PatchSettings, PatchTokenizer",
        built=f"{BUILT}.",
    ),
    "backbone": KindText(
        what="backbone",
        table="[backbone]",
        does="a causal transformer with learned positions, and the class as the first of them",
        needs="torch",
        imports="Transformer, TransformerSettings",
        arguments="TransformerSettings, Transformer",
        built=f"{BUILT} and a TokenSpace: how many tokens, codes and classes there are.",
    ),
    "dataset": KindText(
        what="dataset",
        table="[data.source]",
        does="draws discs and squares of random size, place and colour",
        needs="numpy",
        imports="Shapes",
        arguments="Shapes, lambda shapes: shapes",
        built=ITSELF,
    ),
}


def write_plugin(name: str, into: Path, kind: str = "noise") -> Path:
    """Write a working package ``rearkit-NAME`` with one component NAME, and print the next steps.

    Args:
        name: lower-case words and numbers joined by hyphens, with or without the prefix ``rearkit-``.
        into: folder to write the package's folder to.
        kind: the component's kind, one of `rearkit.registry.component.KINDS`.

    Returns:
        the package's folder.

    Raises:
        RearkitError: the name cannot be used, or the folder exists.
    """
    name = name.removeprefix(PREFIX)
    _check_name(name, kind)
    folder = into / (PREFIX + name)
    _check_place(folder)
    # Written aside and renamed at the end, so that an interrupted call leaves no half of a package.
    with replacing(folder) as temporary:
        for path, content in _files(name, kind):
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(content, encoding="utf-8")
    module = _module(name)
    say(
        f"wrote {folder}; next:\n"
        f"  pip install -e {folder}\n"
        f"  python -m rearkit plugins    # lists {kind} {name}\n"
        f"  python -m pytest {folder}    # checks its contract\n"
        f"  python -m rearkit run {folder / EXAMPLE}    # a small run with it\n"
        f"then change {folder / module / f'{kind}.py'} into what you need; docs/plugins/{kind}.md walks through it"
    )
    return folder


def _check_name(name: str, kind: str) -> None:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise RearkitError(
            f"{name!r}: a plugin's name is lower-case words and numbers joined by hyphens, like my-noise"
        )
    # A name that two packages provide cannot be used, so neither could the new package.
    taken = [one.provider for one in plugins.registry().all() if (one.kind, one.name) == (kind, name)]
    if taken:
        raise RearkitError(f"{name!r}: {taken[0]} already has a {kind} of this name; choose another")


def _check_place(folder: Path) -> None:
    # exists() follows links, and is False for one that leads nowhere.
    if folder.exists() or folder.is_symlink():
        raise RearkitError(f"{folder}: exists already; choose another name, or another folder with --into")
    # Missing parents are created, which fails if one of them is a file.
    standing = next(path for path in folder.absolute().parents if path.exists())
    if not standing.is_dir():
        raise RearkitError(f"{standing}: not a folder, so no package can be written into it")


def _module(name: str) -> str:
    return (PREFIX + name).replace("-", "_")


def _files(name: str, kind: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the content of each file of a package."""
    values = {"name": name, "distribution": PREFIX + name, "module": _module(name), "kind": kind}
    values |= attrs.asdict(KIND_TEXTS[kind])
    # The README shows the recipe as it stands in its file.
    values["example"] = _filled(TEMPLATES / kind / f"{EXAMPLE}{SUFFIX}", values)
    for root in (TEMPLATES / "shared", TEMPLATES / kind):
        for template in sorted(root.rglob(f"*{SUFFIX}")):
            path = template.relative_to(root).as_posix().removesuffix(SUFFIX).replace("package", values["module"])
            yield path, _filled(template, values)


def _filled(template: Path, values: Mapping[str, str]) -> str:
    return Template(template.read_text(encoding="utf-8")).substitute(values)
