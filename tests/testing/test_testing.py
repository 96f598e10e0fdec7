"""The contract checks, applied to everything that is built in, and those that all kinds share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from toy_plugin import Plain, Small, Sums

from rearkit import Component, setting, settings
from rearkit.components.backbones.dit_ar_blocks import DiTARSettings
from rearkit.components.builtins import rearkit_components
from rearkit.components.datasets.folder import FolderSettings
from rearkit.components.datasets.mnist import MNIST5K
from rearkit.components.datasets.shards import Shards
from rearkit.components.datasets.torchvision_sets import TorchvisionSettings
from rearkit.components.noise.schedules import FixedNoise, LinearNoise, NoNoise, RandomNoise
from rearkit.components.regularizers.codebook_embedding import CodebookEmbeddingSettings
from rearkit.components.tokenizers.maskgit_vqgan import MaskGITVQGANSettings
from rearkit.contracts import TokenSpace
from rearkit.testing import check_backbone, check_component, check_regularizer, check_settings

VQGAN = MaskGITVQGANSettings(
    image_size=8, hidden_channels=4, channel_mult=(1, 2), norm_groups=2, codebook_size=12, embedding_dim=6
)
DIT = DiTARSettings(hidden_size=16, num_layers=3, num_heads=2)
# Small settings of each built-in; a new one without any here fails the test.
SMALL: dict[str, list[Any]] = {
    "mnist-5k": [MNIST5K(train_per_class=20, held_out_per_class=5)],
    "maskgit-vqgan": [VQGAN, attrs.evolve(VQGAN, channel_mult=(1,), codebook_size=300, embedding_dim=300)],
    "dit-ar": [DIT, attrs.evolve(DIT, num_heads=1, num_layers=1, mlp_size=8)],
    "none": [NoNoise()],
    "fixed": [FixedNoise(), FixedNoise(rate=1)],
    "random": [RandomNoise(), RandomNoise(level=1)],
    "linear": [LinearNoise(), LinearNoise(start_level=0, end_level=1, span_start=0.5, span_end=1)],
    "codebook-embedding": [
        CodebookEmbeddingSettings(projection_dim=8),
        CodebookEmbeddingSettings(projection_dim=8, encode=False, decode_layer=0),
        CodebookEmbeddingSettings(projection_dim=8, decode=False, encode_layer=3),
    ],
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two splits, two classes, two images."""
    for split in ("train", "held-out"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = np.full((9, 12, 3), number, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


def test_every_built_in_keeps_its_contract(images: Path) -> None:
    small = {
        **SMALL,
        "folder": [FolderSettings(train=str(images / "train"), held_out=str(images / "held-out"))],
        "shards": [Shards(train="pipe:cat {000..003}.tar", num_classes=3)],
        "torchvision": [TorchvisionSettings(dataset="FakeData", options={"size": 20, "image_size": [3, 8, 8]})],
    }
    for component in rearkit_components():
        # Needs a package that rearkit does not need; see its own test.
        if component.name == "huggingface":
            continue
        assert small.get(component.name), f"no small settings of {component.name}"
        for chosen in small[component.name]:
            check_component(component, chosen)


def test_check_component_takes_the_defaults() -> None:
    check_component(Component("noise", "linear", LinearNoise, lambda schedule: schedule))


def test_check_component_refuses_the_settings_of_another() -> None:
    with pytest.raises(AssertionError, match="noise 'linear' is built from LinearNoise; found NoNoise"):
        check_component(Component("noise", "linear", LinearNoise, lambda schedule: schedule), NoNoise())


@pytest.mark.parametrize("space", [TokenSpace(1, 2, 1), TokenSpace(9, 5, 2), TokenSpace(3, 40, 12)])
def test_dit_ar_at_other_sizes(space: TokenSpace) -> None:
    from rearkit.components.backbones.dit_ar import DiTAR

    check_backbone(lambda given: DiTAR(DIT, given), space)


def test_settings_must_be_frozen() -> None:
    @attrs.define
    class Loose:
        """Settings."""

        level: float = setting("a level", default=0.5)

    with pytest.raises(AssertionError, match="settings must be frozen"):
        check_settings(Loose())


def test_settings_must_be_documented() -> None:
    @settings
    class Silent:
        """Settings."""

        level: float = setting("", default=0.5)

    @settings
    class Nameless:
        level: float = setting("a level", default=0.5)

    with pytest.raises(AssertionError, match="every setting must say what it means"):
        check_settings(Silent())
    with pytest.raises(AssertionError, match="must have a docstring"):
        check_settings(Nameless())
    with pytest.raises(AssertionError, match="not an attrs class"):
        check_settings(object())


def test_defaults_must_be_values_of_a_recipe() -> None:
    @settings
    class Wrong:
        """Settings."""

        level: float = setting("a level", default="three")

    @settings
    class Outside:
        """Settings."""

        count: int = setting("how many", default=0, ge=1)

    @settings
    class Needy:
        """Settings."""

        count: int = setting("how many")

    for cls, message in (
        (Wrong, "must be values that a recipe can give: Wrong: level: expected a number, got 'three'"),
        (Outside, "that a recipe can give: Outside: count: expected ≥ 1, got 0"),
        (Needy, "noise 'odd' has no default of count: give settings as the second argument"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_component(Component("noise", "odd", cls, LinearNoise))
    with pytest.raises(AssertionError, match="level: expected a number, got 'three'"):
        check_settings(Wrong())


def test_checks_leave_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    for component in rearkit_components():
        if component.kind in ("backbone", "noise", "regularizer", "tokenizer"):
            check_component(component, SMALL[component.name][0])
    assert torch.equal(torch.rand(4), expected)


def test_checks_need_no_test_framework() -> None:
    program = "import sys, rearkit.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("shape", [(), (0, 2)])
def test_parameters_that_deepspeed_cannot_train_are_refused(shape: tuple[int, ...]) -> None:
    def odd(module: torch.nn.Module) -> Any:
        module.register_parameter("odd", torch.nn.Parameter(torch.ones(shape)))
        return module

    with pytest.raises(AssertionError, match="a backbone that can be trained: parameter odd must"):
        check_backbone(lambda space: odd(Sums(Plain(), space)))
    with pytest.raises(AssertionError, match="a regularizer that can be trained: parameter odd must"):
        check_regularizer(lambda context: odd(Small(Plain(), context)))
