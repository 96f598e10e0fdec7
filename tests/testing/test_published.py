"""The check of published layouts: the built-in ones pass, and each way to break one is told in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rearkit import Component, setting, settings
from rearkit.components.backbones.dit_ar_blocks import DiTARSettings
from rearkit.components.backbones.dit_ar_weights import DiTARLayout
from rearkit.components.tokenizers.maskgit_vqgan import MaskGITVQGANSettings
from rearkit.contracts import EXTRA, TokenSpace
from rearkit.registry import plugins
from rearkit.testing import check_component, check_published
from rearkit.weights import classes_of, write_state_dict

State = Mapping[str, Tensor]


def test_the_built_in_layouts_keep_their_contract(reference: Callable[[str], Any]) -> None:
    case = reference("tiny")
    sizes = case.sizes
    backbone = DiTARSettings(hidden_size=sizes["hidden_size"], num_layers=sizes["num_layers"], num_heads=4)
    space = TokenSpace(sizes["num_tokens"], sizes["codebook_size"], sizes["num_classes"])
    check_published(plugins.find("backbone", "dit-ar"), load_file(case.weights), backbone, space)
    case = reference("tiny_maskgit_vqgan")
    tokenizer = MaskGITVQGANSettings(
        image_size=16,
        hidden_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=2,
        codebook_size=32,
        embedding_dim=8,
    )
    check_published(plugins.find("tokenizer", "maskgit-vqgan"), load_file(case.weights), tokenizer)


class Miscounts(DiTARLayout):
    """Takes "no label" for a class."""

    def sizes(self, state: State) -> dict[str, Any]:
        found = super().sizes(state)
        return found | {"classes": found["classes"] + 1}


class TellsLess(DiTARLayout):
    """Tells settings alone, as before rearkit 0.2."""

    def sizes(self, state: State) -> dict[str, Any]:
        return {name: value for name, value in super().sizes(state).items() if name == "num_layers"}


class Fails(DiTARLayout):
    """Needs what the weights have not, or has a mistake."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def sizes(self, state: State) -> dict[str, Any]:
        raise self.error


def test_what_sizes_tells_beside_settings_is_compared_and_may_be_left_out(
    reference: Callable[[str], Any], tmp_path: Path
) -> None:
    case, component = reference("tiny"), plugins.find("backbone", "dit-ar")
    numbers = case.sizes
    given = DiTARSettings(hidden_size=numbers["hidden_size"], num_layers=numbers["num_layers"], num_heads=4)
    space = TokenSpace(numbers["num_tokens"], numbers["codebook_size"], numbers["num_classes"])

    def with_layout(layout: DiTARLayout) -> Component:
        return attrs.evolve(component, published=layout)

    state, classes = load_file(case.weights), numbers["num_classes"]
    with pytest.raises(AssertionError, match=f"numbers that the weights are for.*found {{'classes': {classes + 1}}}"):
        check_published(with_layout(Miscounts()), state, given, space)
    check_published(with_layout(TellsLess()), state, given, space)
    path = tmp_path / "weights.safetensors"
    write_state_dict(path, state)
    assert classes_of(path, component) == classes
    assert classes_of(path, with_layout(TellsLess())) is None
    assert classes_of(path, with_layout(Fails(KeyError("embeddings.weight")))) is None
    with pytest.raises(TypeError, match="a mistake"):
        classes_of(path, with_layout(Fails(TypeError("a mistake"))))


@settings
class Sizes:
    """A small module."""

    width: int = setting("a width", default=3)


class Small(nn.Module):
    def __init__(self, given: Sizes) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(4, given.width))


class Layout:
    """Others call it ``emb`` and keep a loss beside it."""

    def recognises(self, state: State) -> bool:
        return {"emb", "loss"} <= state.keys()

    def to_rearkit(self, state: State) -> dict[str, Tensor]:
        return {"codes": state["emb"], f"{EXTRA}loss": state["loss"]}

    def to_published(self, state: State) -> dict[str, Tensor]:
        names = {"codes": "emb", f"{EXTRA}loss": "loss"}
        return {names.get(name, name): value for name, value in state.items()}

    def sizes(self, state: State) -> dict[str, Any]:
        return {"width": state["codes"].shape[1], "codes": len(state["codes"])}


STATE = {"emb": torch.randn(4, 3), "loss": torch.randn(2)}


