"""Stages: what a stage is, when it is skipped, and what is kept if it runs again.

A stage reads the recipe's tables that concern it and the outputs of earlier stages, and writes files to ``RUN/STAGE/``.
Its key is a hash of both inputs, and of the code of the plugins that it uses. If ``stage.json`` has the same key and
the files are there, the stage is skipped. If only the file ``key`` has the same key, the stage was cut off and is
resumed; that key is without floors, which only refuse results. Otherwise its folder is moved aside, or swapped with
the one that was moved aside before, if that has the same key. A finished stage that has lost some of its files is
resumed too, from the files that are left.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from rearkit.errors import RearkitError
from rearkit.recipe.tables import Recipe, component_tables
from rearkit.registry import plugins
from rearkit.registry.provenance import code_of, is_built_in
from rearkit.stages.aside import bring_back, move_aside
from rearkit.stages.intact import damaged_inputs, damaged_outputs, drop_damaged_parts, keys_of, write_key
from rearkit.stages.relevant import result_relevant
from rearkit.stages.run_folder import RunFolder
from rearkit.system import distributed
from rearkit.system.checksums import SUMS, write_sealed
from rearkit.system.console import say
from rearkit.system.files import remove, remove_leftovers, sha256, storage_errors
from rearkit.system.hub import local_file


@attrs.frozen
class Outcome:
    """The return value of a stage.

    Attributes:
        result: numbers for the report and for ``stage.json``.
        outputs: the files that later stages read, relative to the stage's folder; they are hashed.
    """

    result: dict[str, Any]
    outputs: tuple[str, ...]


@attrs.frozen(eq=False)
class Stage:
    """One step of the flow.

    Attributes:
        name: the stage's name, and the name of its folder.
        inputs: the stages whose outputs it reads.
        tables: returns the part of the recipe that its output depends on, and hashes of files outside the run. If such
            files can no longer be read, it takes their hashes from the run's folder, if one is given.
        run: does the work, and returns the outcome.
        all_ranks: whether all ranks take part in the work; otherwise the first does it while the others wait.
        uses: the kinds of components whose code it runs.
        hashes: a pattern of names of inputs that it compares with their SHA-256 itself.
        owns: tells whether what lies in its folder was begun with a key, where the file ``key`` no longer says it.
        judge: raises DataError if a result of it does not reach the recipe's floors.
    """

    name: str
    inputs: tuple[str, ...]
    tables: Callable[[Recipe, RunFolder | None], Mapping[str, Any]]
    run: Callable[[Recipe, RunFolder], Outcome]
    all_ranks: bool = False
    uses: tuple[str, ...] = ()
    hashes: str | None = None
    owns: Callable[[RunFolder, str], bool] = lambda folder, key: False
    judge: Callable[[Recipe, RunFolder, Mapping[str, Any]], None] = lambda recipe, folder, result: None


def stage_key(stage: Stage, recipe: Recipe, folder: RunFolder) -> str:
    """Return a hash of everything that a stage's output depends on."""
    return stage_keys(stage, recipe, folder)[0]


def stage_keys(stage: Stage, recipe: Recipe, folder: RunFolder) -> tuple[str, str]:
    """Return the key of a stage, and the one that it has without the floors that its results must reach."""
    # Once for both: they may hash large files.
    tables = stage.tables(recipe, folder)
    # By content, so that an input that was made again with the same result leaves later stages up to date.
    content: dict[str, Any] = {"stage": stage.name}
    content["inputs"] = {name: (folder.done(name) or {}).get("digest") for name in stage.inputs}
    # Only where there are any, so that runs of built-in components keep the keys that they have.
    if code := _plugin_code(stage, recipe):
        content["plugins"] = code
    texts = [json.dumps({**content, "tables": result_relevant(tables, on)}, sort_keys=True) for on in (True, False)]
    key, without_floors = (hashlib.sha256(text.encode()).hexdigest() for text in texts)
    return key, without_floors


