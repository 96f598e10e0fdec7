"""Components as a plugin's author writes them, small, for tests that break them in one place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.contracts import (
    Backbone,
    FittableTokenizer,
    NoiseStep,
    Regularizer,
    RegularizerContext,
    TokenSpace,
    TrainingStep,
)
from rearkit.recipe.settings import settings
from rearkit.registry import plugins
from rearkit.registry.component import Component

PROVIDER = "theirs 1.0"


@contextmanager
def registered(*components: Component) -> Iterator[None]:
    """Within this context, components are registered as those of an installed plugin."""
    plugins.load_plugins.cache_clear()
    for component in components:
        plugins.registry().add(component, PROVIDER, component.settings.__module__)
    try:
        yield
    finally:
        plugins.load_plugins.cache_clear()


@settings
class Plain:
    """Nothing to set."""


class Sums(Backbone):
    """Two blocks of running sums after one position for the class."""

    def __init__(self, settings: Plain, space: TokenSpace) -> None:
        super().__init__()
        self.prefix_length, self.num_layers, self.hidden_size = 1, 2, 8
        self.tokens = nn.Embedding(space.codebook_size, 8)
        self.classes = nn.Embedding(space.num_classes + 1, 8)
        self.mixes = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, space.codebook_size)

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        x_BTD = torch.cat([self.classes(classes_B)[:, None], self.tokens(tokens_BN)], dim=1)
        hidden = {}
        for layer, mix in enumerate(self.mixes):
            x_BTD = torch.tanh(mix(x_BTD)).cumsum(1)
            if layer in layers:
                hidden[layer] = x_BTD
        return self.head(x_BTD), hidden

    def start(self, classes_B: Tensor) -> tuple[Tensor, list[Tensor]]:
        cache = [self.head.weight.new_zeros(len(classes_B), 8) for _ in self.mixes]
        return self.append(self.classes(classes_B), cache), cache

    def step(self, tokens_B: Tensor, cache: list[Tensor]) -> Tensor:
        return self.append(self.tokens(tokens_B), cache)

    def append(self, x_BD: Tensor, cache: list[Tensor]) -> Tensor:
        for layer, mix in enumerate(self.mixes):
            cache[layer] = cache[layer] + torch.tanh(mix(x_BD))
            x_BD = cache[layer]
        return self.head(x_BD)


class Tied(Sums):
    """Its head has the embedding's weight."""

    def __init__(self, settings: Plain, space: TokenSpace) -> None:
        super().__init__(settings, space)
        self.head.weight = self.tokens.weight


class Patches(FittableTokenizer):
    """The nearest of 12 colours in each of 16 patches of 2 x 2 pixels."""

    def __init__(self, settings: Plain) -> None:
        super().__init__()
        self.image_size, self.num_tokens, self.codebook_size, self.embedding_dim = 8, 16, 12, 3
        self.colours = nn.Parameter(torch.rand(12, 3))

    def encode(self, images_B3RR: Tensor) -> Tensor:
        patches_BN3 = F.avg_pool2d(images_B3RR, 2).flatten(2).transpose(1, 2)
        return torch.cdist(patches_BN3, self.colours[None]).argmin(-1)

    def decode(self, tokens_BN: Tensor) -> Tensor:
        patches_B3RR = self.colours[tokens_BN].transpose(1, 2).unflatten(2, (4, 4))
        return patches_B3RR.repeat_interleave(2, 2).repeat_interleave(2, 3).clamp(0, 1)

    def codebook(self) -> Tensor:
        return self.colours

    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = F.mse_loss(self.decode(self.encode(images_B3RR)), images_B3RR)
        return loss, {"mse": loss}


class Zeros:
    """A schedule that replaces everything by token 0."""

    def __init__(self, settings: Plain) -> None:
        pass

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return torch.ones(batch)

    def replacements(self, step: NoiseStep) -> Tensor:
        return torch.zeros_like(step.tokens_BN)


class Small(Regularizer):
    """The size of the first block's output, by a weight of its own."""

    def __init__(self, settings: Plain, context: RegularizerContext) -> None:
        super().__init__()
        self.layers = [0]
        self.head = nn.Linear(context.hidden_size, 1)

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        return {"size": self.head(step.hidden[0]).square().mean()}
