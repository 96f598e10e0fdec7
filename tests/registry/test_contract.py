"""A plugin's component that breaks its contract is named, where it is built or where rearkit stumbles over it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_plugin import Patches, Plain, Small, Sums, Zeros, registered

from rearkit.context_noise import corrupt
from rearkit.contracts import Backbone, FittableTokenizer
from rearkit.data.image_sets import ImageSet
from rearkit.data.token_shards import TokenData
from rearkit.errors import EXIT_PLUGIN, ContractError, DivergedError, RecipeError
from rearkit.fitting.fit import TokenizerFit
from rearkit.model import Model, build
from rearkit.recipe.fit_table import FitTable
from rearkit.recipe.loading import load_recipe
from rearkit.registry.component import Component
from rearkit.registry.contract import blaming
from rearkit.sampling.sampler import sample
from rearkit.tokenization.tokenize import tokenize
from rearkit.training.batches import BatchSource
from rearkit.training.order import order_of
from rearkit.training.train_module import TrainModule


def setting(**values: Any) -> Callable[..., None]:
    """An `__init__` that sets attributes of its own."""

    def start(self: Any, *given: Any) -> None:
        super(type(self), self).__init__(*given)
        for name, value in values.items():
            setattr(self, name, value)

    return start


def like(base: type, **members: Any) -> type:
    return type("Own", (base,), members)


def step(model: Model) -> None:
    """Take a training step without an optimizer."""
    data = TokenData.from_arrays(np.random.default_rng(0).integers(12, size=(20, 16)), np.arange(20) % 10)
    order = order_of(data, 0)
    source = BatchSource(data, order, model.noise, 12, 10, label_dropout=0.1, steps=4, global_batch=8, seed=0)
    loss, _ = TrainModule(model)(source.batch(2))
    loss.backward()


def fit(model: Model) -> None:
    tokenizer = model.tokenizer
    assert isinstance(tokenizer, FittableTokenizer)
    TokenizerFit(tokenizer, FitTable(steps=1, warmup_steps=0, batch=2), 0)._step(torch.rand(2, 3, 8, 8))


def to_tokens(model: Model) -> None:
    tokenize(model.tokenizer, ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)))


@pytest.fixture
def make(tiny_recipe: Callable[..., dict[str, Any]]) -> Callable[[str, Any], Model]:
    """Build a model of a plugin's tokenizer, backbone and regularizer, or another component instead of one."""

    def build_with(kind: str, component: Any) -> Model:
        parts = {"tokenizer": Patches, "backbone": Sums, "noise": Zeros, "regularizer": Small, kind: component}
        with registered(*(Component(each, f"own-{each}", Plain, made) for each, made in parts.items())):
            tables: dict[str, Any] = {each: {"name": f"own-{each}"} for each in ("tokenizer", "backbone", "noise")}
            content = {**tiny_recipe(), **tables, "regularizers": [{"name": "own-regularizer"}]}
            return build(load_recipe(content))

    return build_with


BUILT = [
    ("tokenizer", like(Patches, encode=None), "has no method encode of its own"),
    ("tokenizer", like(Patches, codebook=FittableTokenizer.codebook), "has no method codebook of its own"),
    ("tokenizer", like(Patches, fit_loss=FittableTokenizer.fit_loss), "has neither fit_pass nor fit_loss"),
    ("tokenizer", like(Patches, __init__=setting(num_tokens=16.0)), "num_tokens must be a whole number from 1; found"),
    ("tokenizer", like(Patches, __init__=setting(image_size="8")), "image_size must be a number of pixels, or height"),
    ("backbone", like(Sums, start=Backbone.start), "has no method start of its own"),
    ("backbone", like(Sums, __init__=setting(prefix_length=0)), "prefix_length must be a whole number from 1; found 0"),
    ("backbone", like(Sums, __init__=setting(extra_tokens="one")), "extra_tokens must be a whole number from 0"),
    ("backbone", lambda settings: None, r"build gets \(settings, TokenSpace\), and takes \(settings\): too many"),
    (
        "backbone",
        like(Sums, __init__=setting(scale=nn.Parameter(torch.tensor(1.0)))),
        "parameter scale must have",
    ),
    ("backbone", like(Sums, __init__=setting(rest=nn.Parameter(torch.ones(0, 2)))), "parameter rest must not be empty"),
    ("backbone", like(Sums, __init__=setting(late=nn.LazyLinear(2))), "parameter late.weight gets its shape in a firs"),
    ("noise", like(Zeros, rates=None), "has no method rates of its own"),
    ("noise", like(Zeros, reads=("logits",)), r"reads must be a tuple of fields among logits_BNV; found \('logits',\)"),
    ("noise", like(Zeros, extra_tokens="one"), "extra_tokens must be a whole number from 0; found 'one'"),
    ("regularizer", like(Small, forward=Small.__mro__[1].forward), "has no method forward of its own"),
    (
        "regularizer",
        like(Small, reads="logits_BNV"),
        "reads must be a tuple of fields among logits_BNV",
    ),
    ("regularizer", like(Small, __init__=setting(layers=["last"])), "layers must list the blocks that it reads"),
    ("regularizer", like(Small, weight="big"), "weight must be a finite number; found 'big'"),
    ("regularizer", like(Small, __init__=setting(scale=nn.Parameter(torch.tensor(1.0)))), "parameter scale must have"),
]


