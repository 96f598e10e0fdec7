"""Exported models whose recipe somebody else wrote: commands, plugins, paths and addresses in them do nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import Case, command, damaged, fuzz
from ledger import Ledger, Outcome
from safetensors.torch import save

from rearkit.model import Model
from rearkit.model import build as build_model
from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import Recipe

pytestmark = pytest.mark.slow


def exported(model: Model) -> Callable[[random.Random, Path], Case]:
    """Faults of a model's file as somebody else could send it."""
    content = json.dumps(recipe_to_dict(model.recipe))
    state = dict(model.backbone.state_dict())
    words = ["pipe:touch started", "https://x.invalid/y.tar", "hf://a/b", "/etc/passwd", "../../x", "rearkit-evil",
    "file:///etc/passwd",
             "\x1b[31m", "os:system", "a\nb", "x" * 5000, "`touch started`", "$(touch started)", "ssh://x.invalid",
             "s3://a/b"]  # fmt: skip

    def places(table: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        keys = list(table) if isinstance(table, dict) else range(len(table)) if isinstance(table, list) else []
        return [one for key in keys for one in [(*above, key), *places(table[key], (*above, key))]]

    def build(draw: random.Random, folder: Path) -> Case:
        recipe = json.loads(content)
        word = draw.choice(words)
        hostile: dict[str, Any] = {
            "source": {"name": "shards", "train": word, "held_out": word, "num_classes": 10},
            "requires": [f"evil @ {word}"], "needs": [{"path": word, "url": word}], "extends": word, "name": word,
            "deepspeed": {"flops_profiler": {"enabled": True, "output_file": word}}, "trackers": {"wandb": True,
            "x": word},
        }  # fmt: skip
        how = draw.choice([*hostile, "leaf", "leaf", "leaf", "leaf", "bytes", "about"])
        detail, about = (
            f"{how} {word!r:.40}",
            {"recipe": recipe, "steps": 4, "classes": {"number": 10, "names": [word] * 10}},
        )
        if how in ("source", "deepspeed", "trackers"):
            recipe[{"source": "data"}.get(how, "train")][how] = hostile[how]
        elif how in hostile:
            recipe[how] = hostile[how]
        elif how == "leaf":
            *above, last = draw.choice(places(recipe))
            table = recipe
            for key in above:
                table = table[key]
            table[last] = word if draw.random() < 0.7 else draw.choice([10**400, -1, 1e308, [], {}, None, [[[]]], True])
            detail += f" {above} {last} {table[last]!r:.30}"
        elif how == "about":
            key = draw.choice(list(about))
            about[key] = draw.choice(
                [None, -1, [], {}, word, 10**30, {"number": -1}, {"number": 10**12, "names": None}, [[]]]
            )
            detail += f" {key} {about[key]!r:.30}"
        written = save(state, {"rearkit": json.dumps(about)})
        if how == "bytes":
            size = 8 + int.from_bytes(written[:8], "little")
            more, header = damaged(draw, written[:size])
            written, detail = header + written[size:], f"{detail} {more}"
        (folder / "model.safetensors").write_bytes(written)

        def work() -> Outcome:
            for one in (
                ["show"],
                ["plan", "--set=device=cpu"] if draw.random() < 0.05 else ["show"],
                ["sample"],
                ["run"],
            ):
                command(one[0], "model.safetensors", *one[1:], *(["--to-folder=out"] if one[0] == "sample" else []))
                if (folder / "started").exists():
                    return "let in"
            return "held"

        return detail, work

    return build


def test_nothing_that_a_model_names_is_run_fetched_or_written(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    ledger, build = Ledger(), exported(build_model(tiny()))
    # What is imported now is not what a fault has started.
    command("show", "smoke")
    command("plan", "smoke", "--set=device=cpu")
    fuzz(ledger, "file, exported model", tmp_path, build)
    ledger.check()
