from __future__ import annotations

from collections.abc import Callable

import torch

from rearkit.model import build
from rearkit.recipe.tables import Recipe
from rearkit.training.batches import Batch
from rearkit.training.train_module import TrainModule


def batch_of(recipe: Recipe, size: int = 3) -> Batch:
    tokens = torch.randint(12, (size, 16))
    return Batch(tokens, tokens.flip(1), torch.rand(size, 16) < 0.5, torch.randint(11, (size,)), 0.5)


def test_the_module_computes_the_objective_of_the_backbones_outputs(tiny: Callable[..., Recipe]) -> None:
    model = build(tiny(backbone={"dropout": 0.0, "attention_dropout": 0.0}))
    module, batch = TrainModule(model), batch_of(model.recipe)
    loss, parts = module(batch)
    logits, hidden = module.backbone(batch.context_BN, batch.classes_B, model.objective.layers)
    expected = model.objective(logits, hidden, batch.tokens_BN, batch.replaced_BN, 2)
    assert torch.equal(loss, expected.total)
    assert parts.keys() == expected.parts.keys()


def test_the_tokenizer_is_no_part_of_what_is_trained(tiny: Callable[..., Recipe]) -> None:
    model = build(tiny())
    trained = {id(parameter) for parameter in TrainModule(model).parameters()}
    assert not trained & {id(parameter) for parameter in model.tokenizer.parameters()}  # type: ignore[attr-defined]
