"""The check of a tokenizer fails where a clause is broken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rearkit.contracts import FittableTokenizer, Tokenizer
from rearkit.testing import check_tokenizer


class Line(Tokenizer):
    """A tokenizer that keeps the contract, 1-D: five tokens of the image as a whole."""

    num_tokens = 5
    image_size = 6

    def __init__(self, codebook_size: int = 13, embedding_dim: int = 4) -> None:
        super().__init__()
        self.codebook_size, self.embedding_dim = codebook_size, embedding_dim
        pixels = 3 * self.image_size**2
        self.read = nn.Linear(pixels, self.num_tokens * embedding_dim)
        self.codes = nn.Embedding(codebook_size, embedding_dim)
        self.write = nn.Linear(self.num_tokens * embedding_dim, pixels)

    def encode(self, images_B3RR: Tensor) -> Tensor:
        features_BNZ = self.read(images_B3RR.flatten(1)).unflatten(1, (self.num_tokens, self.embedding_dim))
        return torch.cdist(features_BNZ, self.codebook()).argmin(-1)

    def decode(self, tokens_BN: Tensor) -> Tensor:
        pixels = self.write(self.codebook()[tokens_BN].flatten(1))
        return pixels.unflatten(1, (3, self.image_size, self.image_size)).sigmoid()

    def codebook(self) -> Tensor:
        return self.codes.weight


class Fitted(Line, FittableTokenizer):
    """The same, to be fitted."""

    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        error = (self.decode(self.encode(images_B3RR)) - images_B3RR).pow(2).mean()
        return error, {"error": error.detach()}


class DecoderFitted(Fitted):
    """The same, with a decoder that can be fitted alone."""

    def decoder_modules(self) -> tuple[nn.Module, ...]:
        return (self.write,)


class AimsAnyway(DecoderFitted):
    """Starts its encoder from the first batch of a fit, whatever was loaded."""

    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            self.read.weight.normal_()
        return super().fit_loss(images_B3RR)


class OutOfRange(Line):
    def encode(self, images_B3RR: Tensor) -> Tensor:
        return super().encode(images_B3RR) + self.codebook_size


class Negative(Line):
    def encode(self, images_B3RR: Tensor) -> Tensor:
        return super().encode(images_B3RR) - self.codebook_size


class InRaster(Line):
    raster = True


class ThreeSides(Line):
    def __init__(self) -> None:
        super().__init__()
        self.image_size = (6, 6, 6)


class Tall(Line):
    """Keeps the contract with images that are no squares: 4 × 2 tokens, each of 3 × 3 pixels."""

    raster, num_tokens, image_size = True, 8, (12, 6)

    def __init__(self, codebook_size: int = 13, embedding_dim: int = 4) -> None:
        super(Line, self).__init__()
        self.codebook_size, self.embedding_dim = codebook_size, embedding_dim
        self.read = nn.Conv2d(3, embedding_dim, 3, 3)
        self.codes = nn.Embedding(codebook_size, embedding_dim)
        self.write = nn.ConvTranspose2d(embedding_dim, 3, 3, 3)

    def encode(self, images_B3yx: Tensor) -> Tensor:
        return torch.cdist(self.read(images_B3yx).flatten(2).mT, self.codebook()).argmin(-1)

    def decode(self, tokens_BN: Tensor) -> Tensor:
        return self.write(self.codebook()[tokens_BN].mT.unflatten(2, (-1, 2))).sigmoid()


class TallInSquares(Tall):
    def encode(self, images_B3yx: Tensor) -> Tensor:
        return super().encode(images_B3yx[:, :, :6])


class OnAGrid(Line):
    def encode(self, images_B3RR: Tensor) -> Tensor:
        return super().encode(images_B3RR)[:, None]


class Int32(Line):
    def encode(self, images_B3RR: Tensor) -> Tensor:
        return super().encode(images_B3RR).int()


class Random(Line):
    def encode(self, images_B3RR: Tensor) -> Tensor:
        return torch.randint_like(super().encode(images_B3RR), self.codebook_size)


class NormOverBatch(Line):
    def encode(self, images_B3RR: Tensor) -> Tensor:
        return super().encode((images_B3RR - images_B3RR.mean(0)) * 100)


class DecodesOverBatch(Line):
    def decode(self, tokens_BN: Tensor) -> Tensor:
        return super().decode(tokens_BN) * 0.5 + super().decode(tokens_BN).mean(0) * 0.5


class MinusOneToOne(Line):
    def decode(self, tokens_BN: Tensor) -> Tensor:
        return super().decode(tokens_BN) * 2 - 1


class NoisyDecoder(Line):
    def decode(self, tokens_BN: Tensor) -> Tensor:
        images = super().decode(tokens_BN)
        return images * torch.rand_like(images)


class Codes16Bit(Line):
    def codebook(self) -> Tensor:
        return super().codebook().bfloat16().float().half()


class ShortCodebook(Line):
    def codebook(self) -> Tensor:
        return super().codebook()[:-1]

    def decode(self, tokens_BN: Tensor) -> Tensor:
        raise AssertionError("the codebook is looked at first")


class Learns(Line):
    def encode(self, images_B3RR: Tensor) -> Tensor:
        with torch.no_grad():
            self.codes.weight.mul_(1.01)
        return super().encode(images_B3RR)


class StateOutsideItsStateDict(Line):
    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.randn(3 * self.image_size**2) * 9

    def encode(self, images_B3RR: Tensor) -> Tensor:
        return super().encode(images_B3RR + self.shift.view(images_B3RR.shape[1:]))


class TooManyCodes(Line):
    def __init__(self) -> None:
        super().__init__(codebook_size=2**16 + 1, embedding_dim=1)


class NoCodes(Line):
    def __init__(self) -> None:
        super().__init__()
        self.codebook_size = 0


class BrokenFit(Fitted):
    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = super().fit_loss(images_B3RR)
        return loss * float("inf"), parts


class FitPerImage(Fitted):
    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, _ = super().fit_loss(images_B3RR)
        return loss, {"error": images_B3RR}


class FitWithoutGradient(Fitted):
    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = super().fit_loss(images_B3RR)
        return loss.detach(), parts


class ForgetsItsShift(Fitted):
    """Shifts by the mean of what it was fitted on, which the state dict lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()), persistent=False)

    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.shift = images_B3RR.mean() * 100
        return super().fit_loss(images_B3RR)

    def encode(self, images_B3RR: Tensor) -> Tensor:
        return super().encode(images_B3RR - self.shift)


