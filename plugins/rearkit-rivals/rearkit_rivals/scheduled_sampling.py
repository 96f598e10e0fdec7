"""Scheduled sampling: part of the context is what the model itself would have drawn.

Bengio et al. 2015, "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks" (arXiv 1506.03099): at
each step of a sequence, a coin with probability ε of heads decides between the true token and the model's own; ε falls
in training from 1 (section 2.4). Mihaylova & Martins 2019, "Scheduled Sampling for Transformers" (arXiv 1906.07651),
give transformers their form of it in two passes (section 4): a first pass over the true tokens gives predictions, from
which part of the second pass's context is drawn. Here the first pass is without gradient, and drawn tokens are plain
tokens; that paper also tries mixtures of embeddings, and gradients through them.

Shapes: B batch, N tokens, V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rearkit import setting, settings
from rearkit.contracts import NoiseStep


@settings
class ScheduledSampling:
    """Replace tokens by the model's own draws from a first pass over clean tokens (a third more computation)."""

    schedule: str = setting(
        "how ε, the probability of the true token, falls",
        default="linear",
        choices=("linear", "exponential", "inverse-sigmoid"),
    )
    end_rate: float = setting(
        "1 - ε at the end of training; of schedules linear and exponential", default=0.5, ge=0, lt=1
    )
    middle: float = setting(
        "share of training at which ε is 1/2; of schedule inverse-sigmoid", default=0.75, gt=0, le=1
    )
    steepness: float = setting("k of schedule inverse-sigmoid: how steeply ε falls", default=30.0, gt=1)
    temperature: float = setting("of the draws; 0: always the likeliest code", default=1.0, ge=0)

    reads = ("logits_BNV",)

    def kept(self, progress: float) -> float:
        """Return ε at a share t of training in [0, 1].

        Bengio et al., section 2.4, with i for the step: linear, max(ε_min, k - c·i); exponential, k^i; inverse sigmoid,
        k / (k + exp(i/k)). They are written here over the share of training, so that a recipe for another number of
        steps needs no other constants: 1 - (1 - ε_1)·t; ε_1^t; k / (k + k^(t/m)), which is i = t·k·ln(k)/m. ε_1 is
        ``1 - end_rate``, k ``steepness``, m ``middle``.
        """
        if self.schedule == "linear":
            return 1 - self.end_rate * progress
        if self.schedule == "exponential":
            return float((1 - self.end_rate) ** progress)
        # Divided by k, so that it cannot overflow: k^(t/m) / k = k^(t/m - 1) may be large, but 1/(1 + inf) is 0.
        try:
            return float(1 / (1 + self.steepness ** (progress / self.middle - 1)))
        except OverflowError:
            return 0.0

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Return 1 - ε for each sample, (batch,); the coins are thrown for each token by itself."""
        return torch.full((batch,), 1 - self.kept(progress))

    def replacements(self, step: NoiseStep) -> Tensor:
        """Return a draw from the model's prediction of each token, (B, N)."""
        assert step.logits_BNV is not None
        logits_BNV = step.logits_BNV.float()
        if self.temperature == 0:
            return logits_BNV.argmax(-1)
        # By the inverse of the distribution function: one uniform number a token decides, on any number of ranks.
        cumulative_BNV = (logits_BNV / self.temperature).softmax(-1).cumsum(-1)
        # Times the last sum, which is rounded and not quite 1.
        drawn_BN1 = step.draws_BN[..., None] * cumulative_BNV[..., -1:]
        codes_BN = torch.searchsorted(cumulative_BNV, drawn_BN1, right=True)[..., 0]
        return codes_BN.clamp(max=logits_BNV.shape[-1] - 1)
