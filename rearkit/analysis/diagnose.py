"""Diagnose a run from the files in its folder; the result is kept there as ``diagnosis.json``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from rearkit.analysis.embedding import Awareness, LayerProbe, Recovery, awareness, probe_layers
from rearkit.analysis.exposure import Batches, ByPosition, Prediction, by_position, under_own_draws, under_random_codes
from rearkit.analysis.table import Group
from rearkit.data.subsets import drawn
from rearkit.data.token_shards import TokenData
from rearkit.errors import RearkitError
from rearkit.model import Model
from rearkit.recipe.tables import Recipe
from rearkit.stages.flow import STAGES
from rearkit.stages.intact import check_written
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import run_recipe
from rearkit.stages.sample import STAGE as SAMPLE
from rearkit.stages.stage import check_stages_before, up_to_date
from rearkit.stages.tokens import token_data, training_data
from rearkit.stages.train import trained_model
from rearkit.system.checksums import read_sealed, write_sealed
from rearkit.system.console import say
from rearkit.system.devices import resolve_device
from rearkit.system.files import remove
from rearkit.tokenization.on_the_fly import OnTheFly
from rearkit.tokenization.quality import survival

# Images per batch. Not a setting, since replaced positions are drawn batch by batch: another size draws others.
BATCH = 32
# Counts up when a measurement is added or changed: a diagnosis of an earlier version is then made again.
MEASURES = 3


@attrs.frozen
class Diagnosis:
    """What `diagnose` measures.

    Attributes:
        images: number of held-out images it was measured on.
        random_codes: prediction with random codes in the context, one for each share of replaced tokens.
        own_draws: prediction with the model's own draws in the context, likewise.
        positions: cross-entropy of each token with the true context and with own draws.
        awareness: how close predicted codes are to the true ones in the tokenizer's embedding.
        probes: linear probes, one for each block.
        survival_real: share of the held-out images' tokens that are the same after decoding and encoding, in [0, 1].
        survival_generated: likewise for sampled tokens; None without samples.
    """

    images: int
    random_codes: tuple[Prediction, ...]
    own_draws: tuple[Prediction, ...]
    positions: ByPosition
    awareness: Awareness
    probes: tuple[LayerProbe, ...]
    survival_real: float
    survival_generated: float | None


class _Batches:
    """Some images of a split, from all over it, in batches; can be iterated several times."""

    def __init__(self, data: TokenData, limit: int, device: torch.device) -> None:
        self.data = data
        self.chosen = drawn(len(data), limit)
        self.device = device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.chosen), BATCH):
            tokens_BN, classes_B = self.data.take(self.chosen[start : start + BATCH])
            yield tokens_BN.to(self.device), classes_B.to(self.device)


def diagnose(folder: RunFolder, max_images: int = 1000) -> Diagnosis:
    """Diagnose a trained run, or read its diagnosis if there is one of the same tokens, weights and samples.

    Args:
        folder: of a run whose training is done.
        max_images: number of held-out images to measure on, and of training images to fit probes on.

    Raises:
        RearkitError: there is no trained run, it has no held-out images, or its weights are of other tokens, another
            tokenizer or another recipe.
        DataError: training images that are tokenized on the fly can't be read.
    """
    if folder.done("train") is None:
        raise RearkitError(f"{folder.path}: no trained run; run: python -m rearkit run RECIPE --out {folder.path}")
    of = _of(folder) | {"max_images": max_images}
    known = read_sealed(folder.diagnosis)
    if known is not None and known.get("of") == of:
        return from_plain(known["diagnosis"])
    check_written(("tokenizer", "tokens", "train", "sample"), folder)
    say(f"{folder.path.name}: diagnosing")
    recipe = run_recipe(folder)
    # Weights that were trained on what another tokenizer made would be measured on what they have never seen.
    reading = attrs.evolve(SAMPLE, name="diagnose", inputs=("tokens", "train"))
    check_stages_before(reading, STAGES, recipe, folder, f"run: python -m rearkit {{}} RECIPE --out {folder.path}")
    held_out = token_data(folder, "held-out")
    if held_out is None:
        raise RearkitError(
            f"{folder.path}: a diagnosis needs held-out images, and the run has none; "
            "give [data.source] held_out, and run the recipe again"
        )
    model = trained_model(recipe, folder)
    device = resolve_device(recipe.device)
    # Eval mode, since dropout would make the measurements random.
    for module in (model.backbone, model.tokenizer):
        module.to(device).eval()
    train = _training_tokens(recipe, folder, model, max_images, device)
    batches = _Batches(held_out, max_images, device), _Batches(train, max_images, device)
    found = measure(model, *batches, _sampled_tokens(recipe, folder, max_images))
    write_sealed(folder.diagnosis, {"of": of, "diagnosis": attrs.asdict(found)})
    return found


def measure(model: Model, held_out: Batches, train: Batches, sampled_BN: Tensor | None) -> Diagnosis:
    """Diagnose a model.

    Args:
        model: trained, in eval mode.
        held_out: batches of real images to measure on; iterated several times.
        train: batches of training images to fit probes on.
        sampled_BN: (n, N) int64 tokens that the model sampled, or None.
    """
    codebook_VZ = model.tokenizer.codebook()
    # Each measurement iterates the batches itself: keeping all logits (n, N, V) would take too much memory.
    real_BN = torch.cat([tokens_BN for tokens_BN, _ in held_out])
    return Diagnosis(
        images=len(real_BN),
        random_codes=tuple(under_random_codes(model.backbone, held_out, model.space.codebook_size)),
        own_draws=tuple(under_own_draws(model.backbone, held_out)),
        positions=by_position(model.backbone, held_out),
        awareness=awareness(model.backbone, held_out, codebook_VZ),
        probes=tuple(probe_layers(model.backbone, train, held_out, codebook_VZ)),
        survival_real=survival(model.tokenizer, real_BN.cpu(), BATCH),
        survival_generated=None if sampled_BN is None else survival(model.tokenizer, sampled_BN, BATCH),
    )


def read_diagnosis(folder: RunFolder) -> Diagnosis | None:
    """Read the diagnosis in a run's folder; None if there is none, or one of other tokens, weights or samples."""
    known = read_sealed(folder.diagnosis)
    # A subset: the file also records max_images, and a diagnosis of any number of images will do.
    return from_plain(known["diagnosis"]) if known is not None and _of(folder).items() <= known["of"].items() else None


