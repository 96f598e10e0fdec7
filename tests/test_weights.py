from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rearkit.errors import WeightsError
from rearkit.recipe.settings import settings
from rearkit.registry import plugins
from rearkit.registry.component import Component
from rearkit.weights import (
    EXTRA,
    convert,
    fit_state_dict,
    load_weights,
    read_metadata,
    read_state_dict,
    write_state_dict,
)


class Tiny(nn.Module):
    """A module of five tensors."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(2, width)
        self.second = nn.Linear(width, 4)
        self.register_buffer("scale", torch.rand(1))


class Sneaky:
    """What an unpickler would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("sneaked-in",)


def state() -> dict[str, Tensor]:
    return {key: torch.randn_like(value) for key, value in Tiny().state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_a_state_dict_comes_back_from_every_format(suffix: str, tmp_path: Path) -> None:
    path, saved = tmp_path / f"weights{suffix}", state()
    if suffix == ".safetensors":
        write_state_dict(path, saved)
    else:
        torch.save(saved, path)
    assert same(read_state_dict(path), saved)
    assert same(read_state_dict(str(path)), saved)
    module = Tiny()
    load_weights(module, path)
    assert same(module.state_dict(), saved)


def test_older_torch_files_are_read_too(tmp_path: Path) -> None:
    saved = state()
    torch.save(saved, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(read_state_dict(tmp_path / "old.pt"), saved)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_its_code_not_run(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    torch.save({"first.weight": Sneaky()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"weights\.pt: refused"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps(Sneaky(), protocol=2))
    with pytest.raises(WeightsError, match=r"weights\.pt"):
        read_state_dict(path)
    assert not (tmp_path / "sneaked-in").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "sneaked-in").exists()  # the code works, where somebody is careless


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(1)], {"step": 3}, {"a": {"b": torch.zeros(1)}}, {3: torch.zeros(1)}, torch.zeros(2), None],
)
def test_what_is_no_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"weights\.pt: expected a state dict"):
        read_state_dict(tmp_path / "weights.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_named(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state(), path)
    else:
        write_state_dict(path, state())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(WeightsError, match=rf"weights\{suffix}: ") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=60), st.sampled_from([".safetensors", ".pt", ".bin"]))