class ForgetsItsGain(Fitted):
    gain = 1.0

    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.gain = 0.5
        return super().fit_loss(images_B3RR)

    def decode(self, tokens_BN: Tensor) -> Tensor:
        return super().decode(tokens_BN) * self.gain


@pytest.mark.parametrize("size", [(13, 4), (2, 1), (300, 500)])
@pytest.mark.parametrize("kind", [Line, Fitted, DecoderFitted, Tall])
def test_a_good_tokenizer_passes(kind: type[Line], size: tuple[int, int]) -> None:
    check_tokenizer(kind(*size), lambda: kind(*size))


@pytest.mark.parametrize(
    ("tokenizer", "clause"),
    [
        (OutOfRange, r"tokens must lie in \[0, codebook_size\), that is 0 to 12"),
        (Negative, r"tokens must lie in \[0, codebook_size\)"),
        (InRaster, r"must have a grid of tokens, .* \(6 × 6 pixels\); found 5 tokens"),
        (ThreeSides, r"must be a whole number, or \(height, width\); found \(6, 6, 6\)"),
        (TallInSquares, r"encode\(images\), \(B, N\), must be .* of shape \(3, 8\)"),
        (OnAGrid, r"encode\(images\), \(B, N\), must be a tensor, torch.int64 of shape \(3, 5\)"),
        (Int32, "found torch.int32"),
        (Random, "in eval mode, the same images must give the same tokens"),
        (NormOverBatch, "an image's tokens must not depend on the rest of the batch"),
        (DecodesOverBatch, "a decoded image must not depend on the rest of the batch"),
        (MinusOneToOne, r"decoded images must lie in \[0, 1\]; found -"),
        (NoisyDecoder, "in eval mode, the same tokens must give the same images"),
        (Codes16Bit, r"codebook\(\), \(V, Z\), must be a tensor, torch.float32"),
        (ShortCodebook, r"codebook\(\), \(V, Z\), must be a tensor, torch.float32 of shape \(13, 4\)"),
        (Learns, "must not change the tokenizer, which is frozen"),
        (StateOutsideItsStateDict, "with the first's state dict must give the same tokens"),
        (TooManyCodes, "must be 65536 at most"),
        (NoCodes, "codebook_size must be a whole number from 1; found 0"),
        (BrokenFit, "fit_loss must return a finite scalar loss"),
        (FitPerImage, "fit_loss must return named scalar tensors second"),
        (ForgetsItsShift, "state dict, after a step of its fit, must give the same tokens"),
        (ForgetsItsGain, "state dict, after a step of its fit, must give the same images"),
        (AimsAnyway, "must leave tokens and codebook as they are"),
        (FitWithoutGradient, "must carry a gradient"),
        (object, "must be an nn.Module; found object"),
        (nn.Module, "must inherit from rearkit.contracts.Tokenizer; Module does not"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_tokenizer_fails(tokenizer: type[Line], clause: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=clause):
        check_tokenizer(tokenizer(), tokenizer)
