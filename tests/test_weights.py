from __future__ import annotations

import argparse
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rearkit.errors import WeightsError
from rearkit.recipe.settings import settings
from rearkit.registry import plugins
from rearkit.registry.component import Component
from rearkit.system.weight_files import conversion, is_safetensors, read_state_dict
from rearkit.weights import (
    EXTRA,
    convert,
    fit_state_dict,
    load_weights,
    matching_weights,
    read_metadata,
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
    for name in "ab":
        write_state_dict(tmp_path / f"{name}{suffix}", saved)
    # Neither the file's name nor a number of this process is in it.
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


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
    with pytest.raises(WeightsError, match=r"weights\.pt: refused, since it holds more than tensors"):
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
    torch.save(state(), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r": a folder, not a weights file; name a file in it: a\.pt"):
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
    with pytest.raises(WeightsError, match=r"tensors 1 surplus \(head\)"):
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


# Files as people have them


def ema_of(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value + 1 for key, value in saved.items()}


def put(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_the_first_bytes_tell_the_format(tmp_path: Path) -> None:
    saved = state()
    torch_file = put(tmp_path / "torch.safetensors", saved)
    save_file(saved, tmp_path / "safetensors.pth")
    assert not is_safetensors(torch_file) and is_safetensors(tmp_path / "safetensors.pth")
    assert same(read_state_dict(torch_file), saved)
    assert same(read_state_dict(tmp_path / "safetensors.pth"), saved)
    assert read_metadata(torch_file) == {}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"", "not a readable weights file"),
    ],
)
def test_what_is_often_mistaken_for_weights_is_called_what_it_is(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"weights\.pt: {what}"):
        read_state_dict(tmp_path / "weights.pt")


def test_of_several_state_dicts_the_model_is_taken_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = state()
    content = {"ema": ema_of(saved), "model": saved, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}
    path = put(tmp_path / "trainer.pt", content)
    assert same(read_state_dict(path), saved)
    assert 'trainer.pt: weights are its "model"; weights_key chooses another: "ema"' in capsys.readouterr().out
    assert same(read_state_dict(path, "ema"), ema_of(saved))
    module = Tiny()
    load_weights(module, path, key="ema")
    assert same(module.state_dict(), ema_of(saved))
    with pytest.raises(WeightsError, match=r'weights_key = "emma", but .*did you mean \'ema\'.*it has ema, model'):
        read_state_dict(path, "emma")
    assert same(read_state_dict(put(tmp_path / "only.pt", {"ema": saved})), saved)


def test_a_key_that_nobody_knows_has_to_be_chosen(tmp_path: Path) -> None:
    saved = state()
    path = put(tmp_path / "strange.pt", {"student": saved, "step": 3})
    with pytest.raises(WeightsError, match=r'found a dict of student, step; choose one by weights_key = "student"'):
        read_state_dict(path)
    assert same(read_state_dict(path, "student"), saved)


def test_a_part_of_a_flat_state_dict_can_be_chosen(tmp_path: Path) -> None:
    saved = state()
    both = {f"model.{k}": v for k, v in saved.items()} | {f"ema.{k}": v for k, v in ema_of(saved).items()}
    save_file(both, tmp_path / "both.safetensors")
    module = Tiny()
    load_weights(module, tmp_path / "both.safetensors")
    assert same(module.state_dict(), saved)
    load_weights(module, tmp_path / "both.safetensors", key="ema")
    assert same(module.state_dict(), ema_of(saved))


@pytest.mark.parametrize(
    "before", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "model.net.", "ema_model.module."]
)
def test_what_wrappers_put_before_names_is_taken_off(before: str, tmp_path: Path) -> None:
    saved = state()
    path = put(tmp_path / "wrapped.pt", {"model": {f"{before}{k}": v for k, v in saved.items()}})
    module = Tiny()
    load_weights(module, path)
    assert same(module.state_dict(), saved)


def test_names_of_compiled_parts_are_read(tmp_path: Path) -> None:
    saved = state()
    path = put(tmp_path / "compiled.pt", {k.replace("first.", "first._orig_mod."): v for k, v in saved.items()})
    module = Tiny()
    load_weights(module, path)
    assert same(module.state_dict(), saved)


def test_names_that_fit_keep_their_prefix(tmp_path: Path) -> None:
    outer = nn.Module()
    outer.model = Tiny()
    path = put(tmp_path / "own.pt", outer.state_dict())
    other = nn.Module()
    other.model = Tiny()
    load_weights(other, path)
    assert same(other.state_dict(), dict(outer.state_dict()))


