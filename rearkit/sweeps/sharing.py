"""What the runs of a sweep have in common is computed once, and linked into each run's folder.

Hard links make each run whole: it can be moved, continued or looked at alone, and what is written later takes a link's
place instead of changing the file that others see.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import attrs

from rearkit.pipeline import check_inputs
from rearkit.recipe.tables import Recipe
from rearkit.stages.evaluate import prepare_classifier
from rearkit.stages.flow import STAGES
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import expected_keys, run_stage, save_resolved_recipe
from rearkit.system.files import replacing
from rearkit.system.locks import locked

COMMON = ("data", "tokenizer", "tokens")


def prepare_common(recipes: Iterable[Recipe], root: Path) -> list[RunFolder]:
    """Return for each recipe a folder with its stages before training and its classifier; make what is not there.

    Args:
        recipes: those that agree so far get the same folder.
        root: the sweep's folder.
    """
    folders: dict[str, RunFolder] = {}
    wanted = []
    for recipe in recipes:
        digest = expected_keys(STAGES, recipe)[COMMON[-1]][:12]
        wanted.append(digest)
        if digest not in folders:
            folder = RunFolder(root / "shared" / digest)
            with locked(root / "locks" / f"{digest}.lock"):
                nameless: Recipe = attrs.evolve(recipe, name=f"shared-{digest}")  # type: ignore[misc]
                _prepare(nameless, folder, list(folders.values()))
            folders[digest] = folder
    return [folders[digest] for digest in wanted]


def _prepare(recipe: Recipe, folder: RunFolder, others: list[RunFolder]) -> None:
    check_inputs(recipe)
    folder.claim(recipe.name)
    save_resolved_recipe(recipe, folder)
    for stage in STAGES:
        if stage.name in COMMON:
            run_stage(stage, recipe, folder)
    # Scores compare in one feature space only: where images and settings agree, the classifier of the others is taken.
    if others and not folder.classifier.exists():
        link(others[0], folder, (folder.classifier.name,))
    prepare_classifier(recipe, folder)


def link(source: RunFolder, target: RunFolder, names: Iterable[str]) -> None:
    """Give a run folder the finished stages of another, as hard links; copies, where the file system has none.

    A stage that the target has with the same key is left as it is.
    """
    for name in names:
        old = source.stage(name)
        new = target.stage(name)
        if not old.is_dir() or (new.is_dir() and _content(source, name) == _content(target, name)):
            continue
        with replacing(new) as temporary:
            shutil.copytree(old, temporary, copy_function=_link_or_copy)


def _content(folder: RunFolder, name: str) -> bytes:
    """What distinguishes one content of a run's folder from another: a stage's key, or the classifier itself."""
    path = folder.key(name)
    return path.read_bytes() if path.is_file() else b"".join(p.read_bytes() for p in sorted(path.parent.iterdir()))


def _link_or_copy(old: str, new: str) -> None:
    try:
        os.link(old, new)
    except OSError:
        shutil.copy2(old, new)
