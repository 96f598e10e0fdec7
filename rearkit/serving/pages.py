"""The page, its scripts and style, and the page about the interface: files of the folder ``page``."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2

from rearkit.reports.page_templates import environment

PAGE = "index.html.j2"
INTERFACE = "interface.html.j2"
KINDS = {
    "page.css": "text/css",
    "start.js": "text/javascript",
    "classes.js": "text/javascript",
    "brush.js": "text/javascript",
    "results.js": "text/javascript",
    "photos.js": "text/javascript",
    "mark.svg": "image/svg+xml",
}
"""The files that the page loads, and what they are."""


def _environment() -> jinja2.Environment:
    return environment("serving/page", "reports")


def page(name: str, **values: Any) -> str:
    """Return a page of the folder with values filled in."""
    return _environment().get_template(name).render(values)


@cache
def loaded(name: str) -> str:
    """Return a file that the page loads; the style begins with that of the reports."""
    loader = _environment().loader
    assert loader is not None
    text = loader.get_source(_environment(), name)[0]
    return loader.get_source(_environment(), "page.css.j2")[0] + text if name == "page.css" else text
