"""The model card, ``README.md``, of an exported model: what it is, how to use it, what it scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import tomli_w

from rearkit.contracts import num_parameters, square_side
from rearkit.model import Model
from rearkit.recipe.cleaning import without_folders
from rearkit.recipe.tables import DRAWN_BY

NAMES_SHOWN = 20


@attrs.frozen(eq=False)
class Card:
    """What a model card tells.

    Attributes:
        model: the exported model, with the recipe that is exported.
        title: its name, for people.
        steps: that it was trained for.
        scores: lines of its scores; empty if it has none.
        versions: of the packages that made it, by name.
        files: the files beside the card, and what each is.
        licence: identifier of the licence, such as ``mit``, or None.
    """

    model: Model
    title: str
    steps: int
    scores: Sequence[str]
    versions: Mapping[str, str]
    files: Mapping[str, str]
    licence: str | None = None

    def text(self) -> str:
        """Return the card as Markdown, with the lines that the hub reads at its top."""
        parts = [self._front_matter(), f"# {self.title}", "![samples, a row for each class](samples.png)", self._what()]
        parts += [self._use(), self._scores(), self._made()]
        return "\n\n".join(parts) + "\n"

    def _front_matter(self) -> str:
        license = f"license: {self.licence}\n" if self.licence else ""
        tags = "tags:\n- image-generation\n- autoregressive\n"
        return f"---\nlibrary_name: rearkit\npipeline_tag: unconditional-image-generation\n{license}{tags}---"

    def _what(self) -> str:
        model, recipe = self.model, self.model.recipe
        space, side = model.space, square_side(model.tokenizer)
        titles = [str(title) for title in model.classes.titles]
        named = ", ".join(titles[:NAMES_SHOWN]) + (", …" if len(titles) > NAMES_SHOWN else "")
        added = [] if recipe.noise is None else [f"context noise by `{recipe.noise.name}`"]
        added += [f"the regularizer `{table.name}`" for table in recipe.regularizers]
        with_ = f", with {' and '.join(added)}" if added else ""
        return (
            f"An autoregressive model of images of {side} × {side} pixels: the backbone `{recipe.backbone.name}` "
            f"({num_parameters(model.backbone):,} parameters) draws {space.num_tokens} tokens of {space.codebook_size} "
            f"codes, which the tokenizer `{recipe.tokenizer.name}` ({num_parameters(model.tokenizer):,} parameters) "
            f"decodes. Trained for {self.steps:,} steps of {recipe.train.global_batch:,} images of the dataset "
            f"`{recipe.data.source.name}`{with_}.\n\n"
            f"{len(titles)} classes: {named} (`classes.json`)."
        )

    def _use(self) -> str:
        requires = "".join(f" '{entry}'" for entry in self.model.recipe.requires)
        return (
            "## Use\n\nWith this folder as `model`:\n\n"
            f"```\npip install rearkit{requires}\n"
            "python -m rearkit sample model --classes 0 --grid samples.png\n"
            "python -m rearkit sample model --to-folder samples\n"
            "python -m rearkit evaluate model --reference reference.npz\n```\n\n"
            '```python\nimport rearkit\n\nmodel = rearkit.load_model("model")\n'
            "images = rearkit.sample(model, classes=[0]).images\n```"
        )

    def _scores(self) -> str:
        if not self.scores:
            return "## Scores\n\nNone yet."
        return "## Scores\n\n" + "\n".join(f"- {without_folders(line)}" for line in self.scores)

    def _made(self) -> str:
        made = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        files = "\n".join(f"| `{name}` | {what} |" for name, what in self.files.items())
        sample = tomli_w.dumps({"sample": _plain(self.model)})
        return f"## Files\n\n| file | |\n| --- | --- |\n{files}\n\nMade with {made}.\n\n```toml\n{sample}```"


def _plain(model: Model) -> dict[str, Any]:
    """Return how samples are drawn."""
    return {name: getattr(model.recipe.sample, name) for name in DRAWN_BY}
