from __future__ import annotations

import functools
import math

import pytest
import torch
from rearkit_example import rearkit_components
from rearkit_example.noise import CosineNoise
from rearkit_example.regularizer import NextEmbedding, NextEmbeddingSettings
from torch import Tensor

from rearkit import Component
from rearkit.contracts import RegularizerContext, TrainingStep
from rearkit.testing import check_component, check_noise_schedule, check_regularizer


@pytest.mark.parametrize("component", rearkit_components(), ids=lambda component: component.name)
def test_each_component_keeps_its_contract(component: Component) -> None:
    check_component(component)


@pytest.mark.parametrize("levels", [(0.0, 0.0), (0.2, 0.9), (1.0, 1.0)])
def test_cosine_keeps_its_contract_at_other_levels(levels: tuple[float, float]) -> None:
    check_noise_schedule(CosineNoise(start_level=levels[0], end_level=levels[1]))


@pytest.mark.parametrize("layer", [0, 3])
def test_next_embedding_keeps_its_contract_at_other_layers(layer: int) -> None:
    check_regularizer(lambda context: NextEmbedding(NextEmbeddingSettings(layer=layer), context), num_tokens=5)


def test_next_embedding_of_a_single_token_is_nothing() -> None:
    check_regularizer(lambda context: NextEmbedding(NextEmbeddingSettings(), context), num_layers=1, num_tokens=1)


@pytest.mark.parametrize(("progress", "level"), [(0.0, 0.9), (0.5, 0.5), (1.0, 0.1), (1 / 3, 0.7)])
def test_cosine_goes_from_one_level_to_the_other(progress: float, level: float) -> None:
    schedule = CosineNoise(start_level=0.9, end_level=0.1)
    assert math.isclose(schedule.level(progress), level)
    rates = schedule.rates(progress, 4000, torch.Generator().manual_seed(0))
    assert rates.max() <= level
    assert rates.mean().item() == pytest.approx(level / 2, abs=0.02)


def _step(tokens_BN: Tensor, replaced_BN: Tensor, prefix_length: int, hidden: dict[int, Tensor]) -> TrainingStep:
    return TrainingStep(tokens_BN=tokens_BN, replaced_BN=replaced_BN, prefix_length=prefix_length, hidden=hidden)


def test_next_embedding_reads_the_place_before() -> None:
    """With the embedding of token i+1 at token i's own place and a head that changes nothing, no error is left."""
    context = RegularizerContext(hidden_size=6, num_layers=2, codebook_VZ=torch.randn(9, 6))
    regularizer = NextEmbedding(NextEmbeddingSettings(layer=1), context)
    torch.nn.init.eye_(regularizer.head.weight)
    torch.nn.init.zeros_(regularizer.head.bias)
    tokens_BN = torch.randint(9, (3, 5))
    replaced_BN = torch.zeros(3, 5, dtype=torch.bool)
    for prefix_length in (1, 2):
        states = torch.randn(3, prefix_length + 5, 6)
        step = functools.partial(_step, tokens_BN, replaced_BN, prefix_length)
        states[:, prefix_length:-1] = context.codebook_VZ[tokens_BN[:, 1:]]
        terms = regularizer(step({1: states}))
        assert terms["next"].item() == pytest.approx(0, abs=1e-6)
        terms = regularizer(step({1: states.roll(1, dims=1)}))
        assert terms["next"].item() > 0.1


def test_next_embedding_refuses_a_layer_beyond_the_backbone() -> None:
    context = RegularizerContext(hidden_size=6, num_layers=2, codebook_VZ=torch.randn(9, 6))
    with pytest.raises(ValueError, match="layer 2 is not in the backbone, whose blocks are 0 to 1"):
        NextEmbedding(NextEmbeddingSettings(layer=2), context)
