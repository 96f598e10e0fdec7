"""``--continue``: a training goes on from its last checkpoint by a changed ``[train]``, instead of starting anew.

Weights, optimizer state and step stay; whatever depends on the step and on ``steps`` (learning rate, noise, progress)
is from then on what the changed recipe says of this step. Each join is noted in ``train/courses.json`` and the log.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

import attrs

from rearkit.errors import RearkitError
from rearkit.recipe.settings import with_changes
from rearkit.recipe.tables import Recipe
from rearkit.recipe.train_table import TrainTable
from rearkit.stages.aside import drop_copies
from rearkit.stages.flow import NAMES, STAGES
from rearkit.stages.intact import keys_of, write_key
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import keep_training_recipe, training_recipes
from rearkit.stages.stage import stage_key, up_to_date
from rearkit.stages.train import STAGE
from rearkit.system.checksums import write_sealed
from rearkit.system.console import say
from rearkit.system.files import remove, replacing, storage_errors
from rearkit.training.checkpoints import CHECKPOINTS, Checkpoints
from rearkit.training.logs import JOIN, JSONL, read_log, write_log
from rearkit.training.schedule import learning_rate

# What the order of the samples follows from: with others, some would be seen twice and some never.
FIXED = ("seed", "global_batch")
TABLES = ("tokenizer", "tokens", "backbone", "noise", "regularizers")


def change_course(recipe: Recipe, folder: RunFolder) -> None:
    """Let the run's training go on by a recipe of which only ``[train]`` has changed; nothing, if nothing has.

    A finished result is copied to ``previous/``, without its checkpoints.

    Args:
        recipe: the changed recipe; ``steps`` must be above the steps taken.
        folder: the run, which this process has claimed.

    Raises:
        RearkitError: there is nothing to go on from, or more has changed.
    """
    checkpoints = Checkpoints(folder.stage(STAGE.name) / CHECKPOINTS, recipe.train.keep_checkpoints)
    key = stage_key(STAGE, recipe, folder)
    # Where the file is damaged, the checkpoints tell; several if one of them is damaged.
    begun = keys_of(folder, STAGE.name) or checkpoints.owners()
    if key in begun:
        return
    if not begun:
        raise RearkitError(f"--continue: {folder.path} has no training to go on with; leave --continue out")
    before = _before(recipe, folder, begun)
    changes = _changes(before, recipe.train)
    step = _step(recipe, folder, checkpoints)
    place = folder.stage(STAGE.name)
    with storage_errors(place):
        drop_copies(folder, STAGE.name)
        if folder.record(STAGE.name).is_file():
            _keep(folder)
        # Of a join that was cut off before the key below was written.
        earlier = [course for course in folder.joins() if course["step"] < step]
        write_sealed(folder.courses, {"courses": [*earlier, {"step": step, "changed": changes}]})
        _mark(folder, step)
        checkpoints.adopt(key)
        # Before the record goes: from now on the stage counts as one that was cut off, and is resumed.
        write_key(folder, STAGE.name, key)
        keep_training_recipe(recipe, folder)
        remove(folder.record(STAGE.name))
    told = f"{learning_rate(before, step - 1):.3g} to {learning_rate(recipe.train, step):.3g}"
    say(f"train: goes on {course_line(folder.joins()[-1])}; the learning rate goes from {told}")


def course_line(course: Mapping[str, Any]) -> str:
    """Say in words what changed at a join."""
    changed = ", ".join(
        f"{name} {json.dumps(old)} → {json.dumps(new)}" for name, (old, new) in course["changed"].items()
    )
    return f"from step {course['step']:,} with [train] {changed}"


def _before(recipe: Recipe, folder: RunFolder, begun: list[str]) -> TrainTable:
    """Return the ``[train]`` that the training was begun with, after checking that nothing else has changed."""
    earlier = STAGES[: NAMES.index(STAGE.name)]
    for stage in earlier:
        if not up_to_date([stage], recipe, folder):
            raise RearkitError(f"--continue: stage '{stage.name}' has changed, and training follows it; leave it out")
    found = []
    for one in training_recipes(folder):
        found.append(one)
        if stage_key(STAGE, with_changes(recipe, train=one.train), folder) in begun:
            before: TrainTable = one.train
            return before
    changed = [f"[{name}]" for name in TABLES if any(getattr(one, name) != getattr(recipe, name) for one in found[:1])]
    raise RearkitError(
        f"--continue: only [train] may change, and {', '.join(changed) or 'the seed or weights'} did; "
        "leave --continue out to train anew"
    )


def _changes(before: TrainTable, after: TrainTable) -> dict[str, list[Any]]:
    fields = attrs.fields(TrainTable)  # type: ignore[arg-type]
    names = [field.name for field in fields if not field.metadata.get("cosmetic")]
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    if fixed := [name for name in changed if name in FIXED]:
        raise RearkitError(
            f"--continue: [train] {fixed[0]} cannot change on the way, since the order of samples follows from it"
        )
    plain = {name: (getattr(before, name), getattr(after, name)) for name in changed}
    return {name: [attrs.asdict(one) if attrs.has(type(one)) else one for one in pair] for name, pair in plain.items()}


def _step(recipe: Recipe, folder: RunFolder, checkpoints: Checkpoints) -> int:
    """Return the step of the last intact checkpoint."""
    found = checkpoints.find()
    if found is None:
        raise RearkitError(f"--continue: {folder.stage(STAGE.name)} has no intact checkpoint; leave --continue out")
    if found.step >= recipe.train.steps:
        raise RearkitError(
            f"--continue: {found.step} steps are taken, and [train] steps = {recipe.train.steps} in all; "
            f"say how many in all: --set train.steps={2 * found.step}"
        )
    return found.step


def _keep(folder: RunFolder) -> None:
    target = folder.previous(STAGE.name)
    with replacing(target) as temporary:
        shutil.copytree(
            folder.stage(STAGE.name), temporary, ignore=shutil.ignore_patterns("checkpoints", "cache", ".*")
        )
    say(f"train: the result so far is kept in {target}")


def _mark(folder: RunFolder, step: int) -> None:
    """Mark the join in the log, in the line of its step."""
    place = folder.stage(STAGE.name)
    lines = [line for line in read_log(place) if line["step"] <= step]
    if not lines or lines[-1]["step"] != step:
        lines.append({"step": step})
    lines[-1][JOIN] = 1
    write_log(place / JSONL, lines)