def test_any_garbage_is_a_weights_error(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("garbage") / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="weights"):
        read_state_dict(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.safetensors: no such weights file"):
        read_state_dict(tmp_path / "gone.safetensors")
    with pytest.raises(WeightsError, match="no such weights file"):
        read_state_dict(tmp_path)


def test_missing_surplus_and_misshapen_tensors_are_all_named_at_once() -> None:
    given_state = state()
    del given_state["first.weight"]
    given_state["third.weight"] = torch.zeros(1)
    given_state["second.weight"] = torch.zeros(4, 9)
    module = Tiny()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        fit_state_dict(module, given_state, "some.file")
    message = str(caught.value)
    assert message.startswith("some.file: weights do not fit the Tiny")
    assert "1 missing (first.weight)" in message
    assert "1 surplus (third.weight)" in message
    assert "1 of another shape (second.weight (4, 9) where the recipe makes (4, 3))" in message
    assert same(module.state_dict(), before)


def test_a_long_list_of_tensors_is_cut_short() -> None:
    with pytest.raises(WeightsError, match=r"5 missing \(scale, first\.weight, first\.bias, …\)"):
        fit_state_dict(Tiny(), {}, "empty")


class Prefixed:
    """A published layout that begins every name with ``model.`` and has a tensor too many."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return bool(state) and all(key.startswith("model.") for key in state)

    def to_rearkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = {key.removeprefix("model."): value for key, value in state.items()}
        return {f"{EXTRA}{key}" if key == "head" else key: value for key, value in ours.items()}

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"model.{key.removeprefix(EXTRA)}": value for key, value in state.items()}

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"width": state["first.weight"].shape[0]}


@settings
class Nothing:
    """No settings."""


COMPONENT = Component("backbone", "prefixed", Nothing, Tiny, Prefixed())


def published(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{key}": value for key, value in saved.items()} | {"model.head": torch.randn(2)}


def test_a_published_layout_is_translated_and_what_has_no_place_is_returned(tmp_path: Path) -> None:
    saved = state()
    write_state_dict(tmp_path / "theirs.safetensors", published(saved))
    module = Tiny()
    extra = load_weights(module, tmp_path / "theirs.safetensors", COMPONENT)
    assert same(module.state_dict(), saved)
    assert set(extra) == {"head"}
    with pytest.raises(WeightsError, match=r"5 missing.*6 surplus"):
        load_weights(module, tmp_path / "theirs.safetensors")


def test_own_weights_load_where_a_published_layout_is_known_too(tmp_path: Path) -> None:
    saved = state()
    write_state_dict(tmp_path / "ours.safetensors", saved)
    module = Tiny()
    assert load_weights(module, tmp_path / "ours.safetensors", COMPONENT) == {}
    assert same(module.state_dict(), saved)


def test_weights_of_another_size_say_which_settings_they_need(tmp_path: Path) -> None:
    write_state_dict(tmp_path / "wide.safetensors", published(dict(Tiny(7).state_dict())))
    with pytest.raises(WeightsError, match=r"of another shape.*; these weights need width = 7"):
        load_weights(Tiny(), tmp_path / "wide.safetensors", COMPONENT)
    write_state_dict(tmp_path / "else.safetensors", {"something": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"1 surplus \(something\)$"):
        load_weights(Tiny(), tmp_path / "else.safetensors", COMPONENT)


class OfAnother(Prefixed):
    """A layout whose sizes could be read off these weights, though they are not its own."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return False


def test_weights_of_another_component_get_no_advice_on_sizes(tmp_path: Path) -> None:
    write_state_dict(tmp_path / "wide.safetensors", Tiny(7).state_dict())
    with pytest.raises(WeightsError, match=r"of another shape .* where the recipe makes \([0-9, ]*\)\)$"):
        load_weights(Tiny(), tmp_path / "wide.safetensors", attrs.evolve(COMPONENT, published=OfAnother()))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_a_wrapped_state_dict_is_unwrapped(wrapper: str, tmp_path: Path) -> None:
    saved = state()
    torch.save({wrapper: saved}, tmp_path / "wrapped.pt")
    assert same(read_state_dict(tmp_path / "wrapped.pt"), saved)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_conversion_there_and_back_is_the_identity(suffix: str, tmp_path: Path) -> None:
    theirs = published(state())
    write_state_dict(tmp_path / f"theirs{suffix}", theirs)
    assert convert(tmp_path / f"theirs{suffix}", tmp_path / f"ours{suffix}", "rearkit", [COMPONENT]) is COMPONENT
    assert f"{EXTRA}head" in read_state_dict(tmp_path / f"ours{suffix}")
    convert(tmp_path / f"ours{suffix}", tmp_path / f"again{suffix}", "published", [COMPONENT])
    assert same(read_state_dict(tmp_path / f"again{suffix}"), theirs)


@pytest.mark.parametrize(("name", "kind"), [("tiny", "backbone"), ("tiny_maskgit_vqgan", "tokenizer")])
def test_the_reference_weights_survive_conversion_there_and_back(
    name: str, kind: str, reference: Callable[[str], Any], tmp_path: Path
) -> None:
    source = reference(name).weights
    components = plugins.registry().all()
    found = convert(source, tmp_path / "ours.safetensors", "rearkit", components)
    assert found.kind == kind
    assert convert(tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors", "published", components) == found
    assert same(read_state_dict(tmp_path / "theirs.safetensors"), read_state_dict(source))


@pytest.mark.parametrize(
    "other",
    [
        {"something": torch.zeros(1)},
        {"pos_embed": torch.zeros(3, 4)},
        {"pos_embed": torch.zeros(1, 3, 4)},
        {"pos_embed": torch.zeros(2, 3, 4)},
        {"pos_embed": torch.zeros(1)},
        {},
    ],
    ids=["one tensor", "a flat table", "a table", "two tables", "a vector", "nothing"],
)
def test_weights_that_nobody_knows_cannot_be_converted(other: dict[str, Tensor], tmp_path: Path) -> None:
    write_state_dict(tmp_path / "other.safetensors", other)
    with pytest.raises(WeightsError, match=r"other\.safetensors: not the weights of any component"):
        convert(tmp_path / "other.safetensors", tmp_path / "out.safetensors", "rearkit", plugins.registry().all())
    assert not (tmp_path / "out.safetensors").exists()


def test_tensors_that_share_memory_are_each_written_whole(tmp_path: Path) -> None:
    """Tied weights (an embedding that is also the head) are common in others' backbones."""
    tied = nn.Module()
    tied.embeddings = nn.Embedding(5, 3)
    tied.head = nn.Linear(3, 5, bias=False)
    tied.head.weight = tied.embeddings.weight
    write_state_dict(tmp_path / "tied.safetensors", tied.state_dict())
    expected = {key: value.clone() for key, value in tied.state_dict().items()}
    nn.init.zeros_(tied.head.weight)
    load_weights(tied, tmp_path / "tied.safetensors")
    assert same(tied.state_dict(), expected)


def test_parts_of_larger_tensors_and_transposes_are_written_as_they_look(tmp_path: Path) -> None:
    large = torch.randn(6, 4)
    parts = {"top": large[:2], "bottom": large[2:], "turned": large.t(), "strided": large[:, ::2]}
    write_state_dict(tmp_path / "parts.safetensors", parts)
    assert same(read_state_dict(tmp_path / "parts.safetensors"), parts)


def test_metadata_is_written_beside_the_tensors(tmp_path: Path) -> None:
    write_state_dict(tmp_path / "a.safetensors", state(), {"steps": "7"})
    assert read_metadata(tmp_path / "a.safetensors") == {"steps": "7"}
    write_state_dict(tmp_path / "a.pt", state(), {"steps": "7"})
    assert read_metadata(tmp_path / "a.pt") == {}  # torch's files have no room for any
