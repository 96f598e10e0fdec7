"""What each kind of component must do. The stages rely on nothing else.

Tokenizers, backbones and regularizers are modules: they inherit from the classes here, which are `nn.Module`. Datasets
and noise schedules are plain objects with the methods named here.

Shape letters, in all of rearkit: B batch, N image tokens, T positions in the transformer's sequence, D hidden width,
V codes in the codebook, Z embedding width of a code, C classes, R image side. Images are float32 in [0, 1] or uint8 in
[0, 255], channels first; tokens and classes are int64. ``rearkit.testing`` checks a component against its contract.

How each kind is built, from the ``build`` of its `rearkit.registry.component.Component`:

=============  ======================================================================================
dataset        ``build(settings) -> Dataset``
tokenizer      ``build(settings) -> Tokenizer``
backbone       ``build(settings, space: TokenSpace) -> Backbone``
noise          ``build(settings) -> NoiseSchedule``
regularizer    ``build(settings, context: RegularizerContext) -> Regularizer``
=============  ======================================================================================

Modules have four rules in common. In eval mode, their output depends only on the input, row by row. Their state dict
contains, as tensors, everything that the output depends on, so that a second instance can load it. Every trained
parameter contributes to the loss. Tensors that they create have their parameters' device and dtype, since bf16
training casts parameters and buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import attrs
import numpy as np
import torch
from torch import Tensor, nn

# Held-out images are never trained on: tokenizers, backbones and classifiers are measured on them.
SPLITS = ("train", "held-out")


@attrs.frozen
class TokenSpace:
    """The sizes of what a backbone predicts.

    Attributes:
        num_tokens: N, tokens per image.
        codebook_size: V, possible values of a token.
        num_classes: C, labels; the id C stands for "no label" (dropped, or the unconditional half of guidance).
    """

    num_tokens: int
    codebook_size: int
    num_classes: int


@attrs.frozen
class Classes:
    """The classes of a dataset.

    Attributes:
        number: C.
        names: C names for people to read; None if the dataset has none.
    """

    number: int
    names: tuple[str, ...] | None = None

    @property
    def titles(self) -> tuple[str, ...]:
        """The names of the classes, or their numbers if they have none."""
        return self.names or tuple(map(str, range(self.number)))

    @classmethod
    def of(cls, dataset: Dataset) -> Classes:
        """Return the classes of a dataset."""
        names = dataset.class_names()
        return cls(dataset.num_classes, None if names is None else tuple(names))


# Without `==`, since comparing tensors gives a tensor and no single truth value.
@attrs.frozen(eq=False)
class RegularizerContext:
    """The sizes that a regularizer is built for.

    Attributes:
        hidden_size: D of the backbone.
        num_layers: the backbone's number of blocks.
        codebook_VZ: (V, Z) float32, the embeddings that the tokenizer's decoder receives.
    """

    hidden_size: int
    num_layers: int
    codebook_VZ: Tensor


@attrs.frozen(eq=False)
class ImageSample:
    """One image of a dataset: a unique key, an image, a class in [0, C).

    The image is (height, width, 3) uint8 pixels, the path of an image file, or the bytes of one; a file goes into a
    shard as it is. Bytes that are no image make a bad sample, which is skipped and counted.

    The last part of a key must have no dot, since a dot ends the key in a WebDataset shard.
    """

    key: str
    image: np.ndarray | Path | bytes
    label: int


@runtime_checkable
class Dataset(Protocol):
    """A source of images with classes."""

    num_classes: int

    def class_names(self) -> Sequence[str] | None:
        """Return C names for people to read, or None if there are none."""
        ...

    def size(self, split: str) -> int | None:
        """Return the number of images in a split (``"train"`` or ``"held-out"``); None if only reading shows it."""
        ...

    def shards(self, split: str) -> Sequence[str] | None:
        """Return a split's existing WebDataset shards (paths or URLs); None to have them written from `images`.

        A dataset whose samples have unusual members also has ``fields``, a `rearkit.data.shard_members.Fields`.

        Args:
            split: ``"train"`` or ``"held-out"``.
        """
        ...

    def images(self, split: str) -> Iterator[ImageSample]:
        """Yield the images of a split in a fixed order."""
        ...


class Tokenizer(nn.Module):
    """Turns images into tokens and back. It is frozen while the backbone trains."""

    num_tokens: int
    codebook_size: int
    embedding_dim: int
    image_size: int

    def encode(self, images_B3RR: Tensor) -> Tensor:
        """Turn images (B, 3, R, R) float32 in [0, 1] into tokens (B, N) int64 in [0, V)."""
        raise NotImplementedError

    def decode(self, tokens_BN: Tensor) -> Tensor:
        """Turn tokens (B, N) int64 in [0, V) into images (B, 3, R, R) float32 in [0, 1]."""
        raise NotImplementedError

    def codebook(self) -> Tensor:
        """Return (V, Z) float32; row v is what the decoder receives for token v (normalised, if the tokenizer does)."""
        raise NotImplementedError


class FittableTokenizer(Tokenizer):
    """A tokenizer that the tokenizer stage can fit. For any other tokenizer, the recipe must name weights."""

    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, a scalar, and named parts of it for the log.

        It is called once per step in training mode, and also does whatever else the fit needs (moving averages,
        restarts of dead codes).

        Args:
            images_B3RR: (B, 3, R, R) float32 in [0, 1].
        """
        raise NotImplementedError


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
    prefix_length: int
    hidden_size: int
    num_layers: int

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Predict all tokens at once, teacher-forced.

        Args:
            tokens_BN: (B, N) int64 in [0, V), the context.
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


@runtime_checkable
class NoiseSchedule(Protocol):
    """Decides how much of the context is replaced by random codes as training proceeds."""

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Draw each sample's replacement probability from the arguments alone, so that a resumed run draws the same.

        Args:
            progress: share of the training steps taken, in [0, 1].
            batch: B.
            generator: the only source of randomness, on the CPU.

        Returns:
            (B,) float32 in [0, 1].
        """
        ...


class Regularizer(nn.Module):
    """A loss that ties hidden states to the tokenizer during training; sampling does not need it."""

    weight: float
    layers: Sequence[int]

    def forward(
        self, hidden: Mapping[int, Tensor], tokens_BN: Tensor, replaced_BN: Tensor, prefix_length: int
    ) -> Mapping[str, Tensor]:
        """Return named scalar terms; ``weight`` times their sum is added to the loss.

        They are finite even if all tokens are replaced. The codebook must get no gradient, and the arguments must not
        be changed, since others read them too.

        Args:
            hidden: the output (B, P + N, D) of each of `layers`, and possibly of other blocks.
            tokens_BN: (B, N) int64, the clean tokens.
            replaced_BN: (B, N) bool, True where the context was replaced.
            prefix_length: P (see `Backbone`).
        """
        raise NotImplementedError


MODULES: Mapping[str, type[nn.Module]] = {"tokenizer": Tokenizer, "backbone": Backbone, "regularizer": Regularizer}
"""The kinds of components that are modules, and the classes from which they inherit."""

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
        """Return the settings that a state dict in rearkit's layout needs, read from its shapes."""
        ...


def num_parameters(module: nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
