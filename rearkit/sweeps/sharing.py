"""Stages that the runs of a sweep have in common are run once, and hard-linked into each run's folder.

With hard links each run's folder is complete: it can be moved, resumed or looked at alone. Later writes replace the
link and leave the other runs' file unchanged.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from rearkit.recipe.settings import with_changes
from rearkit.recipe.tables import Recipe
from rearkit.stages.evaluate import prepare_classifier
from rearkit.stages.flow import STAGES
from rearkit.stages.inputs import check_inputs
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import save_resolved_recipe
from rearkit.stages.stage import expected_keys, run_stage, up_to_date
from rearkit.system.console import say
from rearkit.system.files import replacing
from rearkit.system.locks import locked

COMMON = ("data", "tokenizer", "tokens")
# Not the scores, which are few seconds, so that all of a sweep are made alike.
UNSCORED = (*COMMON, "train", "sample")


def prepare_common(recipes: Iterable[Recipe], root: Path, donors: Sequence[RunFolder] = ()) -> list[RunFolder]:
    """Return, for each recipe, a folder with its stages before training and its classifier; run them if needed.

    Args:
        recipes: those with the same keys for these stages get the same folder.
        root: the sweep's folder.
        donors: earlier runs, whose stages are taken over where they are the same.
    """
    folders: dict[str, RunFolder] = {}
    wanted = []
    for recipe in recipes:
        # The key of the last shared stage covers all earlier ones, so equal digests mean equal shared stages.
        digest = expected_keys(STAGES, recipe)[COMMON[-1]][:12]
        wanted.append(digest)
        if digest not in folders:
            folder = RunFolder(root / "shared" / digest)
            with locked(root / "locks" / f"{digest}.lock"):
                # Named after the digest: several runs use the folder, and it should not carry the name of one of them.
                nameless = with_changes(recipe, name=f"shared-{digest}")
                folder.claim(nameless.name)
                take_over(nameless, folder, donors, COMMON)
                _prepare(nameless, folder, list(folders.values()))
            folders[digest] = folder
    return [folders[digest] for digest in wanted]


def _prepare(recipe: Recipe, folder: RunFolder, others: list[RunFolder]) -> None:
    """Run the shared stages of a recipe in a folder, and provide the classifier that its samples are scored with."""
    check_inputs(recipe, scored=True)
    save_resolved_recipe(recipe, folder)
    for stage in STAGES:
        if stage.name in COMMON:
            run_stage(stage, recipe, folder, STAGES)
    # Scores compare in one feature space only, so the first folder's classifier is reused. If images or settings differ
    # after all, `prepare_classifier` trains a new one.
    if others and not folder.classifier.exists():
        link(others[0], folder, (folder.classifier.name,))
    prepare_classifier(recipe, folder)


def take_over(recipe: Recipe, target: RunFolder, donors: Iterable[RunFolder], names: Sequence[str]) -> None:
    """Give a run folder the stages, of those named, that an earlier run has finished with the same key.

    They are taken from the run that has most of them; with them comes its classifier.
    """
    have = same_stages(recipe, target, names)
    best, stages = None, have
    for donor in () if len(have) == len(names) else donors:
        found = stages_to_take(recipe, donor, names)
        if len(found) > len(stages):
            best, stages = donor, found
    if best is None:
        return
    link(best, target, stages)
    if not target.classifier.exists():
        link(best, target, (target.classifier.name,))
    say(f"{target.path.name}: {', '.join(stages[len(have) :])} taken over from {best.path}")


def stages_to_take(recipe: Recipe, donor: RunFolder, names: Sequence[str]) -> list[str]:
    """Return the stages of an earlier run that are the same as a recipe's; no training that had changed course.

    Its key is that of the recipe that it ended with.
    """
    return same_stages(recipe, donor, COMMON if donor.joins() else names)


def same_stages(recipe: Recipe, folder: RunFolder, names: Sequence[str]) -> list[str]:
    """Return the first of the stages named, in their order, up to one that a folder has not finished for a recipe."""
    wanted = [stage for stage in STAGES if stage.name in names]
    return [stage.name for stage in itertools.takewhile(lambda one: up_to_date([one], recipe, folder), wanted)]


def link(source: RunFolder, target: RunFolder, names: Iterable[str]) -> None:
    """Give a run folder the finished stages of another, as hard links, or as copies if hard links are not possible.

    A stage that the target has already, with the same key, is left as it is.
    """
    for name in names:
        old = source.stage(name)
        new = target.stage(name)
        if not old.is_dir() or (new.is_dir() and _content(source, name) == _content(target, name)):
            continue
        # Swapped in whole: if this is cut off, the target keeps its old stage.
        with replacing(new) as temporary:
            shutil.copytree(old, temporary, copy_function=_link_or_copy)


def _content(folder: RunFolder, name: str) -> bytes:
    """Return what identifies the content of a run's folder: a stage's key, or else (the classifier) the files."""
    path = folder.key(name)
    return path.read_bytes() if path.is_file() else b"".join(p.read_bytes() for p in sorted(path.parent.iterdir()))


def _link_or_copy(old: str, new: str) -> None:
    try:
        os.link(old, new)
    except OSError:
        # Another file system, one without hard links, or too many links to one file.
        shutil.copy2(old, new)
