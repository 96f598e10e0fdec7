from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from rearkit.errors import DivergedError
from rearkit.recipe.tables import SampleTable
from rearkit.sampling.sampler import sample_tokens

# Of 8 codes, those that may not be drawn.
RULED_OUT = [0, 3, 7]


@attrs.frozen
class Ruling:
    """A decoder whose logits rule codes out, by ``value`` with a label and by ``unlabelled`` without."""

    value: float
    unlabelled: float

    def start(self, classes_B: Tensor) -> tuple[Tensor, Any]:
        logits_BV = torch.randn(len(classes_B), 8, generator=torch.Generator().manual_seed(0))
        logits_BV[:, RULED_OUT] = torch.where(classes_B == 10, self.unlabelled, self.value)[:, None]
        return logits_BV, logits_BV

    def step(self, tokens_B: Tensor, cache: Any) -> Tensor:
        logits_BV: Tensor = cache
        return logits_BV


def drawn(decoder: Ruling) -> Tensor:
    uniform_BN = torch.rand(4, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale_B = torch.tensor([3.0, 1.0, 0.5, 20.0], dtype=torch.float64)
    table = SampleTable(num_images=4, guidance_schedule="constant")
    return sample_tokens(decoder, torch.arange(4), uniform_BN, 10, table, scale_B)


@pytest.mark.parametrize("unlabelled", [-torch.inf, 0.0])
def test_under_guidance_a_code_that_is_ruled_out_stays_so(unlabelled: float) -> None:
    found = drawn(Ruling(-torch.inf, unlabelled))
    assert not torch.isin(found, torch.tensor(RULED_OUT)).any()
    assert torch.equal(found, drawn(Ruling(-1e6, max(unlabelled, -1e6))))


def test_a_code_that_is_ruled_out_only_without_a_label_has_the_logits_of_the_label() -> None:
    found = drawn(Ruling(1.0, -torch.inf))
    assert torch.isin(found, torch.tensor(RULED_OUT)).any()
    # At scale 1 guidance takes nothing from there anyway.
    assert torch.equal(found[1], drawn(Ruling(1.0, 0.0))[1])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_under_guidance_is_not_drawn_from(bad: float) -> None:
    with pytest.raises(DivergedError):
        drawn(Ruling(bad, bad))
