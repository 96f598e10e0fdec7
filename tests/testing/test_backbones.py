"""The check of a backbone fails where a clause is broken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rearkit.contracts import Backbone, TokenSpace
from rearkit.testing import check_backbone


class Running(Backbone):
    """A backbone that keeps the contract: the class token alone before the tokens, one block of running sums."""

    prefix_length = 1
    num_layers = 1
    hidden_size = 8

    def __init__(self, space: TokenSpace) -> None:
        super().__init__()
        self.space = space
        self.tokens = nn.Embedding(space.codebook_size, self.hidden_size)
        self.classes = nn.Embedding(space.num_classes + 1, self.hidden_size)
        self.mix = nn.Linear(self.hidden_size, self.hidden_size)
        self.head = nn.Linear(self.hidden_size, space.codebook_size)

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        x_BTD = torch.cat([self.classes(classes_B)[:, None], self.tokens(tokens_BN)], dim=1)
        hidden_BTD = self.block(x_BTD)
        return self.head(hidden_BTD), {0: hidden_BTD} if 0 in layers else {}

    def block(self, x_BTD: Tensor) -> Tensor:
        return torch.tanh(self.mix(x_BTD)).cumsum(1)

    def start(self, classes_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        cache = {"sum": self.head.weight.new_zeros(len(classes_B), self.hidden_size)}
        return self.append(self.classes(classes_B), cache), cache

    def step(self, tokens_B: Tensor, cache: dict[str, Tensor]) -> Tensor:
        return self.append(self.tokens(tokens_B), cache)

    def append(self, x_BD: Tensor, cache: dict[str, Tensor]) -> Tensor:
        cache["sum"] = cache["sum"] + torch.tanh(self.mix(x_BD))
        return self.head(cache["sum"])


class NotCausal(Running):
    def block(self, x_BTD: Tensor) -> Tensor:
        return super().block(x_BTD) + x_BTD.mean(1, keepdim=True)


class SeesTheTarget(Running):
    """Reads each token one place early, so that the place that predicts it has seen it."""

    def block(self, x_BTD: Tensor) -> Tensor:
        return super().block(torch.cat([x_BTD[:, 1:], x_BTD[:, :1]], dim=1))


class HiddenOnePlaceLate(Running):
    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        logits, hidden = super().forward(tokens_BN, classes_B, layers)
        return logits, {layer: torch.cat([x[:, :1], x[:, :-1]], dim=1) for layer, x in hidden.items()}


class IgnoresContext(Running):
    def block(self, x_BTD: Tensor) -> Tensor:
        return super().block(x_BTD[:, :1].expand_as(x_BTD))


class IgnoresClass(Running):
    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        return super().forward(tokens_BN, torch.zeros_like(classes_B), layers)


class NormOverBatch(Running):
    def block(self, x_BTD: Tensor) -> Tensor:
        return super().block(x_BTD - x_BTD.mean(0))


class DropsOutAlways(Running):
    def block(self, x_BTD: Tensor) -> Tensor:
        return nn.functional.dropout(super().block(x_BTD), 0.2)


class ForgetsInStep(Running):
    def step(self, tokens_B: Tensor, cache: dict[str, Tensor]) -> Tensor:
        return self.head(torch.tanh(self.mix(self.tokens(tokens_B))))


class CacheInModule(Running):
    def start(self, classes_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits, self.kept = super().start(classes_B)
        return logits, self.kept

    def step(self, tokens_B: Tensor, cache: dict[str, Tensor]) -> Tensor:
        return super().step(tokens_B, self.kept)


class KeepsOldWeights(Running):
    def start(self, classes_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if not hasattr(self, "kept"):
            self.kept = self.head.weight.detach().clone()
        return super().start(classes_B)

    def append(self, x_BD: Tensor, cache: dict[str, Tensor]) -> Tensor:
        super().append(x_BD, cache)
        return nn.functional.linear(cache["sum"], self.kept, self.head.bias)


class StateOutsideItsStateDict(Running):
    def __init__(self, space: TokenSpace) -> None:
        super().__init__(space)
        self.shift = torch.randn(self.hidden_size)

    def block(self, x_BTD: Tensor) -> Tensor:
        return super().block(x_BTD + self.shift.to(x_BTD))

    def append(self, x_BD: Tensor, cache: dict[str, Tensor]) -> Tensor:
        return super().append(x_BD + self.shift.to(x_BD), cache)


class OddState(Running):
    def __init__(self, space: TokenSpace) -> None:
        super().__init__(space)
        width = 1 + int(torch.randint(10**6, ()))
        self.register_buffer("odd", torch.zeros(width))


class CopiesATable(Running):
    def __init__(self, space: TokenSpace) -> None:
        super().__init__(space)
        self.ones = torch.ones(self.hidden_size)

    def append(self, x_BD: Tensor, cache: dict[str, Tensor]) -> Tensor:
        return super().append(x_BD * self.ones.to(x_BD), cache)


class CopiesANumber(Running):
    def append(self, x_BD: Tensor, cache: dict[str, Tensor]) -> Tensor:
        return super().append(x_BD * torch.tensor([1.0], device=x_BD.device), cache)


class LooksAtTokens(Running):
    def step(self, tokens_B: Tensor, cache: dict[str, Tensor]) -> Tensor:
        return super().step(tokens_B if tokens_B.any() else tokens_B.clone(), cache)


class UnusedParameter(Running):
    def __init__(self, space: TokenSpace) -> None:
        super().__init__(space)
        self.spare = nn.Linear(2, 2)


class InfiniteGradient(Running):
    def __init__(self, space: TokenSpace) -> None:
        super().__init__(space)
        self.scale = nn.Parameter(torch.ones(1))

    def block(self, x_BTD: Tensor) -> Tensor:
        zero = (self.scale - self.scale.detach()).abs()
        return super().block(x_BTD) + (zero.sqrt() if self.training else 0)


class Float32Only(Running):
    def block(self, x_BTD: Tensor) -> Tensor:
        return super().block(x_BTD + torch.zeros(self.hidden_size))


class NoLastPlace(Running):
    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        logits, hidden = super().forward(tokens_BN, classes_B, layers)
        return logits[:, :-1], hidden


class LogitsOnly(Running):
    def forward(self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()) -> Tensor:  # type: ignore[override]
        return super().forward(tokens_BN, classes_B, layers)[0]


class NoHidden(Running):
    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        return super().forward(tokens_BN, classes_B)


class PrefixOfTwo(Running):
    prefix_length = 2


class NoPrefix(Running):
    prefix_length = 0


class NamesOtherBlocks(Running):
    def __init__(self, space: TokenSpace) -> None:
        super().__init__(space)
        self.blocks = [self.mix]  # whose output is not the block's


class NamesTooManyBlocks(NamesOtherBlocks):
    def __init__(self, space: TokenSpace) -> None:
        super().__init__(space)
        self.blocks = [self.mix, self.head]


class OfAnyGrid(Running):
    """Keeps the contract of `any_grid`: a table of positions, which it cuts out of a square's."""

    any_grid = True

    def __init__(self, space: TokenSpace) -> None:
        super().__init__(space)
        self.place = nn.Parameter(torch.zeros(space.num_tokens, self.hidden_size))

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        x_BTD = torch.cat([self.classes(classes_B)[:, None], self.tokens(tokens_BN) + self.place], dim=1)
        hidden_BTD = self.block(x_BTD)
        return self.head(hidden_BTD), {0: hidden_BTD} if 0 in layers else {}

    def start(self, classes_B: Tensor) -> tuple[Tensor, dict[str, Any]]:
        logits, cache = super().start(classes_B)
        return logits, {**cache, "place": 0}

    def step(self, tokens_B: Tensor, cache: dict[str, Any]) -> Tensor:
        cache["place"] += 1
        return self.append(self.tokens(tokens_B) + self.place[cache["place"] - 1], cache)

    def adapted(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        side = math.isqrt(len(state["place"]))
        rows, columns = self.space.grid or (side, side)
        at = [min(i // columns, side - 1) * side + min(i % columns, side - 1) for i in range(rows * columns)]
        return {**state, "place": state["place"][at]}, []


class CannotChangeItsGrid(OfAnyGrid):
    def adapted(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        return dict(state), []


class MixesUpRowsAndColumns(OfAnyGrid):
    def adapted(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        return {**state, "place": state["place"][: self.space.num_tokens]}, []


def test_a_good_backbone_of_any_grid_passes() -> None:
    check_backbone(OfAnyGrid)


@pytest.mark.parametrize("space", [TokenSpace(6, 11, 3), TokenSpace(1, 2, 1), TokenSpace(5, 300, 2)])
def test_a_good_backbone_passes(space: TokenSpace) -> None:
    check_backbone(Running, space)


@pytest.mark.parametrize(
    ("backbone", "clause"),
    [
        (NotCausal, "must be causal: changing token 0 must not change the logits of tokens 0 to 0"),
        (SeesTheTarget, "must be causal: changing token 0"),
        (HiddenOnePlaceLate, "changing it must change the output of block 0 there"),
        (IgnoresContext, "must read its context"),
        (IgnoresClass, "must read the class"),
        (NormOverBatch, "must not depend on the rest of the batch"),
        (DropsOutAlways, "in eval mode, the same input must give the same logits"),
        (ForgetsInStep, "cached decoding must equal the teacher-forced forward: at token 1"),
        (CacheInModule, "two batches were decoded in turns"),
        (KeepsOldWeights, "at token 0 .*weights were changed before start"),
        (StateOutsideItsStateDict, "the state dict does not hold everything"),
        (OddState, "must take the first's state dict: .*odd"),
        (CopiesATable, r"must copy nothing from the host, since CUDA graphs record them; torch\.Tensor\.to does"),
        (CopiesANumber, r"must copy nothing from the host, since CUDA graphs record them; torch\.tensor does"),
        (LooksAtTokens, "must not look at the content of tensors"),
        (UnusedParameter, r"spare.weight gets none, so it takes no part in the loss"),
        (InfiniteGradient, "must get a finite gradient; scale does not"),
        (Float32Only, "must run when it is cast to bfloat16"),
        (NamesOtherBlocks, r"blocks\[0\] must be the module whose call gives the output of block 0"),
        (NamesTooManyBlocks, "must be its 1 blocks, modules; found 2 items"),
        (NoLastPlace, r"logits, \(B, N\+1, V\), must be a tensor"),
        (LogitsOnly, "forward must return logits and hidden states by layer; found Tensor"),
        (NoHidden, r"must have exactly the layers asked for, \[0\]; found \[\]"),
        (CannotChangeItsGrid, r"weights of a square grid to one of 4 × 2 tokens, in adapted; place do not fit"),
        (MixesUpRowsAndColumns, "must tell rows from columns, by TokenSpace.grid"),
        (PrefixOfTwo, r"the output of block 0, \(B, prefix_length \+ N, D\), must be a tensor"),
        (NoPrefix, "prefix_length must be a whole number from 1; found 0"),
        (lambda space: object(), "must be an nn.Module; found object"),
        (lambda space: nn.Linear(1, 1), "must inherit from rearkit.contracts.Backbone; Linear does not"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_backbone_fails(backbone: type[Running], clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_backbone(backbone)