def expected_keys(stages: Iterable[Stage], recipe: Recipe) -> dict[str, str]:
    """Return a hash for each stage, which two recipes share if the stage will do the same for both.

    It can be computed before anything has run: it covers the recipe's tables for the stage and for all stages that it
    builds on, while `stage_key` covers the content of the stage's inputs.
    """
    keys: dict[str, str] = {}
    for stage in stages:
        tables = result_relevant(stage.tables(recipe, None))
        inputs = [keys[name] for name in stage.inputs]
        content = json.dumps([stage.name, tables, inputs, *_plugin_code(stage, recipe)], sort_keys=True)
        keys[stage.name] = hashlib.sha256(content.encode()).hexdigest()
    return keys


def _plugin_code(stage: Stage, recipe: Recipe) -> list[str]:
    """Return versions and digests of the plugins whose components a stage uses."""
    used = [table for table in component_tables(recipe) if table.kind in stage.uses and table.provider]
    return [code_of(plugins.find(table.kind, table.name)) for table in used if not is_built_in(table.provider)]


def up_to_date(stages: Iterable[Stage], recipe: Recipe, folder: RunFolder) -> bool:
    """Return whether all stages are up to date."""
    for stage in stages:
        done = folder.done(stage.name)
        if done is None or done["key"] != stage_key(stage, recipe, folder):
            return False
        if damaged_outputs(done, folder.stage(stage.name)):
            return False
    return True


def run_stage(
    stage: Stage, recipe: Recipe, folder: RunFolder, before: Sequence[Stage] = (), damaged: Sequence[Path] = ()
) -> bool:
    """Bring a stage up to date. All ranks must call this.

    Args:
        stage: the stage.
        recipe: the recipe.
        folder: the run.
        before: the stages that make what it reads, to run again if that is damaged; none where it is run alone.
        damaged: its files that were found damaged.

    Returns:
        whether there was anything to do.

    Raises:
        RearkitError: what it reads is damaged, and ``before`` has not what makes it.
    """
    key = distributed.from_main(lambda: _begin(stage, recipe, folder, not before, damaged))
    if key is None:
        return False
    lost = distributed.from_main(lambda: damaged_inputs(stage.inputs, folder, stage.hashes))
    sources = [source for source in before if source.name in lost]
    if len(sources) < len(lost):
        name, (first, *_) = next(iter(lost.items()))
        raise RearkitError(f"{stage.name}: {first} is damaged (SHA-256); run: python -m rearkit {name} RECIPE")
    for source in sources:
        run_stage(source, recipe, folder, before, lost[source.name])
    if sources:
        # Its key is another one if what was made again differs.
        return run_stage(stage, recipe, folder, before)
    place = folder.stage(stage.name)
    started = time.monotonic()
    with storage_errors(place):
        if stage.all_ranks:
            outcome = stage.run(recipe, folder)
        else:
            outcome = distributed.from_main(lambda: stage.run(recipe, folder))
    distributed.from_main(lambda: _finish(folder, stage.name, key, outcome, time.monotonic() - started))
    return True


def _begin(stage: Stage, recipe: Recipe, folder: RunFolder, alone: bool, known: Sequence[Path]) -> str | None:
    """Prepare a stage's folder and return the stage's key, or None if the stage is up to date."""
    # One that was stopped by a floor goes on under another, which it looks at when it comes to its end.
    key, begun = stage_keys(stage, recipe, folder)
    place = folder.stage(stage.name)
    done = folder.done(stage.name)
    same = done is not None and done["key"] == key
    # All of them where a stage is run alone: an error may have said to.
    if done is not None and same and not (damaged := [*known, *damaged_outputs(done, place, alone)]):
        say(f"{stage.name}: up to date")
        return None
    if done is not None and not same and done.get("begun") == begun and not damaged_outputs(done, place, alone):
        stage.judge(recipe, folder, done["result"])
        say(f"{stage.name}: up to date, since its result reaches the recipe's floors")
        write_key(folder, stage.name, key)
        write_sealed(folder.record(stage.name), {**done, "key": key})
        return None
    with storage_errors(place):
        if done is not None and same:
            _check_source(stage, recipe, damaged[0])
            say(f"{stage.name}: {damaged[0]} is missing or has changed since it was written; running it again")
            # Everything else is used again: intact shards, the last checkpoint.
            for path in (folder.record(stage.name), *damaged_outputs(done, place, thorough=True)):
                remove(path)
        elif _was_begun(stage, folder, key, begun):
            say(f"{stage.name}: going on from where it stopped")
            drop_damaged_parts(folder, stage.name)
        elif place.exists():
            if bring_back(folder, stage.name, key):
                return None
            move_aside(folder, stage.name)
        # Of a killed process. No other process can be writing now, since the run's folder is locked.
        remove_leftovers(place)
        place.mkdir(parents=True, exist_ok=True)
        # Before the work begins, so that a stage that is cut off is known by it and resumed.
        write_key(folder, stage.name, begun)
    return key


