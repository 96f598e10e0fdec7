"""Runs the stages of a run: data → tokenizer → tokens → train → sample → evaluate, then writes the report."""

from __future__ import annotations

import contextlib
import filecmp
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from rearkit.errors import Interrupted, RearkitError, did_you_mean
from rearkit.recipe.exported import check_source
from rearkit.recipe.tables import Recipe
from rearkit.registry.plugins import naming_plugins
from rearkit.stages import sample as sampling
from rearkit.stages import tokens
from rearkit.stages import train as training
from rearkit.stages.aside import set_aside
from rearkit.stages.course import change_course
from rearkit.stages.flow import NAMES, STAGES
from rearkit.stages.inputs import check_inputs
from rearkit.stages.own_files import check_own_files
from rearkit.stages.resizing import check_square
from rearkit.stages.run_folder import RunFolder, folder_of
from rearkit.stages.run_recipe import save_resolved_recipe
from rearkit.stages.stage import Stage, check_stages_before, run_stage, up_to_date
from rearkit.system import distributed
from rearkit.system.console import say
from rearkit.system.devices import resolve_device
from rearkit.system.files import remove, remove_leftovers, replacing, storage_errors, write_text
from rearkit.system.locks import claimed


@naming_plugins()
def run(
    recipe: Recipe,
    out: str | Path | None = None,
    only: str | None = None,
    again: str | None = None,
    go_on: bool = False,
) -> RunFolder:
    """Bring a run up to date, and write its report. An exception out of a plugin gets a note that names it.

    Args:
        recipe: the recipe to run.
        out: the run's folder; if None, ``runs/NAME``.
        only: a single stage to run; the stages before it must have run. If None, all stages run.
        again: a stage to run again, with all after it, even if it is up to date; not together with ``only``.
        go_on: whether a training of which only ``[train]`` has changed goes on by it, from where it is.

    Raises:
        RearkitError: an error that the user can fix.
    """
    check_stage(again, only)
    check_source(recipe)
    check_square(recipe)
    folder = RunFolder(folder_of(recipe.name, out))
    started = time.monotonic()
    ranks = distributed.world_size() if only in (None, training.STAGE.name) else None
    check_inputs(recipe, ranks, scored=only is None)
    if distributed.world_size() > 1:
        distributed.start(distributed.local_device(resolve_device(recipe.device)))
    # Rank 0 locks the folder inside `from_main`; the stack holds the lock until the end of the run.
    with contextlib.ExitStack() as claim:
        stages = STAGES if only is None else tuple(stage for stage in STAGES if stage.name == only)
        distributed.from_main(lambda: _claim(recipe, folder, claim))
        alone = None if only is None else _command(out)
        distributed.from_main(lambda: _prepare(recipe, folder, stages, again, go_on, alone))
        say(f"{recipe.name}: files go to {folder.path.resolve()}")
        if again is not None:
            distributed.from_main(lambda: _force(folder, again))
        if only is None:
            say(f"to do, less what is finished already: {_work(recipe)}")
        # `sum` and not `any`, which would stop at the first stage that had work to do.
        before = STAGES if only is None else ()
        try:
            worked = sum(run_stage(stage, recipe, folder, before) for stage in stages) > 0
        except Interrupted:
            raise
        except RearkitError:
            if distributed.rank() == 0:
                _show_so_far(recipe, folder)
            raise
        distributed.from_main(lambda: _report(recipe, folder, worked, time.monotonic() - started))
        if only is None:
            distributed.from_main(lambda: remove(folder.again))
        say(f"next: {distributed.from_main(lambda: _next(recipe, folder, only))}")
    return folder


def check_stage(again: str | None, only: str | None = None) -> None:
    """Check the name of a stage that is to run again.

    Raises:
        RearkitError: there is no such stage, or a single stage is to run.
    """
    if again is not None and again not in NAMES:
        raise RearkitError(f"again: no stage {again!r}{did_you_mean(again, NAMES)}; stages: {', '.join(NAMES)}")
    if again is not None and only is not None:
        raise RearkitError("again runs a stage and all after it, so it goes with a whole run, not with a single stage")


def _force(folder: RunFolder, again: str) -> None:
    """Move the results of a stage and of all after it aside, except if that was done in a run that was cut off."""
    # Or a run that is started anew by a scheduler, by the same command, would never come to its end.
    if folder.again.is_file() and folder.again.read_text(encoding="utf-8", errors="replace").strip() == again:
        say(f"again from {again}: going on from where it stopped")
        return
    set_aside(folder, NAMES[NAMES.index(again) :])
    write_text(folder.again, again + "\n")


def trained_run(recipe: Recipe, out: str | Path | None = None) -> RunFolder:
    """Return a recipe's run, after checking that it is trained and up to date.

    Raises:
        RearkitError: it is not; the message has the command to run.
    """
    check_source(recipe)
    check_square(recipe)
    folder = RunFolder(folder_of(recipe.name, out))
    check_stages_before(sampling.STAGE, STAGES, recipe, folder, _command(out), thorough=True)
    return folder


