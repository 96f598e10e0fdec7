"""Hold the tables of a measured page against the CSV files beside it."""

from __future__ import annotations

import csv
import re
from pathlib import Path

NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?%?")


def tables(page: str) -> list[dict[tuple[str, str], str]]:
    """Return the cells of each table of a page in Markdown, by row and column."""
    found: list[dict[tuple[str, str], str]] = []
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", page, re.MULTILINE)
    for block in blocks:
        heading, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        found.append(
            {(row[0], column): cell for row in rows for column, cell in zip(heading[1:], row[1:], strict=True)}
        )
    return found


def rounds_to(shown: str, value: float) -> bool:
    """Whether a number as it is shown is the rounded value."""
    plain = shown.replace(",", "").rstrip("%").lstrip("+")
    decimals = len(plain.partition(".")[2])
    return abs(float(plain) - value * (100 if shown.endswith("%") else 1)) <= 0.5000001 * 10**-decimals


def check(page: Path) -> int:
    """Compare each figure of a page's tables with its unrounded value; return how many there are.

    Raises:
        AssertionError: one is not in the files, or not what they say.
    """
    text = page.read_text(encoding="utf-8")
    folder = page.with_suffix("")
    lines = list(csv.DictReader((folder / "figures.csv").read_text(encoding="utf-8").splitlines()))
    names = list(dict.fromkeys(line["table"] for line in lines))
    count = 0
    # The last table of a page says which keys of the recipe differ.
    for name, cells in zip(names, tables(text)[: len(names)], strict=True):
        known = {(line["row"], line["column"]): line for line in lines if line["table"] == name}
        assert cells.keys() == known.keys(), name
        for place, cell in cells.items():
            line = known[place]
            assert cell == line["shown"], (name, place)
            numbers = NUMBER.findall(cell)
            values = [float(line[key]) for key in ("mean", "sd") if line[key]]
            assert len(numbers) == len(values), (name, place, cell)
            assert all(map(rounds_to, numbers, values)), (name, place, cell, values)
            count += len(numbers)
    scores = csv.DictReader((folder / "table.csv").read_text(encoding="utf-8").splitlines())
    means = {line["row"]: line["mean"] for line in lines if (line["table"], line["column"]) == ("scores", "FID ↓")}
    assert {row["name"]: row["fid_mean"] for row in scores} == means
    return count
