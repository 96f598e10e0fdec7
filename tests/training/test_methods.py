"""What a method may do in a run, each by a small one: anneal, log, read images, do without layers, replace by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.context_noise import corrupt
from rearkit.contracts import NoiseStep, Regularizer, RegularizerContext, TrainingStep
from rearkit.data.token_shards import TokenData
from rearkit.data.training_data import TrainingSamples
from rearkit.errors import PluginError, RecipeError
from rearkit.model import Model, build
from rearkit.objective import Objective
from rearkit.recipe.settings import settings
from rearkit.recipe.tables import Recipe
from rearkit.registry import plugins
from rearkit.registry.component import Component
from rearkit.training.logs import read_log
from rearkit.training.loop import train
from rearkit.training.trainer import Trainer


def tokens() -> TokenData:
    generator = np.random.default_rng(0)
    return TokenData.from_arrays(generator.integers(12, size=(20, 16)), np.arange(20) % 10)


@pytest.fixture
def model(tiny: Callable[..., Recipe]) -> Model:
    return build(tiny(regularizers=None, noise={"name": "none"}, train={"log_every": 1, "warmup_steps": 1}))


def logged(model: Model, folder: Path, **changes: Any) -> list[dict[str, float]]:
    """Train a model with other components, and return what each step logs."""
    train(attrs.evolve(model, **changes), tokens(), folder=folder)
    return read_log(folder)


def mean_of(states: Mapping[int, Tensor], layer: int) -> Tensor:
    return states[layer].float().square().mean()


class Annealed(Regularizer):
    """Its terms fade out, and it logs the factor without adding it."""

    layers = (1,)

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        left = 1 - step.progress
        return {"small": left * mean_of(step.hidden, 1), "log/left": torch.tensor(left)}


def test_a_regularizer_is_annealed_by_progress_and_logs_what_is_not_added(model: Model, tmp_path: Path) -> None:
    lines = logged(model, tmp_path, objective=Objective({"annealed": Annealed()}))
    assert [line["regularizer/annealed/left"] for line in lines] == [1.0, 0.75, 0.5, 0.25]
    for line in lines:
        assert line["loss"] == pytest.approx(line["cross_entropy"] + line["regularizer/annealed/small"], abs=1e-5)


class Confidence(Regularizer):
    """Reads the prediction alone, without any layer."""

    reads = ("logits_BNV",)

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        assert step.logits_BNV is not None and step.images is None and step.backbone is None and not step.hidden
        return {"entropy": -(step.logits_BNV.softmax(-1) * step.logits_BNV.log_softmax(-1)).sum(-1).mean()}


def test_a_regularizer_does_without_layers(model: Model, tmp_path: Path) -> None:
    confidence = Confidence()
    confidence.weight = 0.5
    lines = logged(model, tmp_path, objective=Objective({"confidence": confidence}))
    assert lines[0]["regularizer/confidence/entropy"] == pytest.approx(math.log(12), abs=0.01)
    assert lines[0]["loss"] == pytest.approx(1.5 * math.log(12), abs=0.05)


class Silent(Regularizer):
    """Adds nothing at all."""

    layers = (0,)

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        return {"log/size": mean_of(step.hidden, 0)}


def test_a_regularizer_may_only_log(model: Model, tmp_path: Path) -> None:
    lines = logged(model, tmp_path, objective=Objective({"silent": Silent()}))
    assert all(line["loss"] == line["cross_entropy"] and line["regularizer/silent/size"] > 0 for line in lines)


class Old(Regularizer):
    """Written for rearkit 0.1: four arguments, and neither ``reads`` nor a step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = 2.0
        self.layers = [1]
        self.head = nn.Linear(16, 1)

    def forward(  # type: ignore[override]
        self, hidden: Mapping[int, Tensor], tokens_BN: Tensor, replaced_BN: Tensor, prefix_length: int
    ) -> dict[str, Tensor]:
        places_BND = hidden[1][:, prefix_length:]
        assert places_BND.shape[:2] == tokens_BN.shape == replaced_BN.shape
        return {"old": self.head(places_BND).square().mean()}


def test_a_regularizer_of_the_first_version_goes_on_working_in_a_run(model: Model, tmp_path: Path) -> None:
    old = Old()
    before = old.head.weight.detach().clone()
    lines = logged(model, tmp_path, objective=Objective({"old": old}))
    for line in lines:
        assert line["loss"] == pytest.approx(line["cross_entropy"] + 2 * line["regularizer/old/old"], abs=1e-5)
    assert not torch.equal(before, old.head.weight)


class Bright(Regularizer):
    """Ties a hidden state to how bright the image is."""

    layers = (1,)
    reads = ("images",)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 1)

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        assert step.images is not None
        assert step.images.dtype == torch.float32 and step.images.shape[1:] == (3, 8, 8)
        brightness_B1 = step.images.mean((1, 2, 3))[:, None]
        seen_B1 = self.head(step.hidden[1][:, -1])
        return {"bright": F.mse_loss(seen_B1, brightness_B1), "log/brightness": brightness_B1.mean()}


