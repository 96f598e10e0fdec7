"""``new-plugin``: write a package that adds a component, from the files in ``templates/plugin``."""

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
SUFFIX = ".tmpl"


def write_plugin(name: str, into: Path) -> Path:
    """Write a working package ``rearkit-NAME`` with one noise schedule NAME, and say what to do next.

    Args:
        name: lower-case words and numbers joined by hyphens, with or without ``rearkit-`` in front.
        into: the folder that gets the package's folder.

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
    if name in plugins.registry().names("noise"):
        provider = plugins.find("noise", name).provider
        raise RearkitError(f"{name!r}: {provider} has a noise of this name already; choose another")
    distribution = PREFIX + name
    module = distribution.replace("-", "_")
    folder = into / distribution
    if folder.exists() or folder.is_symlink():
        raise RearkitError(f"{folder}: exists already; choose another name, or another folder with --into")
    standing = next(path for path in (into.absolute(), *into.absolute().parents) if path.exists())
    if not standing.is_dir():
        raise RearkitError(f"{standing}: not a folder, so that no package can be written into it")
    values = {"name": name, "distribution": distribution, "module": module}
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
        f"then make {folder / module} what you need; its __init__.py says how to add the other kinds"
    )
    return folder
