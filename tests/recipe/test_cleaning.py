from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rearkit.recipe.cleaning import without_folders, without_places
from rearkit.recipe.loading import load_recipe, recipe_to_dict

FOLDER = {"name": "folder", "train": "/home/anna/cats/train", "held_out": "../anna/val/"}


def cleaned(content: dict[str, Any]) -> dict[str, Any]:
    found = without_places(recipe_to_dict(load_recipe(content)))
    assert load_recipe(found)  # it is a recipe all the same
    return found


def test_paths_keep_their_last_part_and_accounts_are_left_out(tiny_recipe: Callable[..., dict[str, Any]]) -> None:
    need = {"path": "/home/anna/w.pt", "what": "weights", "source": "https://anna.example", "size": "1 GB"}
    content = tiny_recipe(
        device="cpu",
        needs=[need],
        requires=["rearkit-alitok @ ../anna/plugins", "mine @ git+https://example.org/mine.git"],
        data={"source": FOLDER},
        train={"trackers": {"wandb_entity": "anna"}, "deepspeed": {"aio": {"block_size": 1}}},
        evaluate={"reference": "C:\\Users\\anna\\ref.npz"},
    )
    content["tokenizer"]["weights"] = "https://anna:secret@example.org/w.pt?signature=1"
    # `requires` names packages that may not be installed here.
    requires = content.pop("requires")
    before = recipe_to_dict(load_recipe(content)) | {"requires": requires}
    found = without_places(before)
    assert "anna" not in repr(found) and "secret" not in repr(found) and "signature" not in repr(found)
    assert found["data"]["source"]["train"] == "train" and found["data"]["source"]["held_out"] == "val"
    assert found["tokenizer"]["weights"] == "w.pt" and found["evaluate"]["reference"] == "ref.npz"
    assert found["requires"] == ["rearkit-alitok", "mine @ git+https://example.org/mine.git"]
    assert not {"needs", "device"} & found.keys() and "trackers" not in found["train"]
    assert load_recipe(found | {"requires": []})


def test_names_on_the_hub_stay(tiny_recipe: Callable[..., dict[str, Any]]) -> None:
    content = tiny_recipe(data={"source": {"name": "huggingface", "path": "ylecun/mnist"}})
    content["tokenizer"]["weights"] = "hf://me/repo/w.safetensors"
    found = cleaned(content)
    assert found["data"]["source"]["path"] == "ylecun/mnist"
    assert found["tokenizer"]["weights"] == "hf://me/repo/w.safetensors"
    content["data"]["source"]["path"] = "/home/anna/mnist"
    assert cleaned(content)["data"]["source"]["path"] == "mnist"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("the classifier /home/anna/c.safetensors; not", "the classifier c.safetensors; not"), ("FID 3.1", "FID 3.1")],
)
def test_sentences_keep_the_last_part_of_paths(text: str, expected: str) -> None:
    assert without_folders(text) == expected