def check(layout: Any, state: State = STATE, given: Any = None) -> None:
    check_published(Component("tokenizer", "small", Sizes, Small, published=layout), state, given or Sizes())


def test_a_layout_that_keeps_its_contract_passes() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check(Layout())
    assert torch.equal(torch.rand(2), expected)


class KnowsNothing(Layout):
    def recognises(self, state: State) -> bool:
        return False


class KnowsAll(Layout):
    def recognises(self, state: State) -> bool:
        return True


class LooksAtNames(Layout):
    def recognises(self, state: State) -> bool:
        return state["emb"].shape[1] == 3


class LooksAtShapes(Layout):
    def recognises(self, state: State) -> bool:
        return "emb" in state and state["emb"].shape[1] == 3


class AnswersAnything(Layout):
    def recognises(self, state: State) -> Any:
        return {"emb", "loss"} <= state.keys() or None


class NeedsItsNames(Layout):
    def to_published(self, state: State) -> dict[str, Tensor]:
        return {"emb": state["codes"], "loss": state[f"{EXTRA}loss"]}


class LosesExtra(Layout):
    def to_rearkit(self, state: State) -> dict[str, Tensor]:
        return {"codes": state["emb"]}


class Changes(Layout):
    def to_rearkit(self, state: State) -> dict[str, Tensor]:
        return {"codes": state["emb"] + 1, f"{EXTRA}loss": state["loss"]}


class KeepsItsNames(Layout):
    def to_rearkit(self, state: State) -> dict[str, Tensor]:
        return dict(state)


class ReadsWrongly(Layout):
    def sizes(self, state: State) -> dict[str, Any]:
        return {"width": len(state["codes"])}


class ReadsNothing(Layout):
    def sizes(self, state: State) -> dict[str, Any]:
        return {"codes": 4}


@pytest.mark.parametrize(
    ("layout", "clause"),
    [
        (KnowsNothing, "recognises must return True for weights in the published layout"),
        (KnowsAll, "recognises must return False of no weights at all"),
        (LooksAtNames, r"recognises must answer whatever it is shown; of no weights at all, it raises KeyError: 'emb'"),
        (LooksAtShapes, "recognises must answer whatever it is shown; of scalars under its names, it raises IndexE"),
        (AnswersAnything, "recognises must return True or False; of no weights at all, it returns None"),
        (NeedsItsNames, "to_published must leave alone what it does not know; of no weights at all, it raises KeyE"),
        (LosesExtra, "to_published must undo to_rearkit; 1 tensors differ, such as loss"),
        (Changes, "to_published must undo to_rearkit; 1 tensors differ, such as emb"),
        (KeepsItsNames, "to_rearkit must give the names and shapes of the tokenizer that the settings given make; "),
        (ReadsWrongly, r"of the tokenizer that the settings that sizes reads, \{'width': 4\}, make; codes is \(4, 3\)"),
        (ReadsNothing, r"sizes must tell settings by their names; found \['codes'\]"),
    ],
)
def test_a_broken_layout_is_told_which_clause(layout: type[Layout], clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check(layout())


def test_what_it_is_called_with_must_fit() -> None:
    with pytest.raises(AssertionError, match="tokenizer 'small' has no published layout"):
        check(None)
    with pytest.raises(AssertionError, match=r"codes is \(4, 3\), not \(4, 5\)"):
        check(Layout(), given=Sizes(width=5))
    component = Component("tokenizer", "small", Sizes, Small, published=Layout())
    with pytest.raises(AssertionError, match="a backbone, and only that, needs a token space"):
        check_published(component, STATE, Sizes(), TokenSpace(4, 4, 2))


def test_a_backbone_that_needs_a_grid_is_checked_on_one() -> None:
    dit = plugins.find("backbone", "dit-ar")

    def build(given: DiTARSettings, space: TokenSpace) -> Any:
        if round(space.num_tokens**0.5) ** 2 != space.num_tokens:
            raise ValueError(f"{space.num_tokens} tokens make no square grid")
        made = dit.build(given, space)
        made.any_grid = False
        return made

    gridded = attrs.evolve(dit, build=build)
    small = DiTARSettings(hidden_size=16, num_layers=2, num_heads=2)
    with pytest.raises(ValueError, match="6 tokens make no square grid"):
        check_component(gridded, small)
    check_component(gridded, small, space=TokenSpace(9, 5, 2))
