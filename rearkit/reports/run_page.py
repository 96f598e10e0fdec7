"""``report.html``: one self-contained page about a run, at any time: not all stages need to have run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import tomli_w

from rearkit.analysis.diagnose import read_diagnosis
from rearkit.errors import RearkitError
from rearkit.evaluation.fidelity import FULL_SET
from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import Recipe, component_tables
from rearkit.reports.charts import drawn, fit_charts, training_charts
from rearkit.reports.diagnosis import charts as diagnosis_charts
from rearkit.reports.diagnosis import summary as diagnosis_summary
from rearkit.reports.galleries import copies, progress, reconstructions, sample_maps, sample_rows
from rearkit.reports.page_templates import page_template
from rearkit.stages.course import course_line
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Stage, stage_key
from rearkit.system.files import write_text
from rearkit.system.versions import versions
from rearkit.training.logs import read_log

DONE = "done"
OUT_OF_DATE = "out of date"

Results = Mapping[str, Mapping[str, Any] | None]
"""Each stage's result by the stage's name; None if it has not finished."""

WORK = {
    "data": "image shards",
    "tokenizer": "images to tokens and back",
    "tokens": "token shards, checked",
    "train": "the backbone",
    "sample": "images from the backbone",
    "evaluate": "scores of the samples",
}


def write_report(recipe: Recipe, folder: RunFolder, stages: Sequence[Stage]) -> None:
    """Write ``report.html`` into the run folder, from the files of its stages.

    Args:
        recipe: of the run; results of another recipe are shown as out of date.
        folder: the run's folder, in any state.
        stages: the stages of a run, in order.
    """
    page = page_template("report.html.j2").render(gather(recipe, folder, stages))
    write_text(folder.report, page)


def gather(recipe: Recipe, folder: RunFolder, flow: Sequence[Stage]) -> dict[str, Any]:
    """Return the template's variables; those of a stage that has not run are None or empty."""
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
        "samples": sample_rows(folder, results["sample"]),
        "maps": sample_maps(folder, results["sample"]),
        "copies": copies(folder, results["evaluate"]),
        "reconstructions": reconstructions(folder, results["tokens"]),
        "training": drawn(training_charts(read_log(folder.stage("train")))),
        "progress": progress(folder),
        "courses": [course_line(course) for course in folder.joins()],
        "fit": drawn(fit_charts(read_log(folder.fit_log.parent, folder.fit_log.name))),
        "diagnosis": [] if diagnosis is None else drawn(diagnosis_charts({"": [diagnosis]})),
        "diagnosis_rows": [] if diagnosis is None else diagnosis_summary({"": [diagnosis]}),
        "components": component_tables(recipe),
        "recipe": tomli_w.dumps(recipe_to_dict(recipe)),
        "versions": versions(),
    }


def summary(recipe: Recipe, results: Results) -> str:
    """Describe the run and how far it got, in a sentence."""
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
    """Return whether scores are in the feature space of published scores."""
    return str(scores["feature_space"]).startswith("Inception")


def score_cards(scores: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Return each score's name, value, floor (what held-out real images reach) and meaning."""
    if scores is None:
        return []
    # The floor of FID may be there without the other scores of held-out images.
    real = {"fid": scores["fid_floor"], **(scores.get("held_out") or {})}
    cards = []
    for key, name, digits, meaning in (
        ("fid", "FID", 2, f"of {scores['num_samples']:,} samples, in this feature space; lower is better"),
        ("sfid", "sFID", 2, "FID of features that keep their position in the image"),
        ("inception_score", "Inception Score", 2, "higher is better; the minimum is 1"),
        ("precision", "Precision", 3, "share of samples that lie among real images"),
        ("recall", "Recall", 3, "share of real images that lie among samples"),
    ):
        # Scores that this reference does not allow, such as sFID without spatial statistics, are None.
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
                "meaning": "share of samples that the classifier assigns to the class asked for",
            }
        )
    return cards


def score_notes(scores: Mapping[str, Any] | None) -> list[str]:
    """Return what readers need to know before they compare the scores with others."""
    if scores is None:
        return []
    notes = [f"All compared with {scores['reference']}."]
    samples, held_out = scores["num_samples"], scores["num_held_out"]
    if scores["fid_floor"] is not None:
        notes.append(
            f"“Real images” are the scores of {held_out:,} held-out real images: the floor of FID, and what perfect "
            "samples would reach."
        )
    if scores["fid_floor"] is None:
        notes.append("There are no held-out images to compute a floor from.")
    elif samples != held_out:
        notes.append(
            f"FID falls with more images: the FID of {samples:,} samples and a floor from {held_out:,} images "
            "compare only roughly."
        )
    if is_inception(scores) and samples < FULL_SET:
        notes.append(f"Published scores are computed from {FULL_SET:,} samples; FID is higher with fewer.")
    return notes


def stage_rows(recipe: Recipe, folder: RunFolder, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Return each stage's name, state, seconds and result; a stage is also out of date if one of its inputs is."""
    rows: dict[str, dict[str, Any]] = {}
    # In order, since a stage's state depends on those of its inputs.
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
        # The key is written when a stage starts.
        return "unfinished" if folder.key(stage.name).is_file() else "not run"
    try:
        holds = inputs_hold and done["key"] == stage_key(stage, recipe, folder)
    except (RearkitError, OSError):
        # A file that the key depends on may be gone by now; the finished results are still good.
        holds = inputs_hold
    return DONE if holds else OUT_OF_DATE
