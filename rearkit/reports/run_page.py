"""``report.html``: one self-contained page that shows a run, whichever of its stages have run."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2
import tomli_w
from PIL import Image

from rearkit.analysis.diagnose import read_diagnosis
from rearkit.errors import RearkitError
from rearkit.evaluation.fidelity import FULL_SET
from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import Recipe, component_tables
from rearkit.reports.charts import drawn, fit_charts, training_charts
from rearkit.reports.diagnosis import charts as diagnosis_charts
from rearkit.reports.diagnosis import summary as diagnosis_summary
from rearkit.stages.data import run_classes
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Stage, stage_key
from rearkit.system.files import write_text
from rearkit.system.versions import versions
from rearkit.tokenization.quality import GRID_IMAGES
from rearkit.training.logs import read_log

DONE = "done"
OUT_OF_DATE = "out of date"
PADDING = 2  # pixels between the cells of a saved grid
CELL = 130  # pixels; larger cells are scaled down

Results = Mapping[str, Mapping[str, Any] | None]
"""What each finished stage returned, by its name."""

WORK = {
    "data": "image shards",
    "tokenizer": "images to tokens and back",
    "tokens": "token shards, checked",
    "train": "the backbone",
    "sample": "images from the backbone",
    "evaluate": "scores of the samples",
}


def write_report(recipe: Recipe, folder: RunFolder, stages: Sequence[Stage]) -> None:
    """Write ``report.html`` into the run folder, from what its stages have left there.

    Args:
        recipe: the run's; results of an earlier one are shown as out of date.
        folder: the run's folder; no stage need have run.
        stages: the stages of a run, in order.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rearkit", "reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(gather(recipe, folder, stages))
    write_text(folder.report, page)


def gather(recipe: Recipe, folder: RunFolder, flow: Sequence[Stage]) -> dict[str, Any]:
    """Collect what the template shows; a part whose stage has not run is None or empty."""
    stages = stage_rows(recipe, folder, flow)
    results = {row["name"]: row["result"] for row in stages}
    diagnosis = read_diagnosis(folder)
    return {
        "name": recipe.name,
        "summary": summary(recipe, results),
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "stages": stages,
        "states": {row["name"]: row["state"] for row in stages},
        "results": results,
        "score_cards": score_cards(results["evaluate"]),
        "score_notes": score_notes(results["evaluate"]),
        "samples": _sample_rows(folder, results["sample"]),
        "copies": _copies(folder, results["evaluate"]),
        "reconstructions": _reconstructions(folder, results["tokens"]),
        "training": drawn(training_charts(read_log(folder.stage("train")))),
        "fit": drawn(fit_charts(read_log(folder.fit_log.parent, folder.fit_log.name))),
        "diagnosis": [] if diagnosis is None else drawn(diagnosis_charts({"": [diagnosis]})),
        "diagnosis_rows": [] if diagnosis is None else diagnosis_summary({"": [diagnosis]}),
        "components": component_tables(recipe),
        "recipe": tomli_w.dumps(recipe_to_dict(recipe)),
        "versions": versions(),
    }


def summary(recipe: Recipe, results: Results) -> str:
    """Say in a sentence what the run is and how far it got."""
    trained, scores = results["train"], results["evaluate"]
    backbone = f"A {recipe.backbone.name} backbone"
    if trained is not None:
        given = "with given weights" if recipe.backbone.weights is not None else ""
        steps = f"trained for {trained['steps']:,} steps" if trained["steps"] else ""
        backbone += f" of {trained['parameters']:,} parameters, {' '.join(filter(None, (given, steps)))}"
    noise = f"{recipe.noise.name} context noise" if recipe.noise is not None else "no context noise"
    regularizers = " and ".join(table.name for table in recipe.regularizers) or "no"
    what = (
        f"{backbone} on {recipe.data.source.name}, tokenized by {recipe.tokenizer.name}, "
        f"with {noise} and {regularizers} regularization"
    )
    if scores is not None:
        floor = "" if scores["fid_floor"] is None else f" (floor {scores['fid_floor']:.2f})"
        space = "Inception’s features" if is_inception(scores) else "the features of a classifier of its own"
        return f"{what}; its samples reach FID {scores['fid']:.2f}{floor} in {space}."
    done = sum(result is not None for result in results.values())
    return f"{what}; {done} of {len(results)} stages have run."


def is_inception(scores: Mapping[str, Any]) -> bool:
    """Whether scores are in the feature space that published ones are in."""
    return str(scores["feature_space"]).startswith("Inception")


