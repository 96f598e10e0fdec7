"""What lies where in ``runs/NAME``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from rearkit.errors import RearkitError, StorageError
from rearkit.recipe.tables import Recipe
from rearkit.system.files import read_json, write_json

RUN = "run.json"
DONE = "stage.json"


@attrs.frozen
class RunFolder:
    """``runs/NAME``: one folder a stage."""

    path: Path

    def stage(self, name: str) -> Path:
        """Folder of a stage."""
        return self.path / name

    def done(self, name: str) -> dict[str, Any] | None:
        """What `stage.json` says of a finished stage, or None."""
        done: dict[str, Any] | None = read_json(self.stage(name) / DONE)
        return done

    def result(self, name: str) -> dict[str, Any]:
        """Return a finished stage's result.

        Raises:
            RearkitError: it is not finished.
        """
        done = self.done(name)
        if done is None:
            raise RearkitError(f"{self.path}: stage '{name}' has not run; run: python -m rearkit {name} RECIPE")
        result: dict[str, Any] = done["result"]
        return result

    def claim(self, recipe: Recipe) -> None:
        """Make the folder this recipe's.

        Raises:
            RearkitError: it holds something else.
            StorageError: it cannot be made or read.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise RearkitError(f"{self.path}: not a folder; choose another place with --out")
            self.path.mkdir(parents=True, exist_ok=True)
            owner = read_json(self.path / RUN)
            # A hidden file is the temporary one of a run that was killed while it claimed the folder.
            foreign = [path.name for path in self.path.iterdir() if not path.name.startswith(f".{RUN}")]
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot be used as the folder of a run ({error.strerror}); choose another with --out"
            ) from error
        if not isinstance(owner, Mapping):
            if foreign:
                raise RearkitError(
                    f"{self.path}: not empty and not a run of rearkit (it holds {foreign[0]}); "
                    "choose another folder with --out"
                )
            write_json(self.path / RUN, {"recipe": recipe.name})
        elif owner.get("recipe") != recipe.name:
            raise RearkitError(
                f"{self.path}: holds the run of another recipe, {owner.get('recipe')!r}; "
                f"choose another folder with --out, or remove this one"
            )
