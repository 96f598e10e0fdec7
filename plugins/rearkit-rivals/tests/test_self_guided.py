from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from rearkit_rivals.self_guided import SelfGuided, SelfGuidedSettings, contrastive
from torch import Tensor, nn

from rearkit.contracts import Backbone, RegularizerContext, TokenSpace, TrainingStep
from rearkit.testing import check_regularizer

SPACE = TokenSpace(num_tokens=6, codebook_size=11, num_classes=3)
D = 8


class Toy(Backbone):
    """Its block l adds l to the embeddings of what it reads, so that a test can tell positions and layers."""

    prefix_length = 2
    hidden_size = D
    num_layers = 4

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(SPACE.codebook_size, D)
        self.drop = nn.Dropout(0.5)

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        states_BTD = self.drop(nn.functional.pad(self.table(tokens_BN), (0, 0, 2, 0)))
        return states_BTD[:, 1:], {layer: states_BTD + layer for layer in layers}


def make(**settings: Any) -> tuple[SelfGuided, Toy]:
    backbone = Toy()
    context = RegularizerContext(D, 4, torch.randn(11, 3), SPACE, backbone)
    return SelfGuided(SelfGuidedSettings(projection_dim=5, **settings), context), backbone


def step_of(backbone: Toy, tokens_BN: Tensor, context_BN: Tensor) -> TrainingStep:
    classes_B = torch.zeros(len(tokens_BN), dtype=torch.int64)
    _, hidden = backbone.eval()(context_BN, classes_B, range(4))
    return TrainingStep(
        tokens_BN=tokens_BN,
        replaced_BN=tokens_BN != context_BN,
        prefix_length=2,
        hidden=hidden,
        context_BN=context_BN,
        classes_B=classes_B,
    )


def test_contrast_is_info_nce_over_the_images() -> None:
    student, teacher = torch.randn(3, 4, D), torch.randn(3, 4, D)
    terms: dict[bool, list[float]] = {True: [], False: []}
    for b, i, j in itertools.product(range(3), range(4), range(4)):
        scores = [float(nn.functional.cosine_similarity(student[b, i], teacher[c, j], dim=0)) / 0.2 for c in range(3)]
        terms[i == j].append(-math.log(math.exp(scores[b]) / sum(map(math.exp, scores))))
    across, same = contrastive(student, teacher, 0.2)
    assert across.item() == pytest.approx(sum(terms[False]) / 36, rel=1e-4)
    assert same.item() == pytest.approx(sum(terms[True]) / 12, rel=1e-4)


def test_a_single_position_or_image_has_nothing_to_contrast() -> None:
    across, same = contrastive(torch.randn(3, 1, D), torch.randn(3, 1, D), 0.2)
    assert across == 0 and same > 0
    assert [term.item() for term in contrastive(torch.randn(1, 3, D), torch.randn(1, 3, D), 0.2)] == [0, 0]


def test_terms_compare_the_student_with_the_teacher_over_clean_tokens() -> None:
    regularizer, backbone = make(positions=6, layer=2, align=3.0, contrast=0.5)
    regularizer.projector = nn.Identity()  # type: ignore[assignment]
    tokens_BN = torch.randint(11, (3, 6))
    step = step_of(backbone, tokens_BN, tokens_BN.flip(1))
    _, taught = regularizer.teacher(tokens_BN, step.classes_B, (2, 3))
    across, same = contrastive(step.hidden[2][:, 1:-1], taught[2][:, 1:-1], 0.2)
    terms = regularizer.eval()(step)
    assert terms["step"].item() == pytest.approx(across.item() / 4, rel=1e-5)
    assert terms["view"].item() == pytest.approx(same.item() / 4, rel=1e-5)
    apart = 1 - nn.functional.cosine_similarity(step.hidden[3][:, 1:-1], taught[3][:, 1:-1], dim=-1)
    assert terms["align"].item() == pytest.approx(3 * apart.mean().item(), rel=1e-5)


def test_nothing_is_to_align_where_both_are_one_model_and_read_the_same() -> None:
    regularizer, backbone = make()
    tokens_BN = torch.randint(11, (3, 6))
    assert regularizer(step_of(backbone, tokens_BN, tokens_BN))["align"].item() == pytest.approx(0, abs=1e-6)


def test_the_teacher_is_a_frozen_copy_without_dropout_that_gets_no_gradient() -> None:
    regularizer, backbone = make()
    regularizer.train()
    assert regularizer.training and not regularizer.teacher.drop.training  # type: ignore[union-attr]
    sum(regularizer(step_of(backbone, torch.randint(11, (3, 6)), torch.randint(11, (3, 6)))).values()).backward()
    assert backbone.table.weight.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in regularizer.teacher.parameters())
    assert not {id(p) for p in regularizer.teacher.parameters()} & {id(p) for p in backbone.parameters()}


@pytest.mark.parametrize(("layers", "expected"), [(1, 0), (2, 0), (12, 5), (5, 1)])
def test_contrast_is_at_half_the_depth(layers: int, expected: int) -> None:
    context = RegularizerContext(D, layers, torch.randn(11, 3), SPACE, Toy())
    assert SelfGuided(SelfGuidedSettings(), context).layer == expected
    assert SelfGuided(SelfGuidedSettings(), context).layers == sorted({expected, layers - 1})
    assert SelfGuided(SelfGuidedSettings(align=0.0), context).layers == [expected]


@pytest.mark.parametrize("settings", [{"layer": 0}, {"layer": 3}, {"align": 0.0}, {"positions": 1}])
def test_it_keeps_its_contract_with_other_settings(settings: dict[str, Any]) -> None:
    check_regularizer(lambda context: SelfGuided(SelfGuidedSettings(projection_dim=5, **settings), context))


def test_what_it_cannot_do_without_is_asked_for() -> None:
    with pytest.raises(ValueError, match="layer 4 is not in the backbone, whose blocks are 0 to 3"):
        make(layer=4)
    with pytest.raises(ValueError, match="needs the backbone"):
        SelfGuided(SelfGuidedSettings(), RegularizerContext(D, 4, torch.randn(11, 3)))
