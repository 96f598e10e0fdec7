"""A recipe without what tells of the machine that it ran on: folders, accounts, addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rearkit.system.hub import is_hub

# A dataset's name on the hub, and a package's address that holds no password.
DATASET = re.compile(r"[\w.-]+/[\w.-]+")
ADDRESS = re.compile(r"(git\+)?https://[^@/]+/.*")
FOLDERS = re.compile(r"\S*[\\/](?=\S)")
"""What stands before the last part of a path, in a sentence."""


def without_places(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe, as `rearkit.recipe.loading.recipe_to_dict` gives it, that can be given to anybody.

    Paths and URLs keep their last part only. Names on the Hugging Face hub stay. What is of this machine alone is left
    out: ``needs``, trackers and their accounts, the folder for offloading; the device is ``"auto"``.
    """
    kept = {key: value for key, value in content.items() if key not in ("needs", "device")}
    kept["requires"] = [_package(entry) for entry in content.get("requires", ())]
    kept["train"] = {key: value for key, value in content["train"].items() if key not in ("trackers", "offload_path")}
    cleaned = {key: value if key == "requires" else _clean(value) for key, value in kept.items()}
    source = content["data"]["source"]
    if source["name"] == "huggingface" and DATASET.fullmatch(source["path"]) and not Path(source["path"]).exists():
        cleaned["data"]["source"]["path"] = source["path"]
    return cleaned


def without_folders(text: str) -> str:
    """Return a sentence in which paths have only their last part."""
    return FOLDERS.sub("", text)


def without_folders_of_machine(text: str) -> str:
    """Return a text in which absolute paths have their last part only, and all else, links included, stays."""
    # A path starts where a word does, or a value, quoted or not.
    return re.sub(r"""(?<![^\s"'=`])/(?:[^\s"'/]+/)*([^\s"'/]+)""", r"…/\1", text)


def _package(entry: str) -> str:
    """Return an entry of ``requires`` without a source that only this machine has."""
    name, _, source = (part.strip() for part in entry.partition("@"))
    return entry if ADDRESS.fullmatch(source) else name


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if isinstance(value, str) and re.search(r"[\\/]", value) and not is_hub(value):
        # What follows a ? may be a signature; what follows a space, an option of a command.
        return re.split(r"[\\/]", re.split(r"[?#]", value)[0].rstrip("\\/"))[-1].split(" ")[0]
    return value
