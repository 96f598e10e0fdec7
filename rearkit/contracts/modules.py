"""What tokenizers and backbones must do, and the layouts of their published weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
from torch import Tensor, nn

from rearkit.contracts.image_sizes import ImageSize, height_width, is_square, size_text
from rearkit.errors import RearkitError


@attrs.frozen
class TokenSpace:
    """The sizes of what a backbone predicts.

    Attributes:
        num_tokens: N, tokens per image.
        codebook_size: V, possible values of a token.
        num_classes: C, labels; the id C stands for "no label" (dropped, or the unconditional half of guidance).
        extra_tokens: ids from V on that the context may hold besides the codes, such as a mask; they are never targets.
        grid: rows and columns, where the tokens are a grid in raster order.
    """

    num_tokens: int
    codebook_size: int
    num_classes: int
    extra_tokens: int = 0
    grid: tuple[int, int] | None = None


class Tokenizer(nn.Module):
    """Turns images into tokens and back. It is frozen while the backbone trains.

    One whose tokens are a grid in raster order, each of its own square patch of the image, sets ``raster``: a part of
    an image can then be kept and the rest drawn anew.

    Images are squares of R pixels. One that reads and draws others, too, has a setting ``image_size`` of the type
    `ImageSize`; ``image_size`` is then height and width, and so are the last two numbers of a shape below.
    """

    raster: bool = False
    num_tokens: int
    codebook_size: int
    embedding_dim: int
    image_size: ImageSize

    def encode(self, images_B3RR: Tensor) -> Tensor:
        """Turn images (B, 3, R, R) float32 in [0, 1] into tokens (B, N) int64 in [0, V)."""
        raise NotImplementedError

    def decode(self, tokens_BN: Tensor) -> Tensor:
        """Turn tokens (B, N) int64 in [0, V) into images (B, 3, R, R) float32 in [0, 1]."""
        raise NotImplementedError

    def codebook(self) -> Tensor:
        """Return (V, Z) float32; row v is what the decoder receives for token v (normalised, if the tokenizer does)."""
        raise NotImplementedError


@attrs.frozen(eq=False)
class FitPass:
    """What a tokenizer makes of a batch in a fit.

    Attributes:
        loss: the tokenizer's own loss, a scalar: reconstruction, commitment and the like.
        parts: named scalars for the log.
        rebuilt_B3RR: the images as they come back, in [0, 1] but not clamped, with their gradient.
        last_weight: the decoder's last weights, in whose gradients terms of the loss are balanced.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    rebuilt_B3RR: Tensor
    last_weight: Tensor