def test_lightning_files_and_their_losses_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = state()
    inside = {f"model.{k}": v for k, v in saved.items()} | {"loss.discriminator.weight": torch.zeros(2)}
    content = {"state_dict": inside, "hyper_parameters": {"lr": 1e-3}, "pytorch-lightning_version": "2.5", "epoch": 1}
    module = Tiny()
    load_weights(module, put(tmp_path / "last.ckpt", content))
    assert same(module.state_dict(), saved)
    assert "1 tensors passed over, such as loss.discriminator.weight" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_the_three_lines_convert_what_is_refused(kind: str, tmp_path: Path) -> None:
    saved = state()
    path = tmp_path / "trained.pt"
    content = {"model": saved, "ema": ema_of(saved), "args": argparse.Namespace(lr=1e-3)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(WeightsError, match=r"trained\.pt: refused") as caught:
        read_state_dict(path)
    first, *lines = str(caught.value).splitlines()
    assert len(lines) == 3 and "weights_only=" not in first and "add_safe_globals" not in str(caught.value)
    exec("\n".join(lines), {})
    assert same(read_state_dict(tmp_path / "trained.safetensors"), saved)
    exec(conversion(path, "ema"), {})
    assert same(read_state_dict(tmp_path / "trained.safetensors"), ema_of(saved))


def test_a_script_is_refused_with_lines_that_convert_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.script(nn.Linear(2, 3))
        script.save(str(tmp_path / "script.pt"))
    with pytest.raises(WeightsError, match=r"script\.pt: refused.*TorchScript.*\n.*torch\.jit\.load"):
        read_state_dict(tmp_path / "script.pt")


class Raising(Prefixed):
    """A plugin's layout that looks for a tensor which others do not have."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        return state["my_own.weight"].shape[0] > 0


def test_a_layout_that_fails_on_foreign_weights_recognises_none(tmp_path: Path) -> None:
    saved = state()
    write_state_dict(tmp_path / "theirs.safetensors", published(saved))
    other = attrs.evolve(COMPONENT, name="raising", published=Raising())
    assert convert(tmp_path / "theirs.safetensors", tmp_path / "ours.pt", "rearkit", [other, COMPONENT]) is COMPONENT
    module = Tiny()
    write_state_dict(tmp_path / "plain.safetensors", saved)
    load_weights(module, tmp_path / "plain.safetensors", other)
    assert same(module.state_dict(), saved)


def test_a_trainers_file_is_converted_by_choice(tmp_path: Path) -> None:
    saved = state()
    wrapped = {f"module.{k}": v for k, v in published(saved).items()}
    path = put(tmp_path / "trainer.ckpt", {"model": wrapped, "ema": ema_of(wrapped), "epoch": 3})
    for key, expected in ((None, saved), ("ema", ema_of(saved))):
        assert convert(path, tmp_path / "ours.safetensors", "rearkit", [COMPONENT], key) is COMPONENT
        module = Tiny()
        load_weights(module, tmp_path / "ours.safetensors")
        assert same(module.state_dict(), expected)


def test_losses_beside_the_weights_are_not_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = state()
    beside = {"loss.discriminator.weight": torch.zeros(2), "ema.weight": torch.zeros(2)}
    wrapped = {f"module.{name}": value for name, value in {**published(saved), **beside}.items()}
    for number, content in enumerate(({"state_dict": {**published(saved), **beside}}, {**saved, **beside}, wrapped)):
        target = tmp_path / f"{number}.safetensors"
        assert convert(put(tmp_path / f"{number}.ckpt", content), target, "rearkit", [COMPONENT]) is COMPONENT
        assert {name for name in load_file(target) if not name.startswith(EXTRA)} == saved.keys()
        assert "2 tensors left out, such as loss.discriminator.weight" in capsys.readouterr().out


def test_weights_are_compared_with_a_module_without_content(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = Tiny()
    own, extra = matching_weights(module, put(tmp_path / "a.pt", state()))
    assert own.keys() == module.state_dict().keys() and extra == {}
    with pytest.raises(WeightsError, match="of another shape"):
        matching_weights(module, put(tmp_path / "b.pt", dict(Tiny(7).state_dict())))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(bad: float, tmp_path: Path) -> None:
    module = Tiny()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    state["second.bias"][1] = bad
    write_state_dict(tmp_path / "w.safetensors", state)
    for load in (lambda: load_weights(Tiny(), tmp_path / "w.safetensors"), lambda: fit_state_dict(Tiny(), state, "w")):
        with pytest.raises(WeightsError, match=r"1 tensors are NaN or infinite \(second\.bias\); the file is damaged"):
            load()


def test_a_buffer_may_be_infinite_as_a_mask_is(tmp_path: Path) -> None:
    state = {**Tiny().state_dict(), "scale": torch.tensor([float("-inf")])}
    fit_state_dict(Tiny(), state, "w")
    with pytest.raises(WeightsError, match="scale"):
        fit_state_dict(Tiny(), {**state, "scale": torch.tensor([float("nan")])}, "w")


def test_large_numbers_are_numbers() -> None:
    state = {**Tiny().state_dict(), "second.bias": torch.full((4,), torch.finfo(torch.float32).max)}
    fit_state_dict(Tiny(), state, "w")


def test_an_archive_with_names_that_are_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(2)}, path)
    content = path.read_bytes()
    # In the archive's list of contents, marked as UTF-8.
    place = content.index(b"PK\x01\x02")
    path.write_bytes(
        content[: place + 8] + b"\x00\x08" + content[place + 10 : place + 46] + b"\xff" + content[place + 47 :]
    )
    with pytest.raises(WeightsError, match=r"x\.pt: not a readable weights file"):
        read_state_dict(path)