def _check_source(stage: Stage, recipe: Recipe, damaged: Path) -> None:
    """Check that a stage can run again before its record, without which a run cannot be entered, is removed."""
    try:
        stage.tables(recipe, None)
    except RearkitError as error:
        raise RearkitError(f"{damaged}: damaged, and cannot be made again: {error}") from None


def _was_begun(stage: Stage, folder: RunFolder, *keys: str) -> bool:
    """Return whether what lies in a stage's folder was begun with one of some keys."""
    begun = keys_of(folder, stage.name)
    if not set(keys).isdisjoint(begun):
        return True
    if len(begun) == 1 or not stage.owns(folder, keys[0]):
        return False
    say(f"{stage.name}: {folder.key(stage.name)} is damaged; what else lies there tells that it is this recipe's")
    return True


def _finish(folder: RunFolder, name: str, key: str, outcome: Outcome, seconds: float) -> None:
    """Record that a stage is done: its result, and the sizes and hashes of its files."""
    place = folder.stage(name)
    # Under other floors the result is looked at again, and what is left of it without its record is another.
    begun = keys_of(folder, name)
    write_key(folder, name, key)
    hashes = {name: sha256(place / name) for name in outcome.outputs}
    # Later stages have this in their keys, so they run again if any output changes.
    digest = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
    sizes = {name: (place / name).stat().st_size for name in outcome.outputs}
    write_sealed(
        folder.record(name),
        {
            "key": key,
            # Without floors; nothing where the file was damaged meanwhile.
            "begun": begun[0] if len(begun) == 1 else None,
            "digest": digest,
            "seconds": round(seconds, 1),
            "outputs": {name: {"bytes": sizes[name], "sha256": hashes[name]} for name in outcome.outputs},
            "result": outcome.result,
        },
    )
    # The record has them now.
    for sums in list(place.rglob(SUMS)):
        remove(sums)


def check_stages_before(
    stage: Stage, stages: Iterable[Stage], recipe: Recipe, folder: RunFolder, command: str, thorough: bool = False
) -> None:
    """Check, for a stage that is run alone, that what it reads is there, and all before it was made by this recipe.

    Args:
        stage: the stage to run.
        stages: all stages, in order.
        recipe: the recipe.
        folder: the run.
        command: how to run a stage, with ``{}`` for its name.
        thorough: whether to hash all outputs, not only the smallest.

    Raises:
        RearkitError: an input is missing or damaged, or a stage is of another recipe; the message has the remedy.
    """
    stages = list(stages)
    last = max((index for index, source in enumerate(stages) if source.name in stage.inputs), default=-1)
    for source in stages[: last + 1]:
        done, read = folder.done(source.name), source.name in stage.inputs
        # What no longer is there, such as images that are tokens now, is not missed where it is not read.
        if not read and (done is None or done["key"] == stage_key(source, recipe, folder)):
            continue
        if done is None:
            trouble = "has not run to its end"
        elif done["key"] != stage_key(source, recipe, folder):
            trouble = "was last run with another recipe, other inputs or other plugins"
        elif damaged := damaged_outputs(done, folder.stage(source.name), thorough):
            trouble = f"has lost or changed a file, {damaged[0]}"
        else:
            continue
        raise RearkitError(f"{stage.name}: needs stage '{source.name}', which {trouble}; {command.format(source.name)}")


def hash_of(file: str | None) -> str | None:
    """Return the SHA-256 of a file that a recipe names; None if it names none, or the file does not exist.

    Raises:
        RearkitError: it is a file on the hub, and cannot be had.
    """
    if file is None:
        return None
    local = local_file(file)
    return sha256(local) if local.is_file() else None
