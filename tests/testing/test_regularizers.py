"""The check of a regularizer fails where a clause is broken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.contracts import RegularizerContext
from rearkit.testing import check_regularizer


class TwoHeads(nn.Module):
    """A regularizer that keeps the contract: two linear heads on block 1's output at each token's own place."""

    weight = 0.5
    layers: tuple[Any, ...] = (1,)

    def __init__(self, context: RegularizerContext) -> None:
        super().__init__()
        self.first = nn.Linear(context.hidden_size, context.codebook_VZ.shape[1])
        self.second = nn.Linear(context.hidden_size, context.codebook_VZ.shape[1])
        self.register_buffer("codebook", context.codebook_VZ.detach().clone(), persistent=False)

    def forward(
        self, hidden: Mapping[int, Tensor], tokens_BN: Tensor, replaced_BN: Tensor, prefix_length: int
    ) -> dict[str, Tensor]:
        states_BND = hidden[1][:, prefix_length:]
        kept_BN = ~replaced_BN
        return {
            "kept": self.mean(self.error(self.first(states_BND), tokens_BN), kept_BN),
            "all": self.error(self.second(states_BND), tokens_BN).mean(),
        }

    def error(self, found_BNZ: Tensor, tokens_BN: Tensor) -> Tensor:
        return (found_BNZ - self.codebook[tokens_BN]).pow(2).mean(-1)

    def mean(self, error_BN: Tensor, where_BN: Tensor) -> Tensor:
        return (error_BN * where_BN).sum() / where_BN.sum().clamp(min=1)


class MeanOfNothing(TwoHeads):
    def mean(self, error_BN: Tensor, where_BN: Tensor) -> Tensor:
        return error_BN[where_BN].mean()


class IgnoresAHead(TwoHeads):
    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        return {"all": super().forward(*arguments)["all"]}


class InfiniteGradient(TwoHeads):
    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        terms = super().forward(*arguments)
        return {**terms, "odd": (terms["all"] - terms["all"].detach()).abs().sqrt()}


class TrainsTheCodebook(TwoHeads):
    def __init__(self, context: RegularizerContext) -> None:
        super().__init__(context)
        self.register_buffer("codebook", F.normalize(context.codebook_VZ, dim=-1), persistent=False)


class KeepsTheCodebookAttached(TwoHeads):
    def __init__(self, context: RegularizerContext) -> None:
        super().__init__(context)
        self.attached = [context.codebook_VZ]

    def error(self, found_BNZ: Tensor, tokens_BN: Tensor) -> Tensor:
        return (found_BNZ - self.attached[0][tokens_BN]).pow(2).mean(-1)


class OwnsTheCodebook(TwoHeads):
    def __init__(self, context: RegularizerContext) -> None:
        super().__init__(context)
        del self.codebook
        self.codebook = nn.Parameter(context.codebook_VZ.detach())


class DropsOutAlways(TwoHeads):
    def error(self, found_BNZ: Tensor, tokens_BN: Tensor) -> Tensor:
        return F.dropout(super().error(found_BNZ, tokens_BN), 0.5)


class StateOutsideItsStateDict(TwoHeads):
    def __init__(self, context: RegularizerContext) -> None:
        super().__init__(context)
        self.shift = torch.randn(())

    def error(self, found_BNZ: Tensor, tokens_BN: Tensor) -> Tensor:
        return super().error(found_BNZ + self.shift, tokens_BN)


class ReadsMoreThanItSays(TwoHeads):
    def forward(self, hidden: Mapping[int, Tensor], *arguments: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return super().forward({1: hidden[1] + hidden[2]}, *arguments)


class WritesIntoItsArguments(TwoHeads):
    def forward(self, hidden: Mapping[int, Tensor], *arguments: Any) -> dict[str, Tensor]:  # type: ignore[override]
        if not hidden[1].requires_grad:
            hidden[1].mul_(2)
        return super().forward(hidden, *arguments)


class Detached(TwoHeads):
    def forward(self, hidden: Mapping[int, Tensor], *arguments: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return super().forward({layer: states.detach() for layer, states in hidden.items()}, *arguments)


class Constant(TwoHeads):
    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in super().forward(*arguments).items()}


class PerToken(TwoHeads):
    def mean(self, error_BN: Tensor, where_BN: Tensor) -> Tensor:
        return error_BN * where_BN


class OneTensor(TwoHeads):
    def forward(self, *arguments: Any) -> Tensor:  # type: ignore[override]
        return super().forward(*arguments)["all"]


class NoTerms(TwoHeads):
    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        return {}


class Float32Only(TwoHeads):
    def error(self, found_BNZ: Tensor, tokens_BN: Tensor) -> Tensor:
        return found_BNZ @ torch.zeros(found_BNZ.shape[-1])


class NoLayers(TwoHeads):
    layers = ()


class LayerBeyondTheBackbone(TwoHeads):
    layers = (1, 4)


class LayerByName(TwoHeads):
    layers = ("last",)


class WeightByName(TwoHeads):
    weight = "auto"  # type: ignore[assignment]


def test_a_good_regularizer_passes() -> None:
    check_regularizer(TwoHeads)
    check_regularizer(TwoHeads, hidden_size=5, num_layers=2, num_tokens=1)


def test_a_regularizer_without_parameters_passes() -> None:
    class Smooth(nn.Module):
        weight, layers = 1, [0]

        def __init__(self, context: RegularizerContext) -> None:
            super().__init__()

        def forward(
            self, hidden: Mapping[int, Tensor], tokens_BN: Tensor, replaced_BN: Tensor, prefix_length: int
        ) -> dict[str, Tensor]:
            return {"smooth": hidden[0].diff(dim=1).pow(2).mean()}

    check_regularizer(Smooth)


@pytest.mark.parametrize(
    ("regularizer", "clause"),
    [
        (MeanOfNothing, "term 'kept' must be finite; it is nan where all of the tokens are replaced"),
        (IgnoresAHead, "first.weight gets none, so it takes no part in the loss"),
        (InfiniteGradient, "must get a finite gradient"),
        (TrainsTheCodebook, "codebook must get no gradient"),
        (KeepsTheCodebookAttached, "codebook must get no gradient"),
        (OwnsTheCodebook, "codebook must not be a parameter of the regularizer; codebook is"),
        (DropsOutAlways, "in eval mode, the same input must give the same terms"),
        (StateOutsideItsStateDict, "with the first's state dict must give the same terms"),
        (ReadsMoreThanItSays, r"must list in layers every block that it reads; it also reads \[2\]"),
        (WritesIntoItsArguments, "must not write into its arguments"),
        (Detached, "must reach the hidden states"),
        (Constant, "must depend on the hidden states; they carry no gradient"),
        (PerToken, "term 'kept' must be a scalar tensor"),
        (OneTensor, "must return named terms"),
        (NoTerms, "must return named terms"),
        (Float32Only, "must run when it is cast to bfloat16"),
        (NoLayers, "must list the blocks that it reads, at least one"),
        (LayerByName, "must list the blocks that it reads"),
        (LayerBeyondTheBackbone, r"whose blocks are 0 to 3; found \[1, 4\]"),
        (WeightByName, "weight must be a finite number; found 'auto'"),
        (lambda context: object(), "must be an nn.Module; found object"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_regularizer_fails(regularizer: type[TwoHeads], clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_regularizer(regularizer)
