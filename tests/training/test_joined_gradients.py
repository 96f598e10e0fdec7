from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rearkit.data.token_shards import TokenData
from rearkit.model import build
from rearkit.recipe.tables import Recipe
from rearkit.training import loop
from rearkit.training.engine import Engine
from rearkit.training.joined_gradients import join_gradients
from rearkit.training.trainer import Trainer


def trained(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> tuple[torch.Tensor, list[float], set[str]]:
    """The weights after a run, its gradient norms, and what was replaced of the optimizer."""
    create, step = Engine.__init__, Trainer.step
    norms: list[float] = []
    replaced: set[str] = set()

    def created(engine: Engine, *arguments: Any) -> None:
        create(engine, *arguments)
        optimizer = engine._engine.optimizer
        if joined:
            join_gradients(optimizer)
        replaced.update(name for name in ("update_hp_grads", "get_grads_for_norm") if name in vars(optimizer))

    def watched(trainer: Trainer, samples: Any) -> dict[str, Any]:
        values = step(trainer, samples)
        norms.append(float(values["grad_norm"]))
        return values

    generator = np.random.default_rng(0)
    data = TokenData.from_arrays(generator.integers(12, size=(32, 16)), generator.integers(10, size=32))
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "__init__", created)
        patch.setattr(Trainer, "step", watched)
        model = build(recipe)
        loop.train(model, data)
    return torch.cat([p.detach().flatten() for p in model.backbone.parameters()]), norms, replaced


@pytest.mark.parametrize("micro_batch", [8, 2])
def test_steps_are_the_same_with_gradients_together(
    micro_batch: int, tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train = {
        "steps": 5,
        "global_batch": 8,
        "micro_batch": micro_batch,
        "precision": "bf16",
        "zero_stage": 1,
        "clip": 0.1,
    }
    recipe = tiny(train=train)
    weights, norms, plain = trained(recipe, monkeypatch, joined=False)
    again, again_norms, replaced = trained(recipe, monkeypatch, joined=True)
    assert not plain and replaced == {"update_hp_grads", "get_grads_for_norm"}
    # DeepSpeed would print the memory at each of its optimizer's beginnings.
    assert "MA " not in capfd.readouterr().out
    # They differ in the order in which the norm's squares are summed.
    assert min(norms) > 0.1
    assert again_norms == pytest.approx(norms, rel=1e-4)
    torch.testing.assert_close(again, weights, rtol=1e-3, atol=1e-5)


def test_other_optimizers_stay_as_they_are(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(train={"steps": 1, "global_batch": 8, "precision": "bf16", "zero_stage": 3})
    assert trained(recipe, monkeypatch, joined=True)[2] == set()


def test_stage_3_leaves_torch_as_it_was(tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    linear = F.linear
    trained(tiny(train={"steps": 1, "global_batch": 8, "zero_stage": 3}), monkeypatch, joined=False)
    assert F.linear is linear
