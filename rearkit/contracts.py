"""What a component must do; the stages rely on nothing else.

Tokenizers, backbones and regularizers are modules: they inherit from the classes here, which are `nn.Module`. Datasets
and noise schedules are plain objects that have the methods named here.

Shape letters, here and throughout: B batch, N image tokens, T places of the transformer's sequence, D hidden width,
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

Modules have four things in common. In eval mode their output is a function of the input, row by
row. Their state dict holds all that it depends on, as tensors, so that a second instance can take it over. Each
parameter that is trained takes part in the loss. And where they make a tensor on the way, it has their parameters'
device and dtype, since bf16 training casts parameters and buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import attrs
import numpy as np
import torch
from torch import Tensor, nn

SPLITS = ("train", "held-out")


@attrs.frozen
class TokenSpace:
    """What a backbone has to predict.

    Attributes:
        num_tokens: N, tokens of an image.
        codebook_size: V, values of a token.
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
        names: C names for people to read; None where the dataset has none.
    """

    number: int
    names: tuple[str, ...] | None = None

    @property
    def titles(self) -> tuple[str, ...]:
        """Names of the classes; their numbers where they have none."""
        return self.names or tuple(map(str, range(self.number)))

    @classmethod
    def of(cls, dataset: Dataset) -> Classes:
        """Ask a dataset for its classes."""
        names = dataset.class_names()
        return cls(dataset.num_classes, None if names is None else tuple(names))


@attrs.frozen(eq=False)
class RegularizerContext:
    """What a regularizer can size itself by.

    Attributes:
        hidden_size: D of the backbone.
        num_layers: its number of blocks.
        codebook_VZ: (V, Z) float32, the embeddings that the tokenizer's decoder is fed with.
    """

    hidden_size: int
    num_layers: int
    codebook_VZ: Tensor


@attrs.frozen(eq=False)
class ImageSample:
    """One image of a dataset: a unique key, (height, width, 3) uint8 pixels or an image file, a class in [0, C).

    A key has no dot in its last part, since a dot ends it in a WebDataset shard.
    """

    key: str
    image: np.ndarray | Path
    label: int


@runtime_checkable
class Dataset(Protocol):
    """Where images come from."""

    num_classes: int

    def class_names(self) -> Sequence[str] | None:
        """Return C names for people to read, or None where there are none."""
        ...

    def size(self, split: str) -> int | None:
        """Return how many images a split (``"train"`` or ``"held-out"``) has; None where only reading would tell."""
        ...

    def shards(self, split: str) -> Sequence[str] | None:
        """Return the WebDataset shards (paths or URLs) of a split that exist already; None: write them from `images`.

        A dataset whose samples have unusual members also has ``fields``, a `rearkit.data.shard_members.Fields`.

        Args:
            split: ``"train"`` or ``"held-out"``.
        """
        ...

    def images(self, split: str) -> Iterator[ImageSample]:
        """Yield the images of a split in a fixed order."""
        ...


class Tokenizer(nn.Module):
    """Turns images into tokens and back. Frozen while the backbone trains."""

    num_tokens: int
    codebook_size: int
    embedding_dim: int
    image_size: int

    def encode(self, images_B3RR: Tensor) -> Tensor:
        """(B, 3, R, R) float32 in [0, 1] to (B, N) int64 in [0, V)."""
        raise NotImplementedError

    def decode(self, tokens_BN: Tensor) -> Tensor:
        """(B, N) int64 in [0, V) to (B, 3, R, R) float32 in [0, 1]."""
        raise NotImplementedError

    def codebook(self) -> Tensor:
        """(V, Z) float32: row v is what the decoder is fed for token v (normalised, where the tokenizer does)."""
        raise NotImplementedError


class FittableTokenizer(Tokenizer):
    """A tokenizer that the tokenizer stage can fit; without this, its weights must be given."""

    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, a scalar, and named parts of it for the log.

        Called once a step in training mode; the tokenizer does here whatever else its fit needs (moving averages,
        restarts of dead codes).

        Args:
            images_B3RR: (B, 3, R, R) float32 in [0, 1].
        """
        raise NotImplementedError


class Backbone(nn.Module):
    """Predicts each token from those before it and the class.

    The sequence that its blocks see has `prefix_length` places P before token 0's own place (class token, condition,
    …), so token i stands at place P + i, and the place that predicts it is the one before, P + i - 1.

    `start` and `step` copy nothing from the host and look at no tensor's content (CUDA graphs record them). So a table
    that they read is a parameter or a buffer.

    It may set ``blocks``: its `num_layers` blocks in order, modules that `forward` calls as modules, once each. With
    them, activation checkpointing can be switched on, and compilation takes one block's time.
    """

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
            layers: blocks, counted from 0, whose outputs are wanted.

        Returns:
            logits (B, N+1, V), where place i predicts token i and the last has no target; and for each of ``layers``
            its output, (B, T, D) with T = P + N.
        """
        raise NotImplementedError

    def start(self, classes_B: Tensor) -> tuple[Tensor, Any]:
        """Begin cached decoding, by the weights as they are now: return the logits of token 0, (B, V), and a cache."""
        raise NotImplementedError

    def step(self, tokens_B: Tensor, cache: Any) -> Tensor:
        """Append one token, (B,) int64, to each row of the cache, in place; return the next token's logits, (B, V)."""
        raise NotImplementedError


@runtime_checkable
class NoiseSchedule(Protocol):
    """How much of the context is replaced by random codes, over a run."""

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Draw the replacement probability of each sample, by the arguments alone: a resumed run draws the same.

        Args:
            progress: share of the training steps taken, in [0, 1].
            batch: B.
            generator: the only source of randomness to use (on the CPU).

        Returns:
            (B,) float32 in [0, 1].
        """
        ...


class Regularizer(nn.Module):
    """Ties hidden states to the tokenizer while training; it is not needed to sample."""

    weight: float
    layers: Sequence[int]

    def forward(
        self, hidden: Mapping[int, Tensor], tokens_BN: Tensor, replaced_BN: Tensor, prefix_length: int
    ) -> Mapping[str, Tensor]:
        """Return named scalar terms, finite even where everything is replaced; ``weight`` times their sum is added.

        The codebook gets no gradient, and the arguments, which others read too, are not changed.

        Args:
            hidden: for each of `layers`, and maybe further blocks, the block's output (B, P + N, D).
            tokens_BN: (B, N) int64, the clean tokens.
            replaced_BN: (B, N) bool, where the context was replaced.
            prefix_length: P (see `Backbone`).
        """
        raise NotImplementedError


MODULES: Mapping[str, type[nn.Module]] = {"tokenizer": Tokenizer, "backbone": Backbone, "regularizer": Regularizer}
"""The kinds of components that are modules, and what they inherit from."""

EXTRA = "extra."
"""Begins the names of tensors in a weights file that the module does not have (spare rows, training-only heads)."""


class PublishedLayout(Protocol):
    """How a component's weights were published by others; a `rearkit.registry.component.Component` may have one."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Tell whether a state dict is in the published layout."""
        ...

    def to_rearkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate; what the module has no place for goes under names that begin with `EXTRA`."""
        ...

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate back, so that a round trip is the identity."""
        ...

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read off a state dict in rearkit's layout which settings it needs."""
        ...


def num_parameters(module: nn.Module) -> int:
    """Count a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
