"""Templates of pages, in folders of the package."""

from __future__ import annotations

from functools import cache

import jinja2


@cache
def environment(*folders: str) -> jinja2.Environment:
    """Return what fills in the templates of these folders of the package; of like names, the first folder's counts."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("rearkit", folder) for folder in folders]),
        autoescape=True,
        # A misspelt name in the template is an error, not an empty string.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_template(name: str) -> jinja2.Template:
    """Return a template of this folder."""
    return environment("reports").get_template(name)
