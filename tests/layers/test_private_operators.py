"""Torch's private operators are used where they give what the public ones give, and nothing depends on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from rearkit import make
from rearkit.components.backbones.dit_ar_blocks import DiTARSettings
from rearkit.components.builtins import rearkit_components
from rearkit.contracts import TokenSpace
from rearkit.errors import RearkitError
from rearkit.layers import lean
from rearkit.layers import private_operators as private
from rearkit.layers.packed_linear import PackedLinear, can_halve, can_pack
from rearkit.model import Model, build
from rearkit.recipe.tables import Recipe, SampleTable
from rearkit.sampling.sampler import Sampler, sample
from rearkit.testing import check_component

PACKAGE = Path(private.__file__).parents[1]
PROBES = (private.has_onednn, private.has_fbgemm, private.has_softmax_backward)
NEEDS_ONEDNN = pytest.mark.skipif(not private.has_onednn(), reason="this torch or this machine has no oneDNN")


@pytest.fixture
def fresh() -> Iterator[None]:
    """Let operators be tried anew in a test, and after it."""
    for probe in PROBES:
        probe.cache_clear()
    yield
    for probe in PROBES:
        probe.cache_clear()


@pytest.fixture
def switched_off(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without any of the private operators."""
    monkeypatch.setattr(private, "mkldnn", SimpleNamespace())
    monkeypatch.setattr(private, "quantized", SimpleNamespace())
    monkeypatch.delattr(torch, "_softmax_backward_data")


def model_of(recipe: Recipe) -> Model:
    """A model with random weights everywhere."""
    model, generator = build(recipe), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.backbone.eval()
    return model


def test_one_module_calls_private_operators() -> None:
    calling = {
        path.name
        for path in PACKAGE.rglob("*.py")
        if any(name in path.read_text(encoding="utf-8") for name in ("ops.mkldnn", "ops.quantized", "_backward_data"))
    }
    assert calling == {"private_operators.py"}


def test_switched_off_nothing_is_packed(switched_off: None) -> None:
    assert not can_pack(torch.empty(2, 2)) and not can_halve() and not private.has_softmax_backward()
    assert not PackedLinear(torch.nn.Linear(4, 3), 2).packed


def test_the_whole_decoding_gives_the_same_images_without_private_operators(
    tiny: Callable[..., Recipe], request: pytest.FixtureRequest
) -> None:
    table = SampleTable(num_images=20, batch=8, guidance_scale=2.0, top_k=5)
    classes = [number % 10 for number in range(20)]
    expected = sample(model_of(tiny()), classes, table)
    request.getfixturevalue("switched_off")
    found = sample(model_of(tiny()), classes, table)
    assert np.array_equal(found.tokens, expected.tokens)
    assert np.array_equal(found.images, expected.images)
    assert len(np.unique(found.tokens, axis=0)) > 15  # or equality shows little
    with pytest.raises(RearkitError, match="FBGEMM"):
        Sampler(model_of(tiny()), SampleTable(num_images=20, precision="fp16-weights"))
    half = SampleTable(num_images=4, batch=4, precision="bf16")
    assert len(sample(model_of(tiny()), classes[:4], half).tokens) == 4


def test_a_backbone_keeps_its_contract_without_private_operators(switched_off: None) -> None:
    (component,) = (one for one in rearkit_components() if one.name == "dit-ar")
    check_component(component, DiTARSettings(hidden_size=16, num_layers=2, num_heads=2, dropout=0.1))


def test_training_gives_the_same_gradients_without_private_operators(request: pytest.FixtureRequest) -> None:
    def gradients() -> list[Tensor]:
        torch.manual_seed(0)
        space = TokenSpace(num_tokens=16, codebook_size=12, num_classes=5)
        module = make("backbone", "dit-ar", space, hidden_size=16, num_layers=2, num_heads=2, dropout=0.2)
        for parameter in module.parameters():
            parameter.data.normal_(std=0.3)
        torch.manual_seed(1)
        logits, _ = module.train()(torch.arange(32).view(2, 16) % 12, torch.tensor([1, 4]))
        return list(torch.autograd.grad(logits.square().mean(), list(module.parameters()), allow_unused=True))

    expected = gradients()
    request.getfixturevalue("switched_off")
    for mine, other in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_the_gradient_of_a_softmax_is_autograds(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    out = x.softmax(-1)
    (expected,) = torch.autograd.grad(out, x, grad)
    torch.testing.assert_close(private.softmax_backward(grad, out.detach()), expected)
    private.has_softmax_backward.cache_clear()
    monkeypatch.delattr(torch, "_softmax_backward_data")
    torch.testing.assert_close(private.softmax_backward(grad, out.detach()), expected)


@NEEDS_ONEDNN
@pytest.mark.parametrize(
    "changed",
    [
        lambda x, weight: None,  # takes less than it did
        lambda x, weight, bias, *more: x @ weight.to_dense().t(),  # or gives something else
    ],
)
def test_an_operator_that_changed_is_not_used(
    changed: Callable[..., Tensor], fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("_reorder_linear_weight", "_reorder_convolution_weight", "_convolution_pointwise")
    kept = {name: getattr(torch.ops.mkldnn, name) for name in names}
    monkeypatch.setattr(private, "mkldnn", SimpleNamespace(_linear_pointwise=changed, **kept))
    assert not private.has_onednn()


@NEEDS_ONEDNN
@pytest.mark.parametrize(
    "mode", [lambda: torch.device("meta"), lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode]
)
def test_what_is_on_where_they_are_first_tried_does_not_matter(
    mode: Callable[[], torch.device | torch.autocast | torch.inference_mode], fresh: None
) -> None:
    before = torch.get_rng_state()
    with mode():
        assert private.has_onednn() and private.has_softmax_backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_lean_product_is_the_plain_one(switched_off: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "WIDE_VECTORS", True)
    x, weight = torch.randn(3, 5), torch.randn(4, 5)
    torch.testing.assert_close(lean.product(x, weight), x @ weight.t())