@attrs.frozen(eq=False)
class Grey:
    """Images whose grey is their number, as if tokens were made while training."""

    num_tokens: int = 16
    num_classes: int = 10
    window: int = 0
    workers: int = 0
    names: tuple[str, ...] = ("grey",)
    starts: tuple[int, ...] = (0, 20)

    def __len__(self) -> int:
        return 20

    def read(self, indices: Any, positions: Any, reading: Any = None) -> TrainingSamples:
        grey = torch.as_tensor(np.asarray(indices), dtype=torch.uint8)
        return TrainingSamples(grey[:, None, None, None].expand(-1, 3, 8, 8), grey.long() % 10, np.asarray(indices))

    def to_tokens(self, samples: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        return samples.classes_B[:, None].expand(-1, 16).contiguous(), samples.classes_B


@settings
class BrightSettings:
    """Nothing to set."""


def test_a_regularizer_that_reads_images_needs_tokens_made_while_training(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(settings: object, context: RegularizerContext) -> Bright:
        return Bright()

    component = Component("regularizer", "bright", BrightSettings, made)
    recipe = tiny()
    table = attrs.evolve(recipe.regularizers[0], name="bright", settings=BrightSettings())
    find = plugins.find
    monkeypatch.setattr(plugins, "find", lambda kind, name: component if name == "bright" else find(kind, name))
    with pytest.raises(RecipeError) as refused:
        build(attrs.evolve(recipe, regularizers=(table,)))
    assert str(refused.value) == (
        "tiny: [[regularizers]] bright: reads the images, which training has only while it makes the tokens; "
        "set [tokens] on_the_fly = true"
    )
    fly = attrs.evolve(recipe, regularizers=(table,), tokens=attrs.evolve(recipe.tokens, on_the_fly=True))
    assert build(fly).objective.reads == {"images"}


def test_images_reach_the_regularizer_that_reads_them(model: Model) -> None:
    changed = attrs.evolve(model, objective=Objective({"bright": Bright()}))
    data: Any = Grey()
    with Trainer(changed, data, None, None) as trainer:
        ready = trainer.next_samples()
        values = trainer.step(ready)
    expected = float(np.mean(ready.samples.indices)) / 255
    assert float(values["regularizer/bright/brightness"]) == pytest.approx(expected, abs=1e-6)


class Half:
    """Replaces the second half of each image by its neighbour to the left."""

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return (torch.arange(16) >= 8).float().expand(batch, -1)

    def replacements(self, step: NoiseStep) -> Tensor:
        return step.tokens_BN.roll(1, dims=1)


class Reading(Regularizer):
    """Logs what it is told of the context."""

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        assert step.context_BN is not None
        shifted_BN = step.tokens_BN.roll(1, dims=1)
        assert torch.equal(step.context_BN[:, :8], step.tokens_BN[:, :8])
        assert torch.equal(step.context_BN[:, 8:], shifted_BN[:, 8:])
        return {"log/replaced": step.replaced_BN.float().mean()}


def test_rates_may_differ_from_token_to_token(model: Model, tmp_path: Path) -> None:
    lines = logged(model, tmp_path, noise=Half(), objective=Objective({"reading": Reading()}))
    assert [line["regularizer/reading/replaced"] for line in lines] == [0.5] * 4
    assert [line["noise_level"] for line in lines] == [0.5] * 4


class Odd:
    """Returns what a test gives it."""

    def __init__(self, rates: Any, codes: Any = None) -> None:
        self.given, self.codes = rates, codes

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Any:
        return self.given

    def replacements(self, step: NoiseStep) -> Any:
        return self.codes


GOOD = torch.full((3,), 0.5)


@pytest.mark.parametrize(
    ("rates", "codes", "sentence"),
    [
        (
            torch.zeros(4),
            None,
            r"rates must be float32 of shape \(3,\) or \(3, 5\); found torch.float32 of shape \(4,\)",
        ),
        (torch.zeros(5, 3), None, r"found torch.float32 of shape \(5, 3\)"),
        (torch.zeros(3, dtype=torch.int64), None, r"found torch.int64 of shape \(3,\)"),
        (0.5, None, r"found 0.5"),
        (torch.full((3,), 1.5), None, r"rates must lie in \[0, 1\]; found 1.5 to 1.5"),
        (torch.full((3,), torch.nan), None, r"rates must lie in \[0, 1\]; found nan"),
        (GOOD, torch.zeros(3, 4, dtype=torch.int64), r"replacements must be int64 of shape \(3, 5\); found .*\(3, 4\)"),
        (GOOD, torch.zeros(3, 5), r"replacements must be int64 of shape \(3, 5\); found .*float32"),
        (GOOD, None, r"replacements must be int64 of shape \(3, 5\); found None"),
    ],
)
def test_wrong_shapes_are_refused_with_a_sentence(rates: Any, codes: Any, sentence: str) -> None:
    with pytest.raises(PluginError, match=f"noise Odd: .*{sentence}"):
        corrupt(torch.zeros(3, 5, dtype=torch.int64), Odd(rates, codes), 0.5, 7, torch.Generator())
