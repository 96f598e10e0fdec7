"""The reAR training objective, usable with any autoregressive module that exposes its hidden states.

``loss = cross-entropy(next clean token | noisy context) + Σ weight · regularizer(hidden states, clean tokens)``

(paper, section "Method"). Its parts work with other training loops and transformers too: call `corrupt` before the
forward pass, `capture` around it, `Objective` after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.contracts import NoiseSchedule, Regularizer
from rearkit.recipe.settings import settings


@settings
class NoNoise:
    """No replacement: the context is the image's own tokens, as in a plain AR model."""

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Return zeros, (batch,)."""
        return torch.zeros(batch)


@attrs.frozen(eq=False)
class NoisyContext:
    """A context in which some tokens are replaced.

    Attributes:
        tokens_BN: (B, N) int64, the model's input.
        replaced_BN: (B, N) bool, true where a random code was drawn, even if it equals the original.
        rates_B: (B,) float32, the replacement probability of each sample.
    """

    tokens_BN: Tensor
    replaced_BN: Tensor
    rates_B: Tensor


def corrupt(
    tokens_BN: Tensor, noise: NoiseSchedule, progress: float, codebook_size: int, generator: torch.Generator
) -> NoisyContext:
    """Replace each token by a uniform random code, with the probability drawn for its sample. Targets must stay clean.

    Args:
        tokens_BN: (B, N) int64 in [0, codebook_size), on any device.
        noise: the schedule that draws the probabilities.
        progress: share of the training steps taken, in [0, 1].
        codebook_size: V.
        generator: source of randomness, on the CPU, so that a batch gets the same noise on every device.
    """
    B, N = tokens_BN.shape
    rates_B = noise.rates(progress, B, generator)
    replaced_BN = torch.rand(B, N, generator=generator) < rates_B[:, None]
    # Drawn for all positions, so that the generator advances alike whatever the rates are.
    random_BN = torch.randint(codebook_size, (B, N), generator=generator)
    replaced_BN = replaced_BN.to(tokens_BN.device)
    noisy_BN = torch.where(replaced_BN, random_BN.to(tokens_BN.device), tokens_BN)
    return NoisyContext(noisy_BN, replaced_BN, rates_B)


# Without slots, since DeepSpeed's ZeRO stage 3 looks for tensors in a module's output with vars().
@attrs.frozen(eq=False, slots=False)
class Loss:
    """A training loss and its parts.

    Attributes:
        total: scalar, to call ``backward`` on.
        parts: detached scalars for the log: ``cross_entropy``, ``accuracy`` and each ``regularizer/NAME/TERM``.
    """

    total: Tensor
    parts: dict[str, Tensor]


class Objective(nn.Module):
    """Cross-entropy plus regularizers. It owns the regularizers' heads: pass its parameters to the optimizer too.

    Args:
        regularizers: by the name under which each is logged; an empty mapping gives the plain AR loss.
    """

    def __init__(self, regularizers: Mapping[str, Regularizer]) -> None:
        super().__init__()
        for name, regularizer in regularizers.items():
            if not isinstance(regularizer, nn.Module):
                raise TypeError(f"regularizer {name!r} is not an nn.Module")
        self.regularizers = nn.ModuleDict(dict(regularizers))

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks whose outputs the regularizers read, sorted."""
        wanted: set[int] = set()
        for regularizer in self.regularizers.values():
            wanted.update(regularizer.layers)  # type: ignore[arg-type]
        return tuple(sorted(wanted))

    def forward(
        self, logits: Tensor, hidden: Mapping[int, Tensor], tokens_BN: Tensor, replaced_BN: Tensor, prefix_length: int
    ) -> Loss:
        """Compute the loss.

        Args:
            logits: (B, N or N+1, V); position i predicts token i, and a last position without a target is ignored.
            hidden: outputs of the blocks `layers`, (B, P + N, D) each.
            tokens_BN: (B, N) int64, the clean tokens.
            replaced_BN: (B, N) bool, from `corrupt`.
            prefix_length: P, number of positions before token 0's own position.
        """
        logits_BNV = logits[:, : tokens_BN.shape[1]]
        # In float32 even in bf16 training: a softmax over V codes loses too much in 8 bits of mantissa.
        total = cross_entropy = F.cross_entropy(logits_BNV.flatten(0, 1).float(), tokens_BN.flatten())
        accuracy = (logits_BNV.detach().argmax(-1) == tokens_BN).float().mean()
        parts = {"cross_entropy": cross_entropy.detach(), "accuracy": accuracy}
        for name, regularizer in self.regularizers.items():
            terms = regularizer(hidden, tokens_BN, replaced_BN, prefix_length)
            total = total + float(regularizer.weight) * sum(terms.values())  # type: ignore[arg-type]
            parts |= {f"regularizer/{name}/{term}": value.detach() for term, value in terms.items()}
        return Loss(total, parts)


@contextlib.contextmanager
def capture(blocks: Mapping[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs of modules during a forward pass, for a model that does not return its hidden states.

    ``with capture({0: model.layers[0], 9: model.layers[9]}) as hidden: logits = model(tokens)`` stores each module's
    output under its number (the first item of the output if it is a tuple).
    """
    hidden: dict[int, Tensor] = {}

    # A function of its own, since a closure made in a loop would see the last index only.
    def keep(index: int) -> object:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            hidden[index] = output[0] if isinstance(output, tuple) else output  # type: ignore[assignment]

        return hook

    handles = [block.register_forward_hook(keep(index)) for index, block in blocks.items()]  # type: ignore[arg-type]
    try:
        yield hidden
    finally:
        # Also after an error, or the model would keep its hooks, and with them the outputs.
        for handle in handles:
            handle.remove()
