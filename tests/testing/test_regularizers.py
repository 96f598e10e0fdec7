"""The check of a regularizer fails where a clause is broken."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.contracts import RegularizerContext, StepTaken, TrainingStep
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

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        states_BND = step.hidden[1][:, step.prefix_length :]
        kept_BN = ~step.replaced_BN
        return {
            "kept": self.mean(self.error(self.first(states_BND), step.tokens_BN), kept_BN),
            "all": self.error(self.second(states_BND), step.tokens_BN).mean(),
        }

    def error(self, found_BNZ: Tensor, tokens_BN: Tensor) -> Tensor:
        return (found_BNZ - self.codebook[tokens_BN]).pow(2).mean(-1)

    def mean(self, error_BN: Tensor, where_BN: Tensor) -> Tensor:
        return (error_BN * where_BN).sum() / where_BN.sum().clamp(min=1)


class MeanOfNothing(TwoHeads):
    def mean(self, error_BN: Tensor, where_BN: Tensor) -> Tensor:
        return error_BN[where_BN].mean()


class IgnoresAHead(TwoHeads):
    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        return {"all": super().forward(step)["all"]}


class InfiniteGradient(TwoHeads):
    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        terms = super().forward(step)
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
    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        return super().forward(attrs.evolve(step, hidden={1: step.hidden[1] + step.hidden[2]}))


class WritesIntoItsArguments(TwoHeads):
    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        if not step.hidden[1].requires_grad:
            step.hidden[1].mul_(2)
        return super().forward(step)


class Detached(TwoHeads):
    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        return super().forward(
            attrs.evolve(step, hidden={layer: states.detach() for layer, states in step.hidden.items()})
        )


class Constant(TwoHeads):
    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in super().forward(step).items()}


class PerToken(TwoHeads):
    def mean(self, error_BN: Tensor, where_BN: Tensor) -> Tensor:
        return error_BN * where_BN


class OneTensor(TwoHeads):
    def forward(self, step: TrainingStep) -> Tensor:  # type: ignore[override]
        return super().forward(step)["all"]


class NoTerms(TwoHeads):
    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        return {}


class Float32Only(TwoHeads):
    def error(self, found_BNZ: Tensor, tokens_BN: Tensor) -> Tensor:
        return found_BNZ @ torch.zeros(found_BNZ.shape[-1])


class ReadsWhatItDoesNotList(TwoHeads):
    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        assert step.logits_BNV is not None
        return {**super().forward(step), "logits": step.logits_BNV.pow(2).mean()}


class ReadsUnknownFields(TwoHeads):
    reads = ("logits",)


class StepsItsOwnParameters(TwoHeads):
    def after_step(self, step: StepTaken) -> None:
        self.first.weight.mul_(0.9)


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

        def forward(self, step: TrainingStep) -> dict[str, Tensor]:
            return {"smooth": step.hidden[0].diff(dim=1).pow(2).mean()}

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
        (Detached, "must reach the hidden states, the logits or the backbone"),
        (Constant, "must depend on the hidden states, the logits or the backbone; they carry no gradient"),
        (PerToken, "term 'kept' must be a scalar tensor"),
        (OneTensor, "must return named terms"),
        (NoTerms, "must return named terms"),
        (Float32Only, "must run when it is cast to bfloat16"),
        (NoLayers, r"must list in layers every block that it reads; it also reads \[1\]"),
        (ReadsWhatItDoesNotList, "must list in reads what it reads; .* needs one of logits_BNV"),
        (ReadsUnknownFields, r"must list fields among logits_BNV, images, backbone; found \('logits',\)"),
        (StepsItsOwnParameters, "after_step must leave trained parameters alone"),
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
