"""``verify``: which files of a run, a sweep or an exported model are what was written. Nothing is written.

Each check is a file, and a function that returns what is wrong with it. They are collected first, so that the
progress of hashing can be shown.
"""

from __future__ import annotations

import fcntl
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from rearkit.analysis.groups import SWEEP, run_folders
from rearkit.errors import RearkitError
from rearkit.evaluation.classifier import FILE, is_intact
from rearkit.recipe.recipe_files import MODEL
from rearkit.sampling.manifest import MEMBER, read_manifest
from rearkit.stages.flow import NAMES
from rearkit.stages.model_files import TOKENIZER
from rearkit.stages.run_folder import RunFolder, is_record
from rearkit.stages.run_recipe import recipe_differs
from rearkit.system.checksums import check_sealed, has_checksum, is_as_noted, noted
from rearkit.system.console import progress_bar
from rearkit.system.files import read_json, sha256
from rearkit.training.checkpoints import CHECKPOINTS, Checkpoints, damage
from rearkit.training.logs import JSONL, read_lines

SOUND, DAMAGED, UNCHECKED, GONE = "sound", "damaged", "unchecked", "gone"
NO_CHECKSUM = "an earlier version gave it no checksum"
RUN = "`run` writes it again"


@attrs.frozen
class Verdict:
    """What a check found.

    Attributes:
        file: relative to the folder.
        state: `SOUND`, `DAMAGED` (or missing), `UNCHECKED`; `GONE` if a process at work has removed it meanwhile.
        why: what is wrong, if anything is.
        remedy: what makes it again, if anything is wrong.
    """

    file: str
    state: str
    why: str = ""
    remedy: str = ""


@attrs.frozen
class Check:
    """A check of a file: `wrong` returns why it cannot be trusted, an empty string if nothing tells, else None."""

    path: Path
    wrong: Callable[[], str | None]
    remedy: str


@attrs.frozen
class Verification:
    """All verdicts on a folder.

    Attributes:
        folder: the folder.
        verdicts: in the order of the runs and stages.
        busy: the process at work there, or None.
        runs: the folders of runs that were looked at: `folder` itself, or those in a sweep's.
    """

    folder: Path
    verdicts: list[Verdict]
    busy: str | None
    runs: list[RunFolder]

    def of(self, state: str) -> list[Verdict]:
        """Return the verdicts of a kind."""
        return [verdict for verdict in self.verdicts if verdict.state == state]

    def trusted(self) -> list[str]:
        """Return the stages that are finished and whose files are all sound, as folders relative to `folder`."""
        bad = {str(parent) for verdict in self.of(DAMAGED) for parent in Path(verdict.file).parents}
        stages = [run.stage(name) for run in self.runs for name in NAMES if _is_done(run, name)]
        return [told for stage in stages if (told := str(stage.relative_to(self.folder))) not in bad]


def verify(path: Path) -> Verification:
    """Check all files of a run, of all runs of a sweep, or of a model that ``export`` wrote, that are read back.

    Raises:
        RearkitError: the folder is none of these.
    """
    runs = _runs(path)
    at_work = [_at_work(run.lock) for run in runs]
    checks = [(check, busy) for run, busy in zip(runs, at_work, strict=True) for check in _of_run(run)]
    if (path / SWEEP).is_file():
        remedy = "`sweep` writes it again; when its predictions were made is then unknown"
        checks.insert(0, (Check(path / SWEEP, functools.partial(_sealed, path / SWEEP), remedy), None))
    elif not runs:
        checks = [(check, None) for check in _of_model(path)]
    verdicts = []
    with progress_bar("verify", len(checks)) as bar:
        for check, busy in checks:
            verdicts.append(_verdict(check, path, busy is not None))
            bar.advance(1, check.path.name)
    return Verification(path, verdicts, next(filter(None, at_work), None), runs)


def _runs(path: Path) -> list[RunFolder]:
    """Return the runs that a folder is or has, none for an exported model."""
    found = run_folders(path)
    if not (found or (path / SWEEP).is_file() or (path / MODEL).is_file()):
        raise RearkitError(f"{path}: no folder of a run or sweep, and none that `export` wrote; give such a folder")
    return found


def _verdict(check: Check, folder: Path, busy: bool) -> Verdict:
    file = str(check.path.relative_to(folder))
    try:
        wrong = check.wrong()
    except OSError as error:
        wrong = f"cannot be read: {error.strerror}"
    if wrong is None:
        return Verdict(file, SOUND)
    if not wrong:
        return Verdict(file, UNCHECKED, NO_CHECKSUM)
    # Old checkpoints and parts are removed while a run is at work.
    if busy and not check.path.exists():
        return Verdict(file, GONE)
    return Verdict(file, DAMAGED, wrong, check.remedy)


def _is_done(folder: RunFolder, name: str) -> bool:
    return is_record(check_sealed(folder.record(name)).content)


