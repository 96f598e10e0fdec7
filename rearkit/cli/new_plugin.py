"""``new-plugin``: write a pip package that adds a component, from the files in ``templates/plugin``."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from rearkit.errors import RearkitError
from rearkit.registry import plugins
from rearkit.system.console import say
from rearkit.system.files import replacing

PREFIX = "rearkit-"
TEMPLATES = Path(__file__).parent / "templates" / "plugin"
# Templates have a suffix of their own so that pytest, linters and setuptools do not take them for Python files.
SUFFIX = ".tmpl"


def write_plugin(name: str, into: Path) -> Path:
    """Write a working package ``rearkit-NAME`` with one noise schedule NAME, and print the next steps.

    Args:
        name: lower-case words and numbers joined by hyphens, with or without the prefix ``rearkit-``.
        into: folder to write the package's folder to.

    Returns:
        the package's folder.

    Raises:
        RearkitError: the name cannot be used, or the folder exists.
    """
    name = name.removeprefix(PREFIX)
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise RearkitError(
            f"{name!r}: a plugin's name is lower-case words and numbers joined by hyphens, like my-noise"
        )
    # A name that two packages provide cannot be used, so neither could the new package.
    taken = [
        component.provider
        for component in plugins.registry().all()
        if component.kind == "noise" and component.name == name
    ]
    if taken:
        provider = taken[0]
        raise RearkitError(f"{name!r}: {provider} already has a noise of this name; choose another")
    distribution = PREFIX + name
    module = distribution.replace("-", "_")
    folder = into / distribution
    # exists() follows links, and is False for one that leads nowhere.
    if folder.exists() or folder.is_symlink():
        raise RearkitError(f"{folder}: exists already; choose another name, or another folder with --into")
    # ``into`` and its parents are created if missing, which fails if one of them is a file.
    standing = next(path for path in (into.absolute(), *into.absolute().parents) if path.exists())
    if not standing.is_dir():
        raise RearkitError(f"{standing}: not a folder, so no package can be written into it")
    values = {"name": name, "distribution": distribution, "module": module}
    # Written aside and renamed at the end, so that an interrupted call leaves no half of a package.
    with replacing(folder) as temporary:
        for template in sorted(TEMPLATES.rglob(f"*{SUFFIX}")):
            path = str(template.relative_to(TEMPLATES)).removesuffix(SUFFIX).replace("package", module)
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            content = Template(template.read_text(encoding="utf-8")).substitute(values)
            (temporary / path).write_text(content, encoding="utf-8")
    say(
        f"wrote {folder}; next:\n"
        f"  pip install -e {folder}\n"
        f"  python -m rearkit plugins    # lists noise {name}\n"
        f"  python -m pytest {folder}    # checks its contract\n"
        f"then change {folder / module} into what you need; its __init__.py says how to add other kinds"
    )
    return folder
