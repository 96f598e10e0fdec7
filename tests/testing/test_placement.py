"""The checks find tensors that stay on the CPU, which fail on a GPU only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rearkit.contracts import RegularizerContext, TokenSpace, TrainingStep
from rearkit.testing import check_backbone, check_regularizer, check_tokenizer
from tests.testing.test_backbones import Running
from tests.testing.test_regularizers import TwoHeads
from tests.testing.test_tokenizers import Fitted, Line


class PlainCodebook(TwoHeads):
    def __init__(self, context: RegularizerContext) -> None:
        super().__init__(context)
        del self.codebook
        self.codebook = context.codebook_VZ.detach()


class PlainCodebookInALayer(PlainCodebook):
    def error(self, found_BNZ: Tensor, tokens_BN: Tensor) -> Tensor:
        return found_BNZ.pow(2).mean(-1) + nn.functional.embedding(tokens_BN, self.codebook).sum(-1)


class MovesWhatItNeeds(PlainCodebook):
    """Keeps the contract: copies to another device are no mixture, nor are numbers and indices on the CPU."""

    def error(self, found_BNZ: Tensor, tokens_BN: Tensor) -> Tensor:
        codebook_VZ = self.codebook.to(found_BNZ)
        return (found_BNZ - codebook_VZ[tokens_BN]).pow(2)[..., torch.arange(1)].mean(-1) * torch.tensor(2.0)


class LooksFirst(TwoHeads):
    """Keeps the contract, though meta tensors have no content to look at."""

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        assert bool(step.replaced_BN.any()) in (True, False)
        return super().forward(step)


class PlainMean(Line):
    def encode(self, images_B3RR: Tensor) -> Tensor:
        return super().encode(images_B3RR - torch.full((3, 1, 1), 0.5))


class PlainScale(Line):
    def decode(self, tokens_BN: Tensor) -> Tensor:
        return super().decode(tokens_BN) * torch.full((3, 1, 1), 0.5)


class CodebookElsewhere(Line):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.ones(13, 4)

    def codebook(self) -> Tensor:
        return self.table

    def encode(self, images_B3RR: Tensor) -> Tensor:
        return self.read(images_B3RR.flatten(1)).unflatten(1, (5, 4)).argmax(-1)

    def decode(self, tokens_BN: Tensor) -> Tensor:
        return self.write(self.codes(tokens_BN).flatten(1)).unflatten(1, (3, 6, 6)).sigmoid()


class ThroughNumPy(Line):
    def encode(self, images_B3RR: Tensor) -> Tensor:
        return super().encode(torch.from_numpy(images_B3RR.numpy()))


class PlainInTheFit(Fitted):
    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = super().fit_loss(images_B3RR * torch.full((3, 1, 1), 0.5))
        return loss, parts


class PlainDecay(Running):
    def __init__(self, space: TokenSpace) -> None:
        super().__init__(space)
        self.decay = torch.full((8,), 0.5)

    def forward(self, tokens_BN: Tensor, classes_B: Tensor, layers: tuple[int, ...] = ()) -> tuple[Tensor, dict]:
        logits, hidden = super().forward(tokens_BN, classes_B, layers)
        return logits, {layer: states + 0 * self.decay.to(states.dtype) for layer, states in hidden.items()}


@pytest.mark.parametrize("regularizer", [MovesWhatItNeeds, LooksFirst])
def test_a_regularizer_whose_tensors_follow_passes(regularizer: type[TwoHeads]) -> None:
    check_regularizer(regularizer)


@pytest.mark.parametrize("regularizer", [PlainCodebook, PlainCodebookInALayer])
def test_a_plain_tensor_of_a_regularizer_is_found(regularizer: type[TwoHeads]) -> None:
    with pytest.raises(AssertionError, match=r"forward must compute on the device of the parameters.*as a buffer"):
        check_regularizer(regularizer)


@pytest.mark.parametrize(
    ("tokenizer", "clause"),
    [
        (PlainMean, "encode must compute on the device of the parameters; .* sub reads tensors of both"),
        (PlainScale, "decode must compute on the device"),
        (CodebookElsewhere, "codebook must return tensors on the device of the parameters, not on the CPU"),
        (ThroughNumPy, "encode must compute on the device of the parameters: can't convert meta"),
        (PlainInTheFit, "fit_loss must compute on the device"),
    ],
)
def test_a_plain_tensor_of_a_tokenizer_is_found(tokenizer: type[Line], clause: str) -> None:
    for rebuild in (tokenizer, None):
        with pytest.raises(AssertionError, match=clause):
            check_tokenizer(tokenizer(), rebuild)


def test_a_plain_tensor_of_a_backbone_is_found() -> None:
    with pytest.raises(AssertionError, match="forward must compute on the device of the parameters"):
        check_backbone(PlainDecay)