def run_with_tokenizer(recipe: Recipe, out: str | Path | None = None) -> RunFolder | None:
    """Return a recipe's run, after checking that its tokenizer is up to date; None if there is none and none is needed.

    Raises:
        RearkitError: there is no tokenizer, neither in the run nor in a file; the message has the command to run.
    """
    folder = RunFolder(folder_of(recipe.name, out))
    if recipe.tokenizer.weights is not None and recipe.tokenizer.fit is None and not folder.tokenizer.is_file():
        return None
    check_square(recipe)
    reading = attrs.evolve(tokens.STAGE, name="reconstruct", inputs=("tokenizer",))
    check_stages_before(reading, STAGES, recipe, folder, _command(out), thorough=True)
    return folder


def _work(recipe: Recipe) -> str:
    """Say in numbers what a whole run does, and where."""
    fit, steps = recipe.tokenizer.fit, recipe.train.steps
    parts = (
        f"load the tokenizer {recipe.tokenizer.name}" if fit is None else f"fit a tokenizer, {fit.steps:,} steps",
        f"train {recipe.backbone.name}, {steps:,} steps of {recipe.train.global_batch:,} images"
        if steps
        else f"load the weights of {recipe.backbone.name}",
        f"sample {recipe.sample.num_images:,} images and score them",
    )
    ranks = distributed.world_size()
    return f"{'; '.join(parts)}; on {resolve_device(recipe.device)}{f', {ranks} ranks' if ranks > 1 else ''}"


def _next(recipe: Recipe, folder: RunFolder, only: str | None) -> str:
    """Say what to look at, or to run, after a run or one of its stages."""
    after = () if only is None else STAGES[NAMES.index(only) + 1 :]
    if left := next((stage.name for stage in after if not up_to_date([stage], recipe, folder)), None):
        return f"python -m rearkit {left} with the same recipe, or run for all that remains"
    page, pictures = folder.report, folder.path / folder.sample_grid.name
    return f"open {page} in a browser, look at {pictures}; python -m rearkit diagnose {folder.path} says where it errs"


def _command(out: str | Path | None) -> str:
    return "run: python -m rearkit {} RECIPE" + ("" if out is None else f" --out {out}")


def _claim(recipe: Recipe, folder: RunFolder, claim: contextlib.ExitStack) -> None:
    folder.claim(recipe.name)
    with storage_errors(folder.path):
        claim.enter_context(claimed(folder.lock, str(folder.path)))
    remove_leftovers(folder.path)


def _prepare(
    recipe: Recipe, folder: RunFolder, stages: Sequence[Stage], again: str | None, go_on: bool, alone: str | None
) -> None:
    """Check what can be before anything is moved; ``alone`` says how to run the stages before a single one."""
    check_own_files(stages, recipe, folder, again)
    # Before the recipe that the training was begun with is written over.
    if go_on:
        change_course(recipe, folder)
    if alone is not None:
        check_stages_before(stages[0], STAGES, recipe, folder, alone)
    save_resolved_recipe(recipe, folder)


def _report(recipe: Recipe, folder: RunFolder, worked: bool, seconds: float) -> None:
    show_results(recipe, folder)
    if worked or _is_older(folder):
        # Here, since its charts take seconds to import.
        from rearkit.reports.run_page import write_report

        write_report(recipe, folder, STAGES)
    say(f"{'finished' if worked else 'nothing to do'} in {seconds:.0f} s; report: {folder.report}")


def _show_so_far(recipe: Recipe, folder: RunFolder) -> None:
    """Write the page of a run that has failed, which shows best why; the error itself is told after it."""
    # Of a full disk, say, for which there would be a second error.
    with contextlib.suppress(Exception):
        from rearkit.reports.run_page import write_report

        show_results(recipe, folder)
        write_report(recipe, folder, STAGES)
        say(f"what there is so far: {folder.report}")


def _is_older(folder: RunFolder) -> bool:
    """Return whether the report is missing or older than a stage; a run that is cut off leaves it so."""
    finished = [path.stat().st_mtime_ns for name in NAMES if (path := folder.record(name)).is_file()]
    return not folder.report.is_file() or folder.report.stat().st_mtime_ns < max(finished, default=0)


def show_results(recipe: Recipe, folder: RunFolder) -> None:
    """Copy the picture of samples and the scores to the top of the run's folder, where people look first.

    Copies of results that are not the recipe's, which lies beside them, are removed.
    """
    sources = {"sample": folder.sample_grid, "evaluate": folder.scores}
    current = True
    # Without the data, whose digest is in the tokenizer's key: looking through a source may take minutes. Each stage
    # once, since keys hash the weights that a recipe names.
    for stage in STAGES[1:]:
        current = current and up_to_date([stage], recipe, folder)
        if (source := sources.get(stage.name)) is None:
            continue
        target = folder.path / source.name
        if not source.is_file() or not current:
            remove(target)
        elif not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)
