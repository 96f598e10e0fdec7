"""The pictures of a run's pages: grids that stages have saved, cut into strips that wrap on a narrow page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from rearkit.stages.data import run_classes
from rearkit.stages.run_folder import RunFolder
from rearkit.tokenization.quality import GRID_IMAGES
from rearkit.training.pictures import read_pictures

PROGRESS = 10  # rows of samples over training, at most
PADDING = 2  # pixels between the cells of a saved grid, as `save_grid` leaves them
CELL = 130  # pixels; larger cells are scaled down, so that the page stays small


def reconstructions(folder: RunFolder, result: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return pictures of originals above their reconstructions, or of decoded tokens if there are no images."""
    if result is None:
        return []
    high = 2 if "psnr" in result or result["train_views"] > GRID_IMAGES else 1
    return [picture for row in _strips(folder.reconstructions, 1, high, columns=4) for picture in row]


def copies(folder: RunFolder, scores: Mapping[str, Any] | None) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return pictures of samples above their nearest real images: the first samples, then the nearest of all."""
    if scores is None or scores.get("nearest") is None:
        return []
    rows = _strips(folder.nearest, rows=2, high=2, columns=4)
    return list(zip(("The first samples", "The samples nearest to a real image"), rows, strict=False))


def progress(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the rows of samples over training: for each of some checkpoints its step and pictures."""
    found = list(read_pictures(folder.stage("train")).items())
    # The first and the last, and evenly between.
    chosen = {round(index * (len(found) - 1) / (PROGRESS - 1)) for index in range(PROGRESS)} if found else set()
    shown = [found[index] for index in sorted(chosen)]
    return [{"step": step, "pictures": _strips(path, 1, 1, columns=4)[0]} for step, path in shown]


def sample_rows(folder: RunFolder, result: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the rows of the sample grid: for each class its name and pictures."""
    if result is None:
        return []
    pictures = _strips(folder.sample_grid, rows=result["grid_classes"], high=1, columns=5)
    # Not strict: a picture that was deleted has no rows.
    return [{"label": label, "pictures": row} for label, row in zip(grid_classes(folder), pictures, strict=False)]


def grid_classes(folder: RunFolder) -> tuple[str, ...]:
    """Return the titles of the classes in the sample grid of a run that has sampled, from top to bottom."""
    count = folder.result("sample")["grid_classes"]
    # The names went with the data, if somebody has deleted it.
    return run_classes(folder).titles[:count] if folder.images.is_file() else tuple(map(str, range(count)))


def common_classes(folders: Iterable[RunFolder]) -> str:
    """Return the classes in the sample grids of runs, from top to bottom; empty if the grids show different ones."""
    found = {grid_classes(folder) for folder in folders}
    return ", ".join(found.pop()) if len(found) == 1 else ""


def sample_maps(folder: RunFolder, result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the maps of a few samples: what each column shows, and a picture with a sample a row."""
    names = (result or {}).get("maps")
    if not names or not folder.sample_maps.is_file():
        return None
    with Image.open(folder.sample_maps) as opened:
        grid = opened.convert("RGB")
    return {"columns": names, "picture": _picture(grid, (grid.width - PADDING) // len(names))}


def sample_grid(folder: RunFolder) -> dict[str, Any] | None:
    """Return the whole sample grid of a run as one picture, a class a row; None if there is none."""
    path = folder.sample_grid
    done = folder.done("sample")
    if done is None or not path.is_file():
        return None
    with Image.open(path) as opened:
        grid = opened.convert("RGB")
    return _picture(grid, (grid.height - PADDING) // done["result"]["grid_classes"])


def _strips(path: Path, rows: int, high: int, columns: int) -> list[list[dict[str, Any]]]:
    """Cut a saved grid into pictures that wrap on a narrow page.

    Args:
        path: of the grid's file, which may be missing.
        rows: rows of pictures.
        high: rows of the grid in each picture.
        columns: most columns of the grid in each picture.
    """
    if not path.is_file():
        return []
    with Image.open(path) as opened:
        grid = opened.convert("RGB")
    # A pitch is a cell with its padding on one side; the grid has padding once more at the far edge.
    pitch = (grid.height - PADDING) // (rows * high)
    total = max(1, (grid.width - PADDING) // pitch)
    return [
        [
            _picture(_cut(grid, pitch, row * high, high, left, min(left + columns, total)), pitch)
            for left in range(0, total, columns)
        ]
        for row in range(rows)
    ]


def _cut(grid: Image.Image, pitch: int, row: int, high: int, left: int, right: int) -> Image.Image:
    """Cut out ``high`` rows of cells from ``row`` on, columns ``left`` to ``right``, without the padding around."""
    return grid.crop((PADDING + left * pitch, PADDING + row * pitch, right * pitch, (row + high) * pitch))


def _picture(image: Image.Image, pitch: int) -> dict[str, Any]:
    """Return an image as a data URI with its size in CSS pixels; larger cells become JPEG, others PNG."""
    # JPEG would blur the pixels of small images, which are saved enlarged; PNG of photographs would be much larger.
    form = "PNG"
    if pitch > CELL:
        form = "JPEG"
        image = image.resize((round(image.width * CELL / pitch), round(image.height * CELL / pitch)))
    buffer = io.BytesIO()
    image.save(buffer, form, optimize=True, **({"quality": 90} if form == "JPEG" else {}))
    content = base64.b64encode(buffer.getvalue()).decode()
    return {"uri": f"data:image/{form.lower()};base64,{content}", "width": image.width, "height": image.height}
