from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.contracts import TrainingStep
from rearkit.errors import PluginError
from rearkit.objective import Objective, capture


class Constant(nn.Module):
    """A regularizer with known terms; it notes what it was given."""

    def __init__(self, weight: float, layers: list[int], **terms: float) -> None:
        super().__init__()
        self.weight, self.layers = weight, layers
        self.terms = {name: nn.Parameter(torch.tensor(value)) for name, value in terms.items()}

    def forward(self, step: TrainingStep) -> Mapping[str, Tensor]:
        self.given = step
        return self.terms


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("last_place", [0, 1], ids=["N logits", "N + 1 logits"])
def test_without_regularizers_the_loss_is_the_cross_entropy_of_clean_tokens(last_place: int) -> None:
    logits = torch.randn(3, 5 + last_place, 7)
    tokens = torch.randint(7, (3, 5))
    loss = Objective({})(logits, {}, tokens, torch.ones(3, 5, dtype=torch.bool), 2)
    expected = -logits.log_softmax(-1)[:, :5].gather(-1, tokens[..., None]).mean()
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.parts["cross_entropy"], expected)
    assert loss.parts["accuracy"] == (logits[:, :5].argmax(-1) == tokens).float().mean()
    assert set(loss.parts) == {"cross_entropy", "accuracy"}


def test_the_total_adds_each_regularizer_with_its_weight() -> None:
    objective = Objective({"a": Constant(2.0, [], x=3.0, y=5.0), "b": Constant(0.5, [], z=7.0)})
    logits, tokens = torch.randn(1, 2, 3), torch.tensor([[0, 2]])
    loss = objective(logits, {}, tokens, torch.zeros(1, 2, dtype=torch.bool), 1)
    cross_entropy = F.cross_entropy(logits[0], tokens[0])
    torch.testing.assert_close(loss.total, cross_entropy + 2 * (3 + 5) + 0.5 * 7)
    assert {name: value.item() for name, value in loss.parts.items() if name.startswith("regularizer")} == {
        "regularizer/a/x": 3.0,
        "regularizer/a/y": 5.0,
        "regularizer/b/z": 7.0,
    }
    assert not any(value.requires_grad for value in loss.parts.values())
    loss.total.backward()
    assert objective.regularizers["a"].terms["x"].grad == 2


def test_regularizers_get_what_they_are_promised() -> None:
    regularizer = Constant(1.0, [4], x=0.0)
    hidden, tokens = {4: torch.zeros(1, 4, 2)}, torch.tensor([[0, 2]])
    replaced = torch.tensor([[True, False]])
    Objective({"a": regularizer})(torch.randn(1, 2, 3), hidden, tokens, replaced, 2)
    given = regularizer.given
    assert (given.hidden, given.tokens_BN, given.replaced_BN, given.prefix_length) == (hidden, tokens, replaced, 2)
    # Not among what it says that it reads.
    assert given.logits_BNV is None


def test_layers_are_those_of_all_regularizers_once_and_sorted() -> None:
    assert Objective({"a": Constant(1, [9, 0]), "b": Constant(1, [3, 9])}).layers == (0, 3, 9)
    assert Objective({}).layers == ()


def test_a_regularizer_that_is_no_module_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"'mine' is not an nn\.Module"):
        Objective({"mine": object()})  # type: ignore[dict-item]


