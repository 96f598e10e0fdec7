from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rearkit.components.backbones.dit_ar import DiTAR
from rearkit.components.backbones.dit_ar_blocks import DiTARSettings
from rearkit.contracts import TokenSpace
from rearkit.model import build
from rearkit.recipe.tables import Recipe
from rearkit.recipe.train_table import TrainTable
from rearkit.training.schedule import learning_rate, parameter_groups
from rearkit.training.train_module import TrainModule


@st.composite
def train_tables(draw: st.DrawFn) -> TrainTable:
    steps = draw(st.integers(1, 200))
    lr = draw(st.floats(1e-6, 1))
    return TrainTable(
        steps=steps,
        global_batch=1,
        lr=lr,
        end_lr=lr * draw(st.floats(0, 1)),
        warmup_steps=draw(st.integers(0, steps - 1)),
    )


@given(train_tables())
def test_the_learning_rate_follows_its_closed_form_over_a_whole_run(train: TrainTable) -> None:
    for step in range(train.steps):
        if step < train.warmup_steps:
            expected = train.lr * step / train.warmup_steps
        else:
            done = (step - train.warmup_steps) / (train.steps - train.warmup_steps)
            expected = train.end_lr + (train.lr - train.end_lr) * math.cos(math.pi * done / 2) ** 2
        assert learning_rate(train, step) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@given(train_tables())
def test_the_learning_rate_rises_to_its_peak_and_falls_from_there(train: TrainTable) -> None:
    rates = [learning_rate(train, step) for step in range(train.steps)]
    slack = 1e-12 * train.lr
    for before, after in itertools.pairwise(rates[: train.warmup_steps + 1]):
        assert after > before
    for before, after in itertools.pairwise(rates[train.warmup_steps :]):
        assert after <= before + slack
    assert rates[train.warmup_steps] == pytest.approx(train.lr)
    assert max(rates) <= train.lr + slack
    assert rates[0] == (0 if train.warmup_steps else pytest.approx(train.lr))
    assert all(rate >= train.end_lr - slack for rate in rates[train.warmup_steps :])


@given(train_tables())
def test_the_last_step_is_all_but_at_the_end_of_the_cosine(train: TrainTable) -> None:
    assert learning_rate(train, train.steps) == pytest.approx(train.end_lr, rel=1e-9, abs=1e-12 * train.lr)
    last = learning_rate(train, train.steps - 1)
    # One step before its end, a half cosine over n steps is above it by less than (π / 2n)² of its height.
    height, steps = train.lr - train.end_lr, train.steps - train.warmup_steps
    assert last - train.end_lr <= height * min(1.0, (math.pi / 2 / steps) ** 2) + 1e-12 * train.lr


def names_of(module: nn.Module, weight_decay: float = 0.1) -> tuple[set[str], set[str]]:
    """Names of the parameters that are decayed, and of those that are not."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed: set[str] = set()
    spared: set[str] = set()
    for group in parameter_groups(module, weight_decay):
        assert group["weight_decay"] in (weight_decay, 0.0)
        (decayed if group["weight_decay"] else spared).update(names[id(parameter)] for parameter in group["params"])
    return decayed, spared


def test_of_the_backbone_exactly_the_matrices_of_linear_layers_and_the_class_token_are_decayed() -> None:
    module = DiTAR(DiTARSettings(hidden_size=8, num_layers=2, num_heads=2), TokenSpace(4, 6, 3))
    decayed, spared = names_of(module)
    linear = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    assert decayed == {
        *(f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in linear),
        "adaln_before_head.adaLN_modulation.1.weight",
        "lm_head.weight",
        "cls_token",
    }
    norms = ("norm1", "norm2", "attn.q_norm", "attn.k_norm")
    assert spared == {
        *(f"blocks.{block}.{layer}.bias" for block in (0, 1) for layer in (*linear, *norms)),
        *(f"blocks.{block}.{norm}.weight" for block in (0, 1) for norm in norms),
        "adaln_before_head.adaLN_modulation.1.bias",
        "lm_head.bias",
        "embeddings.weight",
        "pos_embed",
        "target_aware_pos_embed",
        "timesteps_embeddings",
    }


def test_of_the_heads_the_matrices_are_decayed(tiny: Callable[..., Recipe]) -> None:
    decayed, spared = names_of(TrainModule(build(tiny())))
    heads = {name for name in decayed | spared if name.startswith("objective.")}
    assert heads & decayed == {
        f"objective.regularizers.codebook-embedding.{head}.{layer}.weight"
        for head in ("encode_head", "decode_head")
        for layer in (0, 2, 4)
    }
    assert {name.removesuffix(".bias") + ".weight" for name in heads & spared} == heads & decayed


def test_other_peoples_modules_are_split_by_the_same_rule() -> None:
    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm2d = nn.GroupNorm(2, 4)
            self.rms = nn.RMSNorm((3, 3))  # its weight has two dimensions
            self.convolution = nn.Conv2d(3, 4, 3)
            self.words = nn.Embedding(5, 3)
            self.embed_table = nn.Parameter(torch.zeros(2, 2))
            self.embedding_projection = nn.Linear(3, 3)  # a linear layer, whatever its name
            self.scale = nn.Parameter(torch.zeros(3))
            self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)

    decayed, spared = names_of(Theirs())
    assert decayed == {"convolution.weight", "embedding_projection.weight"}
    assert "rms.weight" in spared
    assert "embed_table" in spared
    assert "frozen" not in decayed | spared


def test_every_trainable_parameter_is_in_one_group_once(tiny: Callable[..., Recipe]) -> None:
    module = TrainModule(build(tiny()))
    held = [id(parameter) for group in parameter_groups(module, 0.1) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in module.parameters() if parameter.requires_grad)


def test_no_group_is_empty() -> None:
    (only,) = parameter_groups(nn.LayerNorm(3), 0.1)
    assert only["weight_decay"] == 0


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_steps \(5\) must be below steps \(5\)"):
        TrainTable(steps=5, global_batch=1, warmup_steps=5)
    with pytest.raises(ValueError, match="end_lr"):
        attrs.evolve(TrainTable(steps=5, global_batch=1, lr=0.1), end_lr=0.2)