def score_cards(scores: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Scores as name, number, what held-out real images reach, and what it means."""
    if scores is None:
        return []
    real = {"fid": scores["fid_floor"], **(scores.get("held_out") or {})}
    cards = []
    for key, name, digits, meaning in (
        ("fid", "FID", 2, f"of {scores['num_samples']:,} samples, in this feature space; lower is better"),
        ("sfid", "sFID", 2, "FID of features that know where in the image they are"),
        ("inception_score", "Inception Score", 2, "higher is better; 1 is the least"),
        ("precision", "Precision", 3, "share of samples that lie among real images"),
        ("recall", "Recall", 3, "share of real images that lie among samples"),
    ):
        if scores.get(key) is not None:
            floor = "" if real.get(key) is None else f"{real[key]:.{digits}f}"
            cards.append({"name": name, "value": f"{scores[key]:.{digits}f}", "floor": floor, "meaning": meaning})
    if scores["class_agreement"] is not None:
        accuracy = scores["classifier_accuracy"]
        cards.append(
            {
                "name": "Class agreement",
                "value": f"{scores['class_agreement']:.1%}",
                "floor": "" if accuracy is None else f"{accuracy:.1%}",
                "meaning": "samples that the classifier takes for the class asked for",
            }
        )
    return cards


def score_notes(scores: Mapping[str, Any] | None) -> list[str]:
    """What must be known before the scores are compared with others."""
    if scores is None:
        return []
    notes = [f"All against {scores['reference']}."]
    samples, held_out = scores["num_samples"], scores["num_held_out"]
    if scores["fid_floor"] is not None:
        notes.append(
            f"“Real images” is what {held_out:,} held-out real images reach: the floor of FID, and what perfect "
            "samples would come to."
        )
    if scores["fid_floor"] is None:
        notes.append("There are no held-out images to compute a floor from.")
    elif samples != held_out:
        notes.append(
            f"FID falls with more images: that of {samples:,} samples and a floor of {held_out:,} images "
            "compare only roughly."
        )
    if is_inception(scores) and samples < FULL_SET:
        notes.append(f"Published scores are of {FULL_SET:,} samples; FID is higher with fewer.")
    return notes


def stage_rows(recipe: Recipe, folder: RunFolder, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Each stage with its state, seconds and result; out of date is also what comes after one that is."""
    rows: dict[str, dict[str, Any]] = {}
    for stage in stages:
        done = folder.done(stage.name) or {}
        inputs_hold = all(rows[name]["state"] == DONE for name in stage.inputs)
        rows[stage.name] = {
            "name": stage.name,
            "work": WORK[stage.name],
            "state": _state(stage, recipe, folder, inputs_hold),
            "seconds": done.get("seconds"),
            "result": done.get("result"),
        }
    return list(rows.values())


def _state(stage: Stage, recipe: Recipe, folder: RunFolder, inputs_hold: bool) -> str:
    done = folder.done(stage.name)
    if done is None:
        return "unfinished" if folder.key(stage.name).is_file() else "not run"
    try:
        holds = inputs_hold and done["key"] == stage_key(stage, recipe, folder)
    except (RearkitError, OSError):  # a file that only this stage reads may be gone by now
        holds = inputs_hold
    return DONE if holds else OUT_OF_DATE


def _reconstructions(folder: RunFolder, result: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Pictures of originals above what they decode to; of decoded tokens alone, where there are no images."""
    if result is None:
        return []
    high = 2 if "psnr" in result or result["train_views"] > GRID_IMAGES else 1
    return [picture for row in _strips(folder.reconstructions, 1, high, columns=4) for picture in row]


def _copies(folder: RunFolder, scores: Mapping[str, Any] | None) -> list[tuple[str, list[dict[str, Any]]]]:
    """Pictures of samples above the real images nearest to them: of the first samples, and of the nearest of all."""
    if scores is None or scores.get("nearest") is None:
        return []
    rows = _strips(folder.nearest, rows=2, high=2, columns=4)
    return list(zip(("The first samples", "The samples nearest to a real image"), rows, strict=False))


def _sample_rows(folder: RunFolder, result: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of the sample grid: a class's name and its pictures."""
    if result is None:
        return []
    count = result["grid_classes"]
    pictures = _strips(folder.sample_grid, rows=count, high=1, columns=5)
    return [{"label": label, "pictures": row} for label, row in zip(run_classes(folder).titles, pictures, strict=False)]


def sample_grid(folder: RunFolder) -> dict[str, Any] | None:
    """The picture of a run's samples, a class a row, as a whole; None where there is none."""
    path, done = folder.sample_grid, folder.done("sample")
    if done is None or not path.is_file():
        return None
    with Image.open(path) as opened:
        grid = opened.convert("RGB")
    return _picture(grid, (grid.height - PADDING) // done["result"]["grid_classes"])


def _strips(path: Path, rows: int, high: int, columns: int) -> list[list[dict[str, Any]]]:
    """Cut a saved grid into pictures that a narrow page can wrap.

    Args:
        path: of the grid; there may be none.
        rows: rows of pictures.
        high: rows of the grid in each.
        columns: columns of the grid in each, at most.
    """
    if not path.is_file():
        return []
    with Image.open(path) as opened:
        grid = opened.convert("RGB")
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
    """Cells of a grid without the padding around: ``high`` rows from ``row`` on, columns ``left`` to ``right``."""
    return grid.crop((PADDING + left * pitch, PADDING + row * pitch, right * pitch, (row + high) * pitch))


def _picture(image: Image.Image, pitch: int) -> dict[str, Any]:
    """A data URI with its size in CSS pixels: PNG for enlarged small images, JPEG for photographs."""
    form = "PNG"
    if pitch > CELL:
        form = "JPEG"
        image = image.resize((round(image.width * CELL / pitch), round(image.height * CELL / pitch)))
    buffer = io.BytesIO()
    image.save(buffer, form, optimize=True, **({"quality": 90} if form == "JPEG" else {}))
    content = base64.b64encode(buffer.getvalue()).decode()
    return {"uri": f"data:image/{form.lower()};base64,{content}", "width": image.width, "height": image.height}
