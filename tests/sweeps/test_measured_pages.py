"""Pages of figures that are committed: each figure is what the files beside it say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.page_figures import check

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "measured").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_figure_of_a_page_is_in_its_files(page: Path) -> None:
    assert check(page) > 50
    assert (ROOT / "recipes" / "ablations" / f"{page.stem}.toml").is_file()
    for listing in (ROOT / "mkdocs.yml", ROOT / "docs" / "ablations.md"):
        assert f"measured/{page.name}" in listing.read_text(encoding="utf-8")


def test_there_are_pages() -> None:
    assert PAGES
