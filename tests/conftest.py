"""What several test files share: hypothesis's profile, one thread for torch, reference cases, tiny recipes."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import load_file
from torch import Tensor

from rearkit.recipe.loading import load_recipe
from rearkit.recipe.tables import Recipe

# Whoever started pytest in the background may ignore Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "rearkit", deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("rearkit")
torch.set_num_threads(1)  # at these sizes, threads cost more than they bring

REFERENCE = Path(__file__).parent / "reference"

# A whole recipe at sizes that build in milliseconds: 16 tokens of 12 codes, two blocks.
TINY: dict[str, Any] = {
    "name": "tiny",
    "device": "cpu",
    "data": {"source": {"name": "mnist-5k"}},
    "tokenizer": {
        "name": "maskgit-vqgan",
        "image_size": 8,
        "hidden_channels": 4,
        "channel_mult": [1, 1],
        "num_res_blocks": 1,
        "norm_groups": 2,
        "codebook_size": 12,
        "embedding_dim": 6,
    },
    "backbone": {"name": "dit-ar", "hidden_size": 16, "num_layers": 2, "num_heads": 2},
    "noise": {"name": "linear"},
    "regularizers": [{"name": "codebook-embedding", "projection_dim": 8}],
    "train": {"steps": 4, "global_batch": 8, "lr": 1e-2},
    "sample": {"num_images": 4},
}


@pytest.fixture
def restored_threads() -> Iterator[None]:
    """Put back the number of torch's threads, which a test changes."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@attrs.frozen(eq=False)
class Case:
    """One reference case: its sizes, the file of its weights, its inputs and outputs."""

    sizes: Mapping[str, Any]
    weights: Path
    tensors: Mapping[str, Tensor]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Case]:
    """Load a reference case by name."""

    def load(name: str) -> Case:
        sizes = json.loads((REFERENCE / f"{name}.json").read_text(encoding="utf-8"))
        return Case(
            sizes, REFERENCE / f"{name}.weights.safetensors", load_file(REFERENCE / f"{name}.cases.safetensors")
        )

    return load


@pytest.fixture(scope="session")
def tiny_recipe() -> Callable[..., dict[str, Any]]:
    """Return a fresh copy of the tiny recipe as a mapping, with tables merged over it (``train={"steps": 9}``)."""

    def make(**tables: Any) -> dict[str, Any]:
        content = copy.deepcopy(TINY)
        for key, value in tables.items():
            merge = isinstance(value, dict) and isinstance(content.get(key), dict)
            content[key] = {**content[key], **value} if merge else value
        return content

    return make


@pytest.fixture(scope="session")
def tiny(tiny_recipe: Callable[..., dict[str, Any]]) -> Callable[..., Recipe]:
    """The same, as a checked recipe; a table given as None is left out."""

    def make(**tables: Any) -> Recipe:
        content = tiny_recipe(**tables)
        return load_recipe({key: value for key, value in content.items() if value is not None})

    return make


@pytest.fixture
def exported(tiny: Callable[..., Recipe], tmp_path: Path) -> Path:
    """The folder of a model that stands alone: the tiny one, of 8 × 8 pixels, with random weights everywhere."""
    from sharp import sharpened

    from rearkit.contracts import Classes
    from rearkit.model import build
    from rearkit.stages.model_files import TOKENIZER
    from rearkit.stages.run_folder import RunFolder
    from rearkit.stages.train import export
    from rearkit.weights import write_state_dict

    model, folder = sharpened(build(tiny(), None, Classes(3, ("cat", "dog", "cow")))), RunFolder(tmp_path / "run")
    export(model, 4, folder)
    file = tmp_path / "model" / "model.safetensors"
    file.parent.mkdir()
    folder.model.rename(file)
    write_state_dict(file.parent / TOKENIZER, model.tokenizer.state_dict())
    return file.parent


@pytest.fixture(scope="session")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights in torch-fidelity's layout."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *given: None)
        patch.setattr(torch, "load", lambda *given, **more: {})
        torch.manual_seed(0)
        module = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="none")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(module.state_dict(), path)
    return path
