"""Embedding awareness: whether a model knows its codes as the tokenizer's decoder does, and at which depth.

Shapes: B samples, N tokens, P places before token 0's own, D hidden width, V codes, Z embedding width, m rows.
"""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.analysis.exposure import Batches
from rearkit.contracts import Backbone

RIDGE = 1e-8  # of the mean diagonal, so that widths that vary together have a solution


@attrs.frozen
class Awareness:
    """How near predicted codes are to the true ones: cosine similarity of their embeddings.

    Attributes:
        all: mean over all places.
        wrong: mean where the likeliest code is not the true one; None where it always is.
        chance: mean between the true code and one drawn from how often codes occur: a guess that knows nothing.
        error_rate: share of places where it is wrong.
    """

    all: float
    wrong: float | None
    chance: float
    error_rate: float


@attrs.frozen
class Recovery:
    """What a linear probe of a block's output recovers of an embedding, on images it was not fitted on.

    Attributes:
        r2: share of the embeddings' variance that it explains; below 0 where it is worse than their mean.
        cosine: mean cosine similarity to the embedding.
    """

    r2: float
    cosine: float


@attrs.frozen
class LayerProbe:
    """The probes of one block.

    Attributes:
        layer: the block, counted from 0.
        current: of the token just read, at its own place.
        next: of the token about to be written, at the place that predicts it.
    """

    layer: int
    current: Recovery
    next: Recovery


@torch.no_grad()
def awareness(backbone: Backbone, batches: Batches, codebook_VZ: Tensor) -> Awareness:
    """Compare the likeliest with the true code under clean contexts."""
    unit_VZ = F.normalize(codebook_VZ.double(), dim=-1)
    occurs_V = torch.zeros(len(unit_VZ), dtype=torch.float64, device=unit_VZ.device)
    cosines, wrongs = [], []
    for tokens_BN, classes_B in batches:
        logits, _ = backbone.forward(tokens_BN, classes_B)
        predicted_BN = logits[:, : tokens_BN.shape[1]].argmax(-1)
        cosines.append((unit_VZ[predicted_BN] * unit_VZ[tokens_BN]).sum(-1).flatten())
        wrongs.append((predicted_BN != tokens_BN).flatten())
        occurs_V += torch.bincount(tokens_BN.flatten(), minlength=len(unit_VZ))
    cosine, wrong = torch.cat(cosines), torch.cat(wrongs)
    share_V = occurs_V / occurs_V.sum()
    return Awareness(
        all=cosine.mean().item(),
        wrong=cosine[wrong].mean().item() if wrong.any() else None,
        chance=(share_V @ unit_VZ).pow(2).sum().item(),
        error_rate=wrong.double().mean().item(),
    )


@torch.no_grad()
def probe_layers(backbone: Backbone, train: Batches, held_out: Batches, codebook_VZ: Tensor) -> list[LayerProbe]:
    """Fit linear probes of each block's output by least squares on ``train``; score them on ``held_out``.

    The contexts are clean. A block where the next token's embedding is best recovered is where the model decides.
    """
    layers = range(backbone.num_layers)
    kinds = ("current", "next")
    probes = {(layer, kind): LinearProbe() for layer in layers for kind in kinds}
    for tokens_BN, classes_B in train:
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
    """The outputs (m, D) at the tokens' own places, or at those that predict them."""
    own = hidden_BTD[:, prefix_length:] if kind == "current" else hidden_BTD[:, prefix_length - 1 : -1]
    return own.flatten(0, 1)


class LinearProbe:
    """Least squares from inputs (m, D), with a constant, to targets (m, Z), from batches of rows."""

    def __init__(self) -> None:
        self._xx: Tensor | float = 0.0
        self._xy: Tensor | float = 0.0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Take rows into account."""
        x, y = _with_constant(inputs), targets.double()
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
        """The mean target, (Z,) float64."""
        assert isinstance(self._xx, Tensor) and isinstance(self._xy, Tensor)
        return self._xy[-1] / self._xx[-1, -1]


class _Score:
    """Scores coefficients on further rows."""

    def __init__(self, coefficients: Tensor, mean: Tensor) -> None:
        self.coefficients, self.mean = coefficients, mean
        self.residual = self.total = self.cosine = 0.0
        self.count = 0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        predicted, y = _with_constant(inputs) @ self.coefficients, targets.double()
        self.residual += (y - predicted).pow(2).sum().item()
        self.total += (y - self.mean).pow(2).sum().item()
        self.cosine += F.cosine_similarity(predicted, y, dim=-1).sum().item()
        self.count += len(y)

    def result(self) -> Recovery:
        return Recovery(1 - self.residual / self.total, self.cosine / self.count)


def _with_constant(inputs: Tensor) -> Tensor:
    return F.pad(inputs.double(), (0, 1), value=1.0)