def read_diagnoses(group: Group) -> list[Diagnosis]:
    """Return the diagnoses that a group's runs have; see `read_diagnosis`."""
    return [found for folder in group.folders if (found := read_diagnosis(folder)) is not None]


def from_plain(values: dict[str, Any]) -> Diagnosis:
    """Restore a diagnosis from the dictionary that `attrs.asdict` made of it."""
    probes = [LayerProbe(p["layer"], Recovery(**p["current"]), Recovery(**p["next"])) for p in values["probes"]]
    return Diagnosis(
        images=values["images"],
        random_codes=tuple(Prediction(**one) for one in values["random_codes"]),
        own_draws=tuple(Prediction(**one) for one in values["own_draws"]),
        positions=ByPosition(*(tuple(values["positions"][which]) for which in ("clean", "own_draws"))),
        awareness=Awareness(**values["awareness"]),
        probes=tuple(probes),
        survival_real=values["survival_real"],
        survival_generated=values["survival_generated"],
    )


def _of(folder: RunFolder) -> dict[str, Any]:
    """Return what a diagnosis depends on: what it measures, and the digest of each stage, None for one not run."""
    return {"measures": MEASURES} | {
        name: (folder.done(name) or {}).get("digest") for name in ("tokenizer", "tokens", "train", "sample")
    }


def _training_tokens(recipe: Recipe, folder: RunFolder, model: Model, limit: int, device: torch.device) -> TokenData:
    """Return the tokens that training reads, or those of ``limit`` images if it tokenizes on the fly."""
    data: TokenData | OnTheFly | None = token_data(folder, "train")
    if data is None:
        data = training_data(recipe, folder, model.tokenizer)
    if isinstance(data, TokenData):
        return data
    try:
        tokens_BN, classes_B = data.to_tokens(data.read(drawn(len(data), limit)), device)
    finally:
        # Local copies of remote shards, made by reading them; training fetches its own.
        remove(folder.copies("train"))
    return TokenData.from_arrays(tokens_BN.cpu(), classes_B.cpu())


def _sampled_tokens(recipe: Recipe, folder: RunFolder, limit: int) -> Tensor | None:
    path: Path = folder.samples
    if folder.done("sample") is None or not path.is_file():
        return None
    # Samples of earlier weights would be reported as this model's.
    if not up_to_date([SAMPLE], recipe, folder):
        say(f"{folder.path.name}: its samples are from other weights or another recipe, and are left out")
        return None
    # Their tokens rather than their images: encoding images would already be half of the test.
    with np.load(path, allow_pickle=False) as archive:
        tokens = archive["tokens"]
        return torch.from_numpy(tokens[drawn(len(tokens), limit)].astype(np.int64))