def _of_run(folder: RunFolder) -> Iterator[Check]:
    yield Check(folder.owner, functools.partial(_sealed, folder.owner), RUN)
    yield Check(folder.recipe, functools.partial(_recipe, folder), RUN)
    for name in NAMES:
        if folder.stage(name).is_dir():
            yield from _of_stage(folder, name)
    parts = {
        folder.courses: "the joins of --continue are then unknown",
        folder.training_recipe: "`--continue` takes the model's recipe, or the one last run",
        folder.counts: RUN,
    }
    for path, why in parts.items():
        if path.is_file():
            yield Check(path, functools.partial(_sealed_or_list, path), why)
    if folder.fit_checkpoint.is_file():
        path = folder.fit_checkpoint
        yield Check(path, lambda: _flag(has_checksum(path)), "`run` starts the tokenizer's fit anew")
    yield from _of_training(folder)
    classifier = folder.classifier / FILE
    if classifier.is_file():
        yield Check(classifier, lambda: _flag(is_intact(classifier)), "`run` trains it again where scores are made")
    if folder.diagnosis.is_file():
        yield Check(folder.diagnosis, functools.partial(_sealed, folder.diagnosis), "`diagnose` makes it again")
    for source in (folder.sample_grid, folder.scores):
        copy = folder.path / source.name
        if source.is_file() and copy.is_file():
            yield Check(copy, functools.partial(_copy, copy, source), RUN)


def _of_stage(folder: RunFolder, name: str) -> Iterator[Check]:
    place, record = folder.stage(name), folder.record(name)
    again = f"python -m rearkit {name} RECIPE --out {folder.path}"
    done = None
    if record.is_file():
        found = check_sealed(record)
        done = found.content if is_record(found.content) else None
        yield Check(record, functools.partial(_sealed, record, done is not None), f"{again} runs the stage again")
    if folder.key(name).is_file():
        told = "it is read only if the stage is cut off" if done else "`run` goes on by the checkpoints, or starts anew"
        yield Check(folder.key(name), functools.partial(_key, folder.key(name)), told)
    for output, recorded in (done or {"outputs": {}})["outputs"].items():
        yield Check(place / output, functools.partial(_output, place / output, recorded), f"{again} makes it again")
    # What a stage that was cut off has left.
    if done is None:
        for path in noted(place):
            yield Check(path, functools.partial(_noted, path), "`run` makes it again")


def _of_training(folder: RunFolder) -> Iterator[Check]:
    place = folder.stage("train")
    found = Checkpoints(place / CHECKPOINTS, 1).manifests()
    for number, (checkpoint, manifest) in enumerate(found):
        before = f"that of {found[number - 1][0].name} is taken" if number else "the training starts anew"
        remedy = (
            "the training is finished, and needs it no more; remove it" if folder.record("train").is_file() else before
        )
        yield Check(checkpoint, functools.partial(damage, checkpoint, manifest), remedy)
    logs = [place / JSONL] if folder.record("tokenizer").is_file() else [place / JSONL, folder.fit_log]
    for log in (log for log in logs if log.is_file()):
        yield Check(log, functools.partial(_log, log), "its other lines are used; delete these")


def _of_model(path: Path) -> Iterator[Check]:
    weights = (read_manifest(path) or {}).get("weights")
    told = weights if isinstance(weights, dict) else {}
    for kind, name in (("backbone", MODEL), ("tokenizer", TOKENIZER)):
        wrong = functools.partial(_hash, path / name, told.get(kind), f"is not what {MEMBER} says (SHA-256)")
        yield Check(path / name, wrong, "export the model again, or fetch it again")


def _sealed(path: Path, valid: bool = True) -> str | None:
    found = check_sealed(path)
    if found.content is None or not valid:
        return "missing" if not path.is_file() else "not what was written"
    return None if found.sealed else ""


def _sealed_or_list(path: Path) -> str | None:
    return "" if isinstance(read_json(path), list) else _sealed(path)


def _recipe(folder: RunFolder) -> str | None:
    if not folder.recipe.is_file():
        return "missing"
    differs = recipe_differs(folder)
    return "" if differs is None else "was edited, or is damaged" if differs else None


def _key(path: Path) -> str | None:
    lines = path.read_bytes().splitlines()
    if not lines or len(set(lines)) > 1 or len(lines[0]) != 64:
        return "not what was written"
    return None if len(lines) == 2 else ""


def _output(path: Path, recorded: dict[str, object]) -> str | None:
    if not path.is_file():
        return "missing"
    if path.stat().st_size != recorded["bytes"]:
        return f"has {path.stat().st_size:,} bytes, and {recorded['bytes']:,} were written"
    return _hash(path, recorded["sha256"])


def _hash(path: Path, expected: object, wrong: str = "not what was written (SHA-256)") -> str | None:
    if not path.is_file():
        return "missing"
    return "" if expected is None else None if sha256(path) == expected else wrong


def _noted(path: Path) -> str | None:
    return _flag(is_as_noted(path))


def _flag(sound: bool | None) -> str | None:
    return "" if sound is None else None if sound else "not what was written"


def _log(path: Path) -> str | None:
    _, damaged = read_lines(path)
    return f"{len(damaged)} lines are damaged, such as line {damaged[0]}" if damaged else None


def _copy(copy: Path, source: Path) -> str | None:
    return None if copy.read_bytes() == source.read_bytes() else f"is no copy of {source.parent.name}/{source.name}"


def _at_work(lock: Path) -> str | None:
    """Return which process holds a run's lock, or None; the lock itself is left as it is."""
    try:
        with lock.open("rb+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return file.read(1000).decode(errors="replace") or "another process"
    # None is there, or it cannot be opened for writing: then whoever is at work is another user.
    except OSError:
        return None
    return None