def test_capture_collects_outputs_and_lets_go_afterwards() -> None:
    class Tupled(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return x + 1, "else"

    blocks = nn.ModuleList([nn.Identity(), Tupled()])
    x = torch.randn(2, 3)
    with capture({0: blocks[0], 5: blocks[1]}) as hidden:
        blocks[1](blocks[0](x))
    assert sorted(hidden) == [0, 5]
    assert torch.equal(hidden[0], x)
    assert torch.equal(hidden[5], x + 1)
    blocks[0](x + 9)
    assert torch.equal(hidden[0], x)


def test_capture_lets_go_after_an_error_too() -> None:
    block = nn.Identity()
    with pytest.raises(RuntimeError), capture({0: block}):
        raise RuntimeError
    assert not block._forward_hooks


class Blocks(nn.Module):
    """Three layers, called as blocks are."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


def compiled(model: Blocks, how: str) -> nn.Module:
    if how == "model":
        model.compile(backend="eager")
    if how == "blocks":
        for layer in model.layers:
            layer.compile(backend="eager")
    if how == "wrapped":
        model.layers = nn.ModuleList(torch.compile(layer, backend="eager") for layer in model.layers)  # type: ignore[misc]
    return model


@pytest.mark.parametrize("first", [True, False], ids=["called before", "not called before"])
@pytest.mark.parametrize("how", ["model", "blocks", "wrapped"])
def test_capture_works_around_a_compiled_model(how: str, first: bool) -> None:
    """A graph that was compiled before does not notice hooks that come later."""
    torch._dynamo.reset()
    blocks, x = Blocks(), torch.randn(2, 4)
    expected = blocks.layers[0](x)
    model = compiled(blocks, how)
    if first:
        model(x)
    for _ in range(12):  # more often than the compiler compiles anew
        with capture({0: blocks.layers[0]}) as hidden:
            model(x)
        torch.testing.assert_close(hidden[0], expected)
    with capture({2: blocks.layers[2]}) as hidden:
        out = model(x)
    assert list(hidden) == [2]
    torch.testing.assert_close(model(x), out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.randn(2, 8, 7)}, r"logits of shape \(2, 8, 7\) for tokens of shape \(2, 5\): .* 5 or 6, V"),
        ({"logits": torch.randn(3, 5, 7)}, "logits of shape"),
        ({"logits": torch.randn(10, 7)}, "logits of shape"),
        ({"replaced_BN": torch.zeros(2, 4, dtype=torch.bool)}, r"replaced_BN has shape \(2, 4\)"),
        ({"hidden": {}}, r"no output of block 0; it has those of \[\]"),
        ({"prefix_length": 0, "hidden": {0: torch.zeros(2, 5, 3)}}, "prefix_length is 0; the position that predicts"),
        ({"hidden": {0: torch.zeros(2, 8, 3)}}, r"block 0 have shape \(2, 8, 3\); expected \(2, 7, D\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    good = {
        "logits": torch.randn(2, 5, 7),
        "hidden": {0: torch.zeros(2, 7, 3)},
        "tokens_BN": torch.zeros(2, 5, dtype=torch.int64),
        "replaced_BN": torch.zeros(2, 5, dtype=torch.bool),
        "prefix_length": 2,
    }
    objective = Objective({"a": Constant(1.0, [0], x=0.0)})
    objective(**good)
    with pytest.raises(ValueError, match=message):
        objective(**good | change)


def test_terms_for_the_log_are_not_added() -> None:
    terms = {"x": 2.0, "log/norm": 9.0}
    logits, tokens = torch.randn(1, 2, 3), torch.tensor([[0, 2]])
    loss = Objective({"a": Constant(1.0, [], **terms)})(logits, {}, tokens, torch.zeros(1, 2, dtype=torch.bool), 1)
    torch.testing.assert_close(loss.total, loss.parts["cross_entropy"] + 2)
    assert loss.parts["regularizer/a/norm"] == 9
    silent = Objective({"a": Constant(1.0, [], **{"log/norm": 9.0})})
    loss = silent(logits, {}, tokens, torch.zeros(1, 2, dtype=torch.bool), 1)
    torch.testing.assert_close(loss.total, loss.parts["cross_entropy"])


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"x": torch.zeros(2)}, r"regularizer 'a': term 'x' must be a scalar tensor; found one of shape \(2,\)"),
        ({"fine": torch.zeros(()), "log/x": torch.zeros(1)}, r"term 'log/x' must be .*; found one of shape \(1,\)"),
        ({"x": 0.5}, "term 'x' must be a scalar tensor; found 0.5"),
        (torch.zeros(()), "regularizer 'a': terms must be a mapping; found Tensor"),
    ],
)
def test_terms_that_are_no_named_scalars_are_refused_by_name(terms: Any, message: str) -> None:
    broken = Constant(1.0, [])
    broken.terms = terms
    with pytest.raises(PluginError, match=message):
        Objective({"a": broken})(torch.randn(1, 2, 3), {}, torch.tensor([[0, 2]]), torch.zeros(1, 2).bool(), 1)


def test_a_regularizer_of_the_first_version_goes_on_working() -> None:
    class Old(nn.Module):
        weight, layers = 2.0, (0,)

        def forward(
            self, hidden: Mapping[int, Tensor], tokens_BN: Tensor, replaced_BN: Tensor, prefix_length: int
        ) -> dict[str, Tensor]:
            return {"x": hidden[0][:, prefix_length:].mean() + tokens_BN.sum() + replaced_BN.sum()}

    hidden, replaced = {0: torch.ones(1, 4, 2)}, torch.tensor([[True, False]])
    loss = Objective({"old": Old()})(torch.randn(1, 2, 3), hidden, torch.tensor([[0, 2]]), replaced, 2)
    torch.testing.assert_close(loss.total, loss.parts["cross_entropy"] + 2 * (1 + 2 + 1))


def test_how_a_regularizer_is_called_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Constant):
        def forward(self, step: TrainingStep) -> Mapping[str, Tensor]:
            return self.terms

    looked: list[Any] = []
    signature = inspect.signature
    monkeypatch.setattr(inspect, "signature", lambda given: looked.append(given) or signature(given))
    objective = Objective({"a": Mine(1.0, [], x=1.0), "b": Mine(2.0, [], x=1.0)})
    for _ in range(3):
        objective(torch.randn(1, 2, 3), {}, torch.tensor([[0, 2]]), torch.zeros(1, 2).bool(), 1)
    assert looked == [Mine.forward]


def test_a_field_that_cannot_be_read_is_refused() -> None:
    odd = Constant(1.0, [], x=0.0)
    odd.reads = ("logits",)
    with pytest.raises(ValueError, match="'a' reads 'logits'; it can read: logits_BNV, images, backbone"):
        Objective({"a": odd})
