"""What a training method may change: the noise in the context, and the regularizers in the loss.

Each is handed one object with named fields, so that a field that comes later breaks no plugin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor, nn

from rearkit.contracts.modules import Backbone, TokenSpace

OPTIONAL = ("logits_BNV", "images", "backbone")
"""The fields of a `TrainingStep` that a regularizer gets only if it names them in ``reads``."""

LOGGED_ONLY = "log/"
"""Prefix for the names of terms that are logged and not added to the loss."""

PREDICTIONS = "logits_BNV"
"""The field of a `NoiseStep` that a noise schedule gets only if it names it in ``reads``."""


# Without `==`, since comparing tensors gives a tensor and no single truth value.
@attrs.frozen(eq=False)
class RegularizerContext:
    """What a regularizer is built for.

    Attributes:
        hidden_size: D of the backbone.
        num_layers: the backbone's number of blocks.
        codebook_VZ: (V, Z) float32, the embeddings that the tokenizer's decoder receives.
        space: the sizes of what the backbone predicts.
        backbone: the backbone before training, for regularizers that copy it; not to be kept or changed. Both are None
            only where a program outside rearkit gives neither.
    """

    hidden_size: int
    num_layers: int
    codebook_VZ: Tensor
    space: TokenSpace | None = None
    backbone: Backbone | None = None


@attrs.frozen(eq=False)
class NoiseContext:
    """What a noise schedule is built for.

    Attributes:
        space: the sizes of what the backbone predicts; without extra tokens, which only the schedule can ask for.
        codebook_VZ: (V, Z) float32, the embeddings that the tokenizer's decoder receives.
    """

    space: TokenSpace
    codebook_VZ: Tensor


# Without slots, since DeepSpeed's ZeRO stage 3 looks for tensors in a module's arguments with vars().
@attrs.frozen(eq=False, kw_only=True, slots=False)
class TrainingStep:
    """A micro-batch in training, after the forward pass of the backbone.

    Attributes:
        tokens_BN: (B, N) int64, the clean tokens.
        replaced_BN: (B, N) bool, True where the context was replaced.
        prefix_length: P (see `rearkit.contracts.Backbone`).
        hidden: the output (B, P + N, D) of each of the regularizer's ``layers``, and possibly of other blocks.
        context_BN: (B, N) int64, what the backbone read; None if a program outside rearkit does not say.
        classes_B: (B,) int64 in [0, C], C where the label was dropped; None likewise.
        progress: share of the training steps taken, in [0, 1).
        logits_BNV: (B, N, V), the prediction of each token. Like the next two, it is None for a regularizer whose
            ``reads`` does not name it.
        images: (B, 3, R, R) float32 in [0, 1], what the tokens were made from. Runs have them only while they make
            tokens on the fly (``[tokens] on_the_fly = true``).
        backbone: the backbone, which may be called again.
    """

    tokens_BN: Tensor
    replaced_BN: Tensor
    prefix_length: int
    hidden: Mapping[int, Tensor]
    context_BN: Tensor | None = None
    classes_B: Tensor | None = None
    progress: float = 0.0
    logits_BNV: Tensor | None = None
    images: Tensor | None = None
    backbone: Backbone | None = None


class StepTaken(Protocol):
    """An optimizer step that was taken.

    Attributes:
        done: steps taken, this one included.
        progress: share of the training steps taken, in (0, 1].
        backbone: the trained backbone.
    """

    done: int
    progress: float
    backbone: Backbone

    def average(self, teacher: nn.Module, student: nn.Module, decay: float) -> None:
        """Move each parameter of a frozen copy towards its original: ``teacher = d·teacher + (1 - d)·student``.

        It is computed in float32 in any precision of training and at any ZeRO stage. All ranks must call it.

        Args:
            teacher: a submodule of the regularizer, a deep copy of ``student`` whose parameters need no gradient.
            student: a trained module, such as ``backbone``.
            decay: d, in [0, 1].
        """
        ...


class Regularizer(nn.Module):
    """A loss that ties hidden states to the tokenizer during training; sampling does not need it.

    Attributes:
        weight: factor of the sum of its terms in the total loss.
        layers: the blocks, counted from 0, whose outputs it reads.
        reads: which of the fields in `OPTIONAL` it reads; only what some regularizer names is computed and kept.

    It may have a method ``after_step(step: StepTaken) -> None``, which is called without gradient after each optimizer
    step that was taken, on all ranks.
    """

    weight: float = 1.0
    layers: Sequence[int] = ()
    reads: Sequence[str] = ()

    def forward(self, step: TrainingStep) -> Mapping[str, Tensor]:
        """Return named scalar terms; ``weight`` times their sum is added to the loss.

        Terms whose names begin with ``log/`` are logged and not added. All are finite even if all tokens are replaced.
        The codebook must get no gradient, and what is handed in must not be changed, since others read it too.
        """
        raise NotImplementedError


@attrs.frozen(eq=False)
class NoiseStep:
    """Tokens of which some are to be replaced.

    Attributes:
        tokens_BN: (B, N) int64, the clean tokens.
        replaced_BN: (B, N) bool, True where a token will be replaced; what is returned elsewhere has no effect.
        draws_BN: (B, N) float32 in [0, 1), uniform: the only source of randomness, so that the result depends on
            neither the number of ranks nor the size of micro-batches.
        progress: share of the training steps taken, in [0, 1).
        logits_BNV: (B, N, V), the model's prediction of each token from the clean ones before it, by a first pass
            without gradient; None for a schedule whose ``reads`` does not name it.
    """

    tokens_BN: Tensor
    replaced_BN: Tensor
    draws_BN: Tensor
    progress: float
    logits_BNV: Tensor | None = None


@runtime_checkable
class NoiseSchedule(Protocol):
    """Decides how much of the context is replaced as training proceeds, and by what.

    By what is up to an optional method ``replacements(step: NoiseStep) -> Tensor``, (B, N) int64 on the tokens' device;
    without it, by uniform random codes. With it, two attributes are optional:

    - ``reads = ("logits_BNV",)``: the replacements depend on the model's own prediction, at the price of a second
      forward pass;
    - ``extra_tokens``: how many token ids beyond the codebook, from V on, the replacements may have, such as a mask.
    """

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Draw the probability of replacement, from the arguments alone, so that a resumed run draws the same.

        Args:
            progress: share of the training steps taken, in [0, 1].
            batch: B.
            generator: the only source of randomness, on the CPU.

        Returns:
            float32 in [0, 1], (B,) for each sample, or (B, N) for each token.
        """
        ...
