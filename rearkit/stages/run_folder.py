"""The layout of a run's folder, ``runs/NAME``: all file names of a run are defined here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from rearkit.errors import RearkitError, StorageError
from rearkit.system.checksums import read_sealed, write_sealed
from rearkit.system.console import say
from rearkit.system.files import read_json

# Holds the name of the recipe to which the folder belongs.
OWNER = "run.json"
PREVIOUS = "previous"
DEFAULT_ROOT = Path("runs")
OWN_NAME = re.compile(r'name = "([\w.+-]+)"\n')


def folder_of(name: str, out: str | Path | None) -> Path:
    """Return the folder of a run or a sweep: ``runs/NAME``, unless ``out`` is another."""
    return DEFAULT_ROOT / name if out is None else Path(out)


@attrs.frozen
class RunFolder:
    """The folder ``runs/NAME``: one folder per stage, and at the top the files that people look for first."""

    path: Path

    def stage(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.path / name

    def record(self, stage: str) -> Path:
        """Return the file that is written when a stage is finished: its key, its files, its result."""
        return self.stage(stage) / "stage.json"

    def key(self, stage: str) -> Path:
        """Return the file that is written when a stage begins: a hash of what it depends on."""
        return self.stage(stage) / "key"

    def skipped(self, stage: str) -> Path:
        """Return the file that lists the samples that a stage had to skip."""
        return self.stage(stage) / "skipped.jsonl"

    def previous(self, stage: str) -> Path:
        """Return the folder that keeps a stage's result for an earlier recipe."""
        return self.path / PREVIOUS / stage

    # At the top.

    @property
    def lock(self) -> Path:
        """The file that is locked by the process that works in the folder."""
        return self.path / ".lock"

    @property
    def owner(self) -> Path:
        """The name of the recipe to which the folder belongs, and the checksum of the recipe as it was last run."""
        return self.path / OWNER

    @property
    def again(self) -> Path:
        """The file that is there while stages that were finished run again: the name of the first of them."""
        return self.path / "again"

    @property
    def recipe(self) -> Path:
        """The recipe as it was last run, with every default."""
        return self.path / "recipe.toml"

    @property
    def report(self) -> Path:
        """The HTML page that shows the run."""
        return self.path / "report.html"

    @property
    def diagnosis(self) -> Path:
        """The measurements of ``diagnose``."""
        return self.path / "diagnosis.json"

    @property
    def resampled(self) -> Path:
        """FIDs of bootstrap draws of the run's samples, for a sweep's order."""
        return self.path / "resampled.json"

    @property
    def classifier(self) -> Path:
        """The folder of the classifier that scores samples.

        It is no stage's, since it depends on neither training nor samples, so that runs can share it.
        """
        return self.path / "classifier"

    # Of the stages, in their order.

    @property
    def images(self) -> Path:
        """The image shards of both splits with their counts, and the classes."""
        return self.stage("data") / "shards.json"

    @property
    def counts(self) -> Path:
        """How many images each remote shard has, as far as they were read."""
        return self.stage("data") / "counts.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's weights."""
        return self.stage("tokenizer") / "tokenizer.safetensors"

    @property
    def fit_log(self) -> Path:
        """The losses of the tokenizer's fit."""
        return self.stage("tokenizer") / "fit.jsonl"

    @property
    def fit_checkpoint(self) -> Path:
        """The checkpoint from which an interrupted fit is resumed."""
        return self.stage("tokenizer") / "fit.pt"

    @property
    def tokens(self) -> Path:
        """The list of the token shards of both splits, and what they depend on."""
        return self.stage("tokens") / "shards.json"

    @property
    def image_index(self) -> Path:
        """The positions of all training images in their shards, for tokens that are made during training."""
        return self.stage("tokens") / "train-images.npy"

    @property
    def reconstructions(self) -> Path:
        """A picture of images beside the images decoded from their tokens."""
        return self.stage("tokens") / "reconstructions.png"

    def copies(self, stage: str) -> Path:
        """Return the folder for copies of remote shards while a stage reads them."""
        return self.stage(stage) / "cache"

    @property
    def model(self) -> Path:
        """The trained backbone's weights, with the recipe and the classes inside."""
        return self.stage("train") / "model.safetensors"

    @property
    def training_recipe(self) -> Path:
        """The recipe that the training was begun with, or went on by."""
        return self.stage("train") / "recipe.json"

    @property
    def courses(self) -> Path:
        """The steps at which the training went on by a changed recipe, and what changed."""
        return self.stage("train") / "courses.json"

    @property
    def heads(self) -> Path:
        """The weights of the regularizers' training-only heads."""
        return self.stage("train") / "heads.safetensors"

    @property
    def parts(self) -> Path:
        """The folder of samples that are not yet in one file."""
        return self.stage("sample") / "parts"

    @property
    def samples(self) -> Path:
        """The samples, in the ADM layout."""
        return self.stage("sample") / "samples.npz"

    @property
    def sample_grid(self) -> Path:
        """A picture of samples, one row per class."""
        return self.stage("sample") / "samples.png"

    @property
    def sample_maps(self) -> Path:
        """A picture of a few samples beside maps of where the model is unsure, and what it attends to."""
        return self.stage("sample") / "maps.png"

    @property
    def scores(self) -> Path:
        """The scores of the samples."""
        return self.stage("evaluate") / "scores.json"

    @property
    def nearest(self) -> Path:
        """A picture of samples beside the real images nearest to them."""
        return self.stage("evaluate") / "nearest.png"

    @property
    def shares(self) -> Path:
        """The folder of what each rank has found about images, until it is put together."""
        return self.stage("evaluate") / "shares"

    def done(self, stage: str) -> dict[str, Any] | None:
        """Return the record of a finished stage, or None."""
        done = read_sealed(self.record(stage))
        return done if is_record(done) else None

    def joins(self) -> list[dict[str, Any]]:
        """Return the joins of the training: for each its ``step``, and ``changed``, two values by the key's name."""
        # A plain list in earlier versions.
        if isinstance(found := read_json(self.courses), list):
            return found
        joins: list[dict[str, Any]] = (read_sealed(self.courses) or {}).get("courses", [])
        return joins

    def result(self, stage: str) -> dict[str, Any]:
        """Return a finished stage's result.

        Raises:
            RearkitError: the stage is not finished.
        """
        done = self.done(stage)
        if done is None:
            raise RearkitError(f"{self.path}: stage '{stage}' has not run; run: python -m rearkit {stage} RECIPE")
        result: dict[str, Any] = done["result"]
        return result

    def claim(self, recipe_name: str) -> None:
        """Create the folder for a recipe, or check that it is already the recipe's.

        Raises:
            RearkitError: the folder holds something else.
            StorageError: the folder cannot be created or read.
        """
        try:
            # `mkdir` would say "File exists", which names the trouble but not what to do.
            if self.path.exists() and not self.path.is_dir():
                raise RearkitError(f"{self.path}: not a folder; choose another folder with --out")
            self.path.mkdir(parents=True, exist_ok=True)
            owner = read_sealed(self.owner)
            # A run that was killed while it claimed the folder may have left the owner's temporary file.
            foreign = [path.name for path in self.path.iterdir() if not path.name.startswith(f".{OWNER}")]
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be used as the folder of a run ({error.strerror}); choose another with --out"
            ) from error
        if owner is None or not isinstance(owner.get("recipe"), str):
            name = self._owner_of(foreign)
            if foreign and name is None:
                # Not in a folder with other content: a stage moves or removes an older folder of its name.
                raise RearkitError(
                    f"{self.path}: not empty and not a run of rearkit (it holds {foreign[0]}); "
                    "choose another folder with --out"
                )
            owner = {"recipe": name or recipe_name}
            if name in ("", recipe_name):
                say(f"{self.owner} is missing or damaged; it is made again of what is there")
            if name in (None, "", recipe_name):
                write_sealed(self.owner, owner)
        if owner["recipe"] != recipe_name:
            raise RearkitError(
                f"{self.path}: holds the run of another recipe, {owner['recipe']!r}; "
                f"choose another folder with --out, or remove this one"
            )

    def _owner_of(self, names: Iterable[str]) -> str | None:
        """Return the name of the recipe of a run without a record of it; empty if only stages tell that it is a run."""
        with contextlib.suppress(OSError):
            # The first key of the file; without TOML's reader, which a damaged file would stop.
            if found := OWN_NAME.match(self.recipe.read_text(encoding="utf-8", errors="replace")):
                return found[1]
        # Keys of their own tell stages of another recipe apart, which are then moved aside, and not lost.
        stages = [name for name in names if self.record(name).is_file() or self.key(name).is_file()]
        return "" if stages else None


def is_record(found: Any) -> bool:
    """Return whether something that was read has the form of a stage's record."""
    if not isinstance(found, dict):
        return False
    outputs, kinds = found.get("outputs"), {"key": str, "digest": str, "result": dict, "outputs": dict}
    return all(isinstance(found.get(name), kind) for name, kind in kinds.items()) and all(
        isinstance(one, dict) and {"bytes", "sha256"} <= one.keys()
        for one in outputs.values()  # type: ignore[union-attr]
    )
