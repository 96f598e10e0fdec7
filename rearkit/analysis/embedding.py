"""Embedding awareness: whether a model's predictions and hidden states reflect the tokenizer's code embeddings.

Shapes: B samples, N tokens, P positions before token 0, D hidden width, V codes, Z embedding width, m rows.
"""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.analysis.exposure import Batches
from rearkit.context_noise import predictions
from rearkit.contracts import Backbone

# Relative to the mean diagonal of XᵀX: makes it invertible where hidden units are linearly dependent.
RIDGE = 1e-8


@attrs.frozen
class Awareness:
    """How close predicted codes are to the true ones: cosine similarity of their embeddings, in [-1, 1].

    Attributes:
        all: mean over all positions.
        wrong: mean over the positions where the likeliest code is not the true one; None if there are none.
        chance: expected value for a code drawn by frequency, without looking at the context.
    """

    all: float
    wrong: float | None
    chance: float


@attrs.frozen
class Recovery:
    """How well a linear probe of a block's output predicts code embeddings, on images it was not fitted on.

    Attributes:
        r2: share of the embeddings' variance that it explains; negative if it is worse than their mean.
        cosine: mean cosine similarity of predicted and true embedding.
    """

    r2: float
    cosine: float


@attrs.frozen
class LayerProbe:
    """The probes of one block.

    Attributes:
        layer: the block, counted from 0.
        current: for the token just read, from its own position.
        next: for the token predicted next, from the position that predicts it.
    """

    layer: int
    current: Recovery
    next: Recovery


@torch.no_grad()
def awareness(backbone: Backbone, batches: Batches, codebook_VZ: Tensor) -> Awareness:
    """Compare the likeliest code with the true one, with the images' own tokens as context."""
    unit_VZ = F.normalize(codebook_VZ.double(), dim=-1)
    occurs_V = torch.zeros(len(unit_VZ), dtype=torch.float64, device=unit_VZ.device)
    cosines, wrongs = [], []
    for tokens_BN, classes_B in batches:
        logits, _ = backbone.forward(tokens_BN, classes_B)
        predicted_BN = predictions(logits, tokens_BN).argmax(-1)
        cosines.append((unit_VZ[predicted_BN] * unit_VZ[tokens_BN]).sum(-1).flatten())
        wrongs.append((predicted_BN != tokens_BN).flatten())
        occurs_V += torch.bincount(tokens_BN.flatten(), minlength=len(unit_VZ))
    cosine = torch.cat(cosines)
    wrong = torch.cat(wrongs)
    share_V = occurs_V / occurs_V.sum()
    # The mean cosine of two codes drawn independently by frequency is the squared length of the mean unit embedding.
    return Awareness(
        all=cosine.mean().item(),
        wrong=cosine[wrong].mean().item() if wrong.any() else None,
        chance=(share_V @ unit_VZ).pow(2).sum().item(),
    )


@torch.no_grad()
def probe_layers(backbone: Backbone, train: Batches, held_out: Batches, codebook_VZ: Tensor) -> list[LayerProbe]:
    """Fit linear probes of each block's output by least squares on ``train``, and score them on ``held_out``.

    The context is the images' own tokens. In the block that best recovers the next token's embedding, the model has
    decided on that token.
    """
    layers = range(backbone.num_layers)
    kinds = ("current", "next")
    probes = {(layer, kind): LinearProbe() for layer in layers for kind in kinds}
    for tokens_BN, classes_B in train:
        # One forward pass serves the probes of all blocks; only their sums are kept, never all hidden states.
        _, hidden = backbone.forward(tokens_BN, classes_B, layers)
        target = codebook_VZ[tokens_BN].flatten(0, 1)
        for (layer, kind), probe in probes.items():
            probe.add(_places(hidden[layer], kind, backbone.prefix_length), target)
    scores = {key: _Score(probe.solve(), probe.mean) for key, probe in probes.items()}
    for tokens_BN, classes_B in held_out:
        _, hidden = backbone.forward(tokens_BN, classes_B, layers)
        target = codebook_VZ[tokens_BN].flatten(0, 1)
        for (layer, kind), score in scores.items():
            score.add(_places(hidden[layer], kind, backbone.prefix_length), target)
    return [LayerProbe(layer, *(scores[layer, kind].result() for kind in kinds)) for layer in layers]


def _places(hidden_BTD: Tensor, kind: str, prefix_length: int) -> Tensor:
    """Return the outputs (m, D) at the tokens' own positions, or at the positions that predict them."""
    # Each token is predicted at the position before its own.
    own = hidden_BTD[:, prefix_length:] if kind == "current" else hidden_BTD[:, prefix_length - 1 : -1]
    return own.flatten(0, 1)


class LinearProbe:
    """Least squares with a constant term from inputs (m, D) to targets (m, Z), fitted batch by batch."""

    def __init__(self) -> None:
        # XᵀX and XᵀY, all that least squares needs: memory does not grow with the number of rows.
        self._xx: Tensor | float = 0.0
        self._xy: Tensor | float = 0.0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add a batch of rows to the fit."""
        x = _with_constant(inputs)
        y = targets.double()
        self._xx = self._xx + x.T @ x
        self._xy = self._xy + x.T @ y

    def solve(self) -> Tensor:
        """Return the coefficients, (D + 1, Z) float64; the last row is the constant."""
        assert isinstance(self._xx, Tensor) and isinstance(self._xy, Tensor)
        ridge = RIDGE * self._xx.diagonal().mean()
        identity = torch.eye(len(self._xx), dtype=self._xx.dtype, device=self._xx.device)
        return torch.linalg.solve(self._xx + ridge * identity, self._xy)

    @property
    def mean(self) -> Tensor:
        """The mean of the targets added so far, (Z,) float64."""
        assert isinstance(self._xx, Tensor) and isinstance(self._xy, Tensor)
        # The last input is the constant 1, so its row of XᵀY is the sum of targets and its square their number.
        return self._xy[-1] / self._xx[-1, -1]


class _Score:
    """Scores a probe's coefficients on rows that it was not fitted on."""

    def __init__(self, coefficients: Tensor, mean: Tensor) -> None:
        self.coefficients = coefficients
        # Of the rows fitted on, so that the baseline of R² does not know the rows to score either.
        self.mean = mean
        self.residual = self.total = self.cosine = 0.0
        self.count = 0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        predicted = _with_constant(inputs) @ self.coefficients
        y = targets.double()
        self.residual += (y - predicted).pow(2).sum().item()
        self.total += (y - self.mean).pow(2).sum().item()
        self.cosine += F.cosine_similarity(predicted, y, dim=-1).sum().item()
        self.count += len(y)

    def result(self) -> Recovery:
        return Recovery(1 - self.residual / self.total, self.cosine / self.count)


def _with_constant(inputs: Tensor) -> Tensor:
    return F.pad(inputs.double(), (0, 1), value=1.0)
