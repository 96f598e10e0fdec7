"""Builds the components that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch

from rearkit.context_noise import NoNoise, extra_tokens, takes_context
from rearkit.contracts import (
    Backbone,
    Classes,
    Dataset,
    NoiseContext,
    NoiseSchedule,
    Regularizer,
    RegularizerContext,
    Tokenizer,
    TokenSpace,
    grid_of,
    num_parameters,
)
from rearkit.errors import RearkitError, RecipeError, WeightsError
from rearkit.layers.shapes_only import cheaply, shapes_only
from rearkit.objective import Objective, fields_read
from rearkit.partial_weights import fitting_part, load_part
from rearkit.recipe.exported import check_source, left_out_classes
from rearkit.recipe.settings import with_changes
from rearkit.recipe.tables import BackboneTable, ComponentTable, Recipe, TokenizerTable
from rearkit.registry import plugins
from rearkit.registry.contract import build_checked
from rearkit.system.memory import check_memory
from rearkit.weights import classes_of, fit_state_dict, load_weights, matching_weights


@attrs.frozen(eq=False)
class Model:
    """The components of a recipe.

    Attributes:
        recipe: the recipe.
        classes: the classes of the dataset.
        tokenizer: the tokenizer, frozen and in eval mode.
        backbone: the network that is trained and sampled from.
        noise: the context-noise schedule.
        objective: the loss, with the regularizers' training-only heads as its parameters.
        resized: of a model at another size than it was trained at, both sizes and what was changed, for manifests.
    """

    recipe: Recipe
    classes: Classes
    tokenizer: Tokenizer
    backbone: Backbone
    noise: NoiseSchedule
    objective: Objective
    resized: Mapping[str, Any] | None = None

    @property
    def num_classes(self) -> int:
        """C."""
        return self.classes.number

    @property
    def space(self) -> TokenSpace:
        """The sizes of what the backbone predicts."""
        return space_of(self.tokenizer, self.classes.number, extra_tokens(self.noise))


def build(recipe: Recipe, tokenizer: Tokenizer | None = None, classes: Classes | None = None) -> Model:
    """Build the modules of a recipe, initialised from the recipe's seed.

    Args:
        recipe: the recipe.
        tokenizer: a tokenizer to use instead of a new one, such as the fitted one of a run.
        classes: the classes; if None, those of the recipe's dataset, which must exist then.

    Raises:
        RecipeError: components do not fit each other.
        WeightsError: weights that the recipe names do not fit it.
    """
    classes = classes or left_out_classes(recipe) or Classes.of(build_dataset(recipe))
    tokenizer = tokenizer or build_tokenizer(recipe)
    tokenizer.eval().requires_grad_(False)
    torch.manual_seed(recipe.train_seed)
    noise = _build_noise(recipe, tokenizer, classes.number)
    # Again, so that the backbone's initial weights depend on neither the tokenizer's fit nor the noise.
    torch.manual_seed(recipe.train_seed)
    space = space_of(tokenizer, classes.number, extra_tokens(noise))
    backbone = build_backbone(recipe, space)
    # Before the regularizers, since one that copies the backbone must copy these.
    found = {}
    if recipe.backbone.weights is not None:
        component = plugins.find("backbone", recipe.backbone.name)
        load = load_weights if recipe.backbone.weights_fit == "strict" else load_part
        found = load(backbone, recipe.backbone.weights, component, recipe.backbone.weights_key)
    context = RegularizerContext(backbone.hidden_size, backbone.num_layers, tokenizer.codebook(), space, backbone)
    regularizers: dict[str, Regularizer] = {}
    for index, table in enumerate(recipe.regularizers):
        # The same regularizer may be used twice, with other settings; logs and heads need different names.
        name = table.name if table.name not in regularizers else f"{table.name}-{index}"
        regularizers[name] = _build(table, recipe.name, context)
    if recipe.backbone.weights is not None:
        # Published weights may include the regularizers' heads.
        for regularizer in regularizers.values():
            names = regularizer.state_dict().keys()
            if names <= found.keys():
                fit_state_dict(regularizer, {name: found[name] for name in names}, recipe.backbone.weights)
    model = Model(recipe, classes, tokenizer, backbone, noise, Objective(regularizers))
    _check_needs(model)
    return model


def space_of(tokenizer: Tokenizer, num_classes: int, extra_tokens: int = 0) -> TokenSpace:
    """Return the sizes of what a backbone predicts."""
    grid = grid_of(tokenizer)
    return TokenSpace(tokenizer.num_tokens, tokenizer.codebook_size, num_classes, extra_tokens, grid)


def _build_noise(recipe: Recipe, tokenizer: Tokenizer, num_classes: int) -> NoiseSchedule:
    if recipe.noise is None:
        return NoNoise()
    context = NoiseContext(space_of(tokenizer, num_classes), tokenizer.codebook())
    # Most schedules need no context, and take their settings alone.
    wanted = (context,) if takes_context(plugins.find("noise", recipe.noise.name).build) else ()
    noise: NoiseSchedule = _build(recipe.noise, recipe.name, *wanted)
    return noise


def _check_needs(model: Model) -> None:
    """Check that components get what they need of the others.

    Raises:
        RecipeError: they do not; each line names the table and the remedy.
    """
    recipe = model.recipe
    problems = []
    needed, has = extra_tokens(model.noise), model.backbone.extra_tokens
    if recipe.noise is not None and needed > has:
        problems.append(
            f"[noise] {recipe.noise.name}: needs {needed} token(s) beyond the codebook, and backbone "
            f"{recipe.backbone.name!r} has room for {has}; choose another noise or backbone"
        )
    rows, columns = model.space.grid or (0, 0)
    if rows != columns and not model.backbone.any_grid:
        problems.append(
            f"[backbone] {recipe.backbone.name}: knows square grids alone, and the tokenizer's has {rows} × {columns} "
            "tokens; choose an image size with one side"
        )
    for name, regularizer in model.objective.regularizers.items():
        last = model.backbone.num_layers - 1
        for layer in regularizer.layers:  # type: ignore[union-attr]
            if not 0 <= layer <= last:
                problems.append(f"[[regularizers]] {name}: reads block {layer}; the backbone has blocks 0 to {last}")
        if "images" in fields_read(regularizer) and not recipe.tokens.on_the_fly and recipe.train.steps:
            problems.append(
                f"[[regularizers]] {name}: reads the images, which training has only while it makes the tokens; "
                "set [tokens] on_the_fly = true"
            )
    if problems:
        raise RecipeError([f"{recipe.name}: {problem}" for problem in problems])


def build_dataset(recipe: Recipe) -> Dataset:
    """Build the dataset of a recipe."""
    check_source(recipe)
    dataset: Dataset = _build(recipe.data.source, recipe.name)
    return dataset


def build_tokenizer(recipe: Recipe, load: bool = True) -> Tokenizer:
    """Build the tokenizer of a recipe; with ``load``, load the weights that the recipe names, if any."""
    torch.manual_seed(recipe.seed)
    tokenizer: Tokenizer = _build(recipe.tokenizer, recipe.name)
    if load and recipe.tokenizer.weights is not None:
        component = plugins.find("tokenizer", recipe.tokenizer.name)
        load_weights(tokenizer, recipe.tokenizer.weights, component, recipe.tokenizer.weights_key)
    return tokenizer


def build_backbone(recipe: Recipe, space: TokenSpace) -> Backbone:
    """Build the backbone of a recipe, with weights as they are initialised."""
    backbone: Backbone = _build(recipe.backbone, recipe.name, space)
    return backbone


def check_weights(recipe: Recipe) -> list[str]:
    """Compare the weights that a recipe names with its modules' names and shapes, before hours go into other stages.

    A backbone's are not, where neither the dataset nor their published layout tells the number of classes.

    Returns:
        what does not fit, one text for each file.
    """
    if recipe.tokenizer.weights is None and recipe.backbone.weights is None:
        return []
    modules: dict[str, tuple[TokenizerTable | BackboneTable, Tokenizer | Backbone]] = {}
    if recipe.tokenizer.weights is not None:
        modules["tokenizer"] = (recipe.tokenizer, cheaply(lambda: build_tokenizer(recipe, load=False)))
    if recipe.backbone.weights is not None and (classes := _num_classes(recipe)) is not None:
        modules["backbone"] = (recipe.backbone, cheaply(lambda: _initial_backbone(recipe, classes)))
    problems = []
    for kind, (table, module) in modules.items():
        try:
            component = plugins.find(kind, table.name)
            if isinstance(module, Backbone) and recipe.backbone.weights_fit == "partial":
                fitting_part(module, str(table.weights), component, table.weights_key)
            else:
                matching_weights(module, str(table.weights), component, table.weights_key)
        except WeightsError as error:
            problems.append(f"[{kind}] weights: {error}")
    return problems


def _initial_backbone(recipe: Recipe, num_classes: int) -> Backbone:
    tokenizer = build_tokenizer(recipe, load=False)
    noise = _build_noise(recipe, tokenizer, num_classes)
    return build_backbone(recipe, space_of(tokenizer, num_classes, extra_tokens(noise)))


def check_parts(recipe: Recipe) -> None:
    """Build a recipe's modules where they cost nothing, so that what does not fit is told before hours of other stages.

    Raises:
        RecipeError: components do not fit each other, or not into this machine's memory.
    """
    # No component minds how many classes there are, where nothing tells it yet.
    model = outline(recipe, Classes(_num_classes(recipe) or 1))
    if model is not None:
        parts = (model.tokenizer, model.backbone, model.objective)
        check_memory(recipe.name, 4 * sum(map(num_parameters, parts)))


def outline(recipe: Recipe, classes: Classes | None = None) -> Model | None:
    """Build a recipe's modules with shapes and no content, without its weights; None if one reads values of tensors.

    Raises:
        RecipeError: components do not fit each other, or are too large for any machine.
    """
    plain = with_changes(recipe, backbone=with_changes(recipe.backbone, weights=None))
    try:
        with shapes_only():
            return build(plain, build_tokenizer(plain, load=False), classes)
    # A component that reads values of tensors (TypeError: as NumPy's) is not known to fit until it is built in earnest.
    except (RuntimeError, NotImplementedError, TypeError) as error:
        if "overflow" in str(error):
            raise RecipeError([f"{recipe.name}: the model is too large for any machine; correct its sizes"]) from None
        return None


def _num_classes(recipe: Recipe) -> int | None:
    """Return the number of classes of a dataset, or what else tells it where it is not there; None if nothing does."""
    try:
        return build_dataset(recipe).num_classes
    # Not there yet, or gone once its images are in shards.
    except RearkitError:
        given = getattr(recipe.data.source.settings, "num_classes", None)
    if isinstance(given, int):
        return given
    try:
        # Of the weights themselves: all but their number of classes is compared then.
        component = plugins.find("backbone", recipe.backbone.name)
        return classes_of(str(recipe.backbone.weights), component, recipe.backbone.weights_key)
    except WeightsError:
        return None


def _build(table: ComponentTable, recipe_name: str, *context: object) -> Any:
    component = plugins.find(table.kind, table.name)
    try:
        return build_checked(component, table.settings, *context)
    except ValueError as error:
        # The names of the recipe's tables, where they differ from the kinds'.
        where = {"dataset": "data.source", "regularizer": "regularizers"}.get(table.kind, table.kind)
        raise RecipeError([f"{recipe_name}: [{where}] {table.name}: {error}"]) from error