@pytest.mark.parametrize(("kind", "component", "message"), BUILT)
def test_what_is_seen_at_once_is_refused_when_it_is_built(
    kind: str, component: Any, message: str, make: Callable[[str, Any], Model]
) -> None:
    with pytest.raises(ContractError, match=f"{kind} 'own-{kind}' of theirs 1.0: {message}") as caught:
        make(kind, component)
    assert caught.value.exit_code == EXIT_PLUGIN


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_block_that_the_backbone_has_not_is_refused_when_it_is_built(
    layer: int, make: Callable[[str, Any], Model]
) -> None:
    with pytest.raises(RecipeError, match=rf"own-regularizer: reads block {layer}; the backbone has blocks 0 to 1"):
        make("regularizer", like(Small, __init__=setting(layers=[layer])))


def forward(change: Callable[[Tensor, dict[int, Tensor]], Any]) -> type:
    return like(Sums, forward=lambda self, *given: change(*Sums.forward(self, *given)))


def fitted(change: Callable[[Tensor, dict[str, Tensor]], Any]) -> type:
    return like(Patches, fit_loss=lambda self, images: change(*Patches.fit_loss(self, images)))


CALLED = [
    (step, "backbone", like(Sums, forward=lambda self, tokens, classes: None), "TypeError: .*takes 3 positional"),
    (step, "backbone", forward(lambda logits, hidden: logits), "ValueError: too many values to unpack"),
    (step, "backbone", forward(lambda logits, hidden: (logits, None)), "TypeError: argument of type 'NoneType'"),
    (step, "backbone", forward(lambda logits, hidden: (logits, {})), "ValueError: hidden has no output of block 0"),
    (step, "backbone", forward(lambda logits, hidden: (logits[:, 2:], hidden)), "ValueError: logits of shape"),
    (step, "backbone", like(Sums, __init__=setting(prefix_length=2)), "ValueError: the hidden states of block 0"),
    (step, "regularizer", like(Small, forward=lambda self, hidden, tokens: {}), "TypeError: .*takes 3 positional"),
    (step, "noise", like(Zeros, rates=lambda self, progress: None), "TypeError: .*takes 2 positional arguments but 4"),
    (fit, "tokenizer", fitted(lambda loss, parts: loss), "TypeError: iteration over a 0-d tensor"),
    (
        fit,
        "tokenizer",
        fitted(lambda loss, parts: (loss.detach(), parts)),
        "ValueError: the loss of a fit's pass",
    ),
    (
        fit,
        "tokenizer",
        fitted(lambda loss, parts: (loss, {"mse": 0.5})),
        "TypeError: mse of a fit's",
    ),
    (
        fit,
        "tokenizer",
        fitted(lambda loss, parts: (loss.expand(2), parts)),
        "TypeError: loss of a fit's",
    ),
    (fit, "tokenizer", like(Patches, fit_pass=lambda self, images: (1, {})), "AttributeError: 'tuple' object has no"),
    (to_tokens, "tokenizer", like(Patches, encode=lambda self, images: [[0] * 16]), "AttributeError: 'list' object"),
    (
        to_tokens,
        "tokenizer",
        like(Patches, encode=lambda self, x: torch.zeros(len(x), 4, 4)),
        "ValueError: encode",
    ),
]


@pytest.mark.parametrize(("call", "kind", "component", "message"), CALLED)
def test_what_rearkit_stumbles_over_is_told_by_name(
    call: Callable[[Model], None], kind: str, component: Any, message: str, make: Callable[[str, Any], Model]
) -> None:
    model = make(kind, component)
    with _loaded(kind, component), pytest.raises(ContractError) as caught:
        call(model)
    assert re.match(f"{kind} 'own-{kind}' of theirs 1.0 failed with {message}", str(caught.value)), caught.value
    assert caught.value.__cause__ is not None and caught.value.exit_code == EXIT_PLUGIN


def _loaded(kind: str, component: Any) -> Any:
    return registered(Component(kind, f"own-{kind}", Plain, component))


@pytest.mark.parametrize(
    "members",
    [{"start": lambda self, classes: torch.zeros(len(classes), 12)}, {"step": lambda self, tokens, cache: None}],
)
def test_a_backbone_that_decodes_wrongly_is_told_by_name(
    members: dict[str, Any], make: Callable[[str, Any], Model]
) -> None:
    component = like(Sums, **members)
    model = make("backbone", component)
    with _loaded("backbone", component), pytest.raises(ContractError, match=r"own-backbone' of theirs 1\.0 failed"):
        sample(model, [0, 1, 2])


@pytest.mark.parametrize("token", [-1, 12])
def test_replacements_that_no_backbone_knows_are_the_schedules(token: int, make: Callable[[str, Any], Model]) -> None:
    own = like(Zeros, replacements=lambda self, step: torch.full_like(step.tokens_BN, token))
    model = make("noise", own)
    message = rf"replacements must lie in \[0, 11\]; found {token}"
    with _loaded("noise", own), pytest.raises(ContractError, match=f"^noise 'own-noise' of theirs 1.0: {message}"):
        step(model)
    with pytest.raises(ContractError, match=f"^noise Own: {message}"):
        corrupt(torch.zeros(2, 4, dtype=torch.int64), model.noise, 0.5, 12, torch.Generator())


class Full(RuntimeError):
    """As torch's error for a GPU whose memory is full."""


@pytest.mark.parametrize("error", [DivergedError("x"), Full("full"), OSError(2, "x"), InterruptedError()])
def test_errors_of_the_machine_and_told_ones_stay_as_they_are(error: Exception) -> None:
    with _loaded("backbone", Sums), pytest.raises(type(error)) as caught, blaming(Sums.__new__(Sums)):
        raise error
    assert caught.value is error


def test_components_of_ours_are_not_blamed() -> None:
    from rearkit.components.noise.schedules import FixedNoise

    with _loaded("backbone", Sums):
        for built in (None, FixedNoise(), nn.Linear(1, 1)):
            with pytest.raises(TypeError), blaming(built):
                raise TypeError("a bug of rearkit")