class FittableTokenizer(Tokenizer):
    """A tokenizer that the tokenizer stage can fit. For any other tokenizer, the recipe must name weights.

    It defines `fit_pass`, or only `fit_loss`; a perceptual distance and a discriminator need `fit_pass`.
    """

    def fit_pass(self, images_B3RR: Tensor) -> FitPass:
        """Encode and decode a batch.

        It is called once per step in training mode, and also does whatever else the fit needs (moving averages,
        restarts of dead codes). On several ranks, each calls it for its share of the batch, and gradients and parts are
        averaged; `rearkit.VectorQuantizer` follows the whole batch. What else it takes from the images must come from
        those of all ranks (`rearkit.joined`), or their weights differ.

        Args:
            images_B3RR: (B, 3, R, R) float32 in [0, 1].
        """
        raise NotImplementedError

    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, a scalar, and named parts of it for the log, as `fit_pass` does."""
        passed = self.fit_pass(images_B3RR)
        return passed.loss, passed.parts

    def decoder_modules(self) -> Sequence[nn.Module]:
        """Return the modules that only decoding uses, which can be fitted alone; none if they cannot.

        In such a fit, all others are in eval mode, and `fit_pass` must change nothing of weights that were loaded.
        """
        return ()


class Backbone(nn.Module):
    """Predicts each token from those before it and the class.

    The sequence in its blocks has `prefix_length` positions P before token 0 (class token, condition, …). So token i is
    at position P + i, and the position that predicts it is the one before, P + i - 1.

    `start` and `step` must neither copy from the host nor read the content of tensors, since CUDA graphs record them.
    So a table that they read must be a parameter or a buffer.

    It may set ``blocks``: its `num_layers` blocks in order, each a module that `forward` calls once, as a module. This
    makes activation checkpointing possible, and compilation compiles one block instead of all.
    """

    # Only declared: a backbone that does not set it has no such attribute.
    blocks: nn.ModuleList
    # How many ids from V on its context may hold; one that looks at `TokenSpace.extra_tokens` sets it.
    extra_tokens: int = 0
    # Whether the tokens may be another grid than a square; one that looks at `TokenSpace.grid` sets it.
    any_grid: bool = False
    prefix_length: int
    hidden_size: int
    num_layers: int

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Predict all tokens at once, teacher-forced.

        Args:
            tokens_BN: (B, N) int64 in [0, V + extra_tokens), the context.
            classes_B: (B,) int64 in [0, C]; C is "no label".
            layers: the blocks, counted from 0, whose outputs to return.

        Returns:
            logits (B, N+1, V), where position i predicts token i and the last has no target; and the output of each of
            ``layers``, (B, T, D) with T = P + N.
        """
        raise NotImplementedError

    def start(self, classes_B: Tensor) -> tuple[Tensor, Any]:
        """Begin cached decoding with the current weights; return the logits of token 0, (B, V), and a cache."""
        raise NotImplementedError

    def step(self, tokens_B: Tensor, cache: Any) -> Tensor:
        """Append one token, (B,) int64, to each row of the cache in place; return the next token's logits, (B, V)."""
        raise NotImplementedError

    def adapted(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Change a state dict of another number of classes, codes or positions to this backbone's, as far as it goes.

        It serves ``weights_fit = "partial"``. Tensors whose shapes fit in the end are loaded, others not, so a backbone
        without tables that mix rows of different kinds, or that belong to positions, needs none of its own.

        Returns:
            the state dict, and what was changed, a line each, for people.
        """
        return dict(state), []


EXTRA = "extra."
"""Prefix for tensors in a weights file that the module does not have (spare rows, training-only heads)."""


class PublishedLayout(Protocol):
    """The layout of weights published by others; a `rearkit.registry.component.Component` may have one."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether a state dict, anybody's, with any names and shapes, is in the published layout."""
        ...

    def to_rearkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate to rearkit's layout; tensors that the module does not have get names that begin with `EXTRA`."""
        ...

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate back to the published layout, so that a round trip is the identity."""
        ...

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what a state dict in rearkit's layout was made for, as far as its shapes tell.

        Settings by their names and, of a backbone, three numbers that are no settings: ``"codebook of"``, ``"classes"``
        and ``"tokens an image"``. With the classes, weights are compared before a run whose images are not there yet.

        Raises:
            KeyError, IndexError, ValueError: tensors are missing, or have other shapes than the layout's.
        """
        ...


def grid_of(tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Return rows and columns of a tokenizer's grid; None where its tokens have no places in the image."""
    height, width = height_width(tokenizer.image_size)
    # Patches are squares, so rows are to columns as the height is to the width.
    rows = math.isqrt(tokenizer.num_tokens * height // width)
    columns = tokenizer.num_tokens // max(1, rows)
    fits = rows * columns == tokenizer.num_tokens and rows * width == columns * height
    return (rows, columns) if tokenizer.raster and fits else None


def square_side(tokenizer: Tokenizer) -> int:
    """Return R, for what works on squares alone.

    Raises:
        RearkitError: the tokenizer's images are no squares.
    """
    if not is_square(tokenizer.image_size):
        raise RearkitError(
            f"[tokenizer] image_size: {size_text(tokenizer.image_size)} pixels are no square, and only sampling and "
            "`reconstruct` take others; give one number"
        )
    return height_width(tokenizer.image_size)[0]


def num_parameters(module: nn.Module, trained: bool | None = None) -> int:
    """Return the number of a module's parameters: of all, or of those that are trained, or that are not."""
    wanted = (True, False) if trained is None else (trained,)
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad in wanted)
