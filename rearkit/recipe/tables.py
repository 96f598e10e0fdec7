"""The tables of a recipe as frozen settings classes, one per stage and one per component.

`rearkit.recipe.loading` checks every key against these classes and against the settings of the components that the
recipe names, and reports all errors together.
"""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from rearkit.recipe.fit_table import FitTable
from rearkit.recipe.settings import setting, settings
from rearkit.recipe.table_checks import colour, folder_name
from rearkit.recipe.train_table import TrainTable

NEW = {"since": "0.2.0"}
"""Marks a field that came later: at its default it is in no stage's key, so that earlier runs stay up to date."""


@attrs.frozen
class ComponentTable:
    """A table that names a component; all other keys are that component's settings.

    Attributes:
        name: the component's name.
        settings: an instance of the component's settings class.
        provider: the distribution that provides the component, with its version.
    """

    kind: ClassVar[str]
    name: str
    settings: Any
    provider: str = ""


@attrs.frozen
class DatasetTable(ComponentTable):
    """``[data.source]``: where the images come from."""

    kind = "dataset"


@attrs.frozen
class BackboneTable(ComponentTable):
    """``[backbone]``: the transformer.

    Attributes:
        weights: path of initial weights, in rearkit's or the published layout; with ``train.steps = 0``, the weights to
            sample from.
        weights_key: which state dict of that file, where it has several, such as ``"ema"``.
        weights_fit: ``"strict"``, or, to fine-tune at another number of classes, codes or positions, ``"partial"``:
            what fits is taken, the rest is initialised and listed.
    """

    kind = "backbone"
    weights: str | None = None
    weights_key: str | None = attrs.field(default=None, metadata=NEW)
    weights_fit: str = setting(
        "whether weights must fit as they are", default="strict", choices=("strict", "partial"), since="0.2.0"
    )


@attrs.frozen
class NoiseTable(ComponentTable):
    """``[noise]``: how much of the context is replaced."""

    kind = "noise"


@attrs.frozen
class RegularizerTable(ComponentTable):
    """One entry of ``[[regularizers]]``."""

    kind = "regularizer"


@attrs.frozen
class TokenizerTable(ComponentTable):
    """``[tokenizer]``: the image tokenizer, with its weights or how to fit them.

    Attributes:
        weights: path of a state dict (safetensors, or torch's), in rearkit's or the published layout.
        weights_key: which state dict of that file, where it has several, such as ``"ema"``.
        fit: how to fit the tokenizer; with ``weights``, from them on. At least one of both is given.
    """

    kind = "tokenizer"
    weights: str | None = None
    weights_key: str | None = attrs.field(default=None, metadata=NEW)
    fit: FitTable | None = None


@settings
class DataTable:
    """``[data]``: image shards."""

    source: DatasetTable = setting("the dataset component")
    shard_size: int = setting("images in a shard, where shards are written", default=1000, ge=1)
    max_bad_share: float = setting(
        "share of samples that may be unreadable or mislabelled before the run stops", default=0.01, ge=0, le=1
    )
    crop: str = setting(
        "how images become squares: the shorter side resized and the middle cut out; or ADM's way to the same",
        default="center",
        choices=("center", "adm"),
        since="0.2.0",
    )
    background: str = setting(
        "colour under transparent pixels, by name or as '#rrggbb'", default="white", validator=colour, since="0.2.0"
    )
    orientation: str = setting(
        "images as they are stored, as in published recipes, or turned as their EXIF data say",
        default="stored",
        choices=("stored", "exif"),
        since="0.2.0",
    )
    fetch_tries: int = setting("attempts to fetch a shard that is a URL or a pipe", default=4, ge=1, cosmetic=True)
    fetch_wait: float = setting(
        "seconds to wait after the first failed attempt; doubled after each further one",
        default=1.0,
        ge=0,
        cosmetic=True,
    )


VIEWS = {"none": 1, "flip": 2, "ten-crop": 10}
"""Number of views that each kind of augmentation makes of an image."""
RANDOM_CROP = "random-crop"
"""An augmentation with any number of views, for tokens made on the fly."""


@settings
class TokensTable:
    """``[tokens]``: token shards, and the check of what was written."""

    pretokenized: str | None = setting("folder of token shards made elsewhere, to use as they are", default=None)
    augment: str = setting("which views of each training image", default="none", choices=(*VIEWS, RANDOM_CROP))
    on_the_fly: bool = setting(
        "write no shards of the training images: tokenize them while training, one view each, drawn afresh each epoch",
        default=False,
    )
    workers: int = setting(
        "on the fly: processes of each rank that read and decode images; 0: a thread", default=2, ge=0, cosmetic=True
    )
    shuffle_shards: int = setting(
        "on the fly: shards read at a time, among which images are shuffled", default=16, ge=1
    )
    batch: int = setting("images tokenized at once", default=64, ge=1, cosmetic=True)
    check_images: int = setting("images decoded again from the written shards", default=256, ge=1)
    min_psnr: float = setting(
        "stop below this PSNR of the decoded against the original, dB", default=0.0, ge=0, floor=True
    )
    min_codebook_use: float = setting("stop below this share of codes in use", default=0.0, ge=0, le=1, floor=True)

    def __attrs_post_init__(self) -> None:
        if self.augment == RANDOM_CROP and not self.on_the_fly:
            raise ValueError(f'augment = "{RANDOM_CROP}" draws afresh each epoch, so it needs on_the_fly = true')
        if self.on_the_fly and self.pretokenized is not None:
            raise ValueError("on_the_fly = true leaves no use for pretokenized")


GUIDANCE_SCHEDULES = ("constant", "linear", "power-cosine")
DRAWN_BY = ("guidance_scale", "guidance_power", "guidance_schedule", "temperature", "top_k", "top_p")
"""The settings in `SampleTable` that decide what is drawn from a model's predictions."""


@settings
class SampleTable:
    """``[sample]``: class-conditional sampling with guidance."""

    num_images: int = setting("images, spread evenly over the classes", ge=1)
    seed: int | None = setting("seed of what is drawn; left out: the recipe's", default=None, ge=0, lt=2**31)
    batch: int = setting("images sampled at once", default=64, ge=1, cosmetic=True)
    guidance_scale: float = setting("s, guidance at the last token; 1 for none", default=1.0, ge=0)
    guidance_schedule: str = setting("guidance over tokens", default="power-cosine", choices=GUIDANCE_SCHEDULES)
    guidance_power: float = setting("p of the power-cosine schedule of guidance over tokens", default=1.0, gt=0)
    temperature: float = setting("divides the logits; 0: take the likeliest code", default=1.0, ge=0)
    top_k: int = setting("sample among the k likeliest codes only; 0 for all", default=0, ge=0)
    top_p: float = setting("sample among the likeliest codes of this total probability only", default=1.0, gt=0, le=1)
    precision: str = setting(
        "arithmetic; auto: on a GPU bf16, and TF32 for pixels, else fp32; fp16-weights: fp32 on fp16 weights, on a CPU",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16-weights"),
        formerly="fp32",
    )
    compile: bool = setting("on a GPU, compile steps with torch.compile, once a run", default=True, since="0.2.0")
    grid_per_class: int = setting("images of each class in samples.png", default=10, ge=1, cosmetic=True)
    grid_classes: int = setting("classes in samples.png", default=10, ge=1, cosmetic=True)


@settings
class ClassifierTable:
    """``[evaluate.classifier]``: the feature extractor trained on the spot."""

    steps: int = setting("optimizer steps", default=600, ge=1)
    batch: int = setting("images a step", default=64, ge=1)
    lr: float = setting("peak learning rate", default=2e-3, gt=0)
    channels: int = setting("channels of the first convolution", default=32, ge=1)
    features: int = setting("width of the features for FID, precision, recall", default=64, ge=2)
    min_accuracy: float = setting("stop below this held-out accuracy", default=0.0, ge=0, le=1, floor=True)


@settings
class EvaluateTable:
    """``[evaluate]``: scores by torch-fidelity."""

    features: str = setting(
        "feature space: Inception-v3 as published, or a classifier trained on this run's images",
        default="inception",
        choices=("inception", "classifier"),
    )
    feature_weights: str | None = setting(
        "file of torch-fidelity's Inception weights; left out, torch-fidelity downloads them", default=None
    )
    classifier: ClassifierTable = setting("settings of the classifier", default=ClassifierTable())
    batch: int = setting("images scored at once", default=64, ge=1, cosmetic=True)
    reference: str | None = setting(
        "reference .npz with mu and sigma (ADM's); left out, the training images are the reference", default=None
    )
    max_reference: int = setting("training images used as the reference, at most", default=50_000, ge=10)
    nearest_k: int = setting("neighbours for precision and recall", default=3, ge=1)

    def __attrs_post_init__(self) -> None:
        if self.reference is not None and self.features != "inception":
            raise ValueError('reference holds statistics of Inception features, so it needs features = "inception"')


@settings
class NeedTable:
    """One entry of ``[[needs]]``: a file or folder that the recipe needs and that rearkit does not include."""

    path: str = setting("the file or folder")
    what: str = setting("what it is")
    source: str = setting("project page and file name from which to get it")
    size: str = setting("its size, as text")
    prepare: str = setting("command that prepares it", default="")


@settings
class Recipe:
    """A whole recipe."""

    name: str = setting("name of the run; its files go to runs/NAME", validator=folder_name)
    seed: int = setting("seed of everything random", default=0, ge=0, lt=2**31)
    device: str = setting("where to compute; auto: CUDA if any", default="auto", choices=("auto", "cpu", "cuda"))
    requires: tuple[str, ...] = setting(
        "packages whose components this recipe names: NAME, or NAME @ SOURCE, what pip installs it from", default=()
    )
    needs: tuple[NeedTable, ...] = setting("files that must exist before anything runs", default=())
    data: DataTable = setting("image shards")
    tokenizer: TokenizerTable = setting("image tokenizer")
    tokens: TokensTable = setting("token shards", default=TokensTable())
    backbone: BackboneTable = setting("transformer")
    noise: NoiseTable | None = setting("context noise; left out: none, as in a plain AR model", default=None)
    regularizers: tuple[RegularizerTable, ...] = setting("regularizers; none makes a plain AR model", default=())
    train: TrainTable = setting("optimization")
    sample: SampleTable = setting("sampling")
    evaluate: EvaluateTable = setting("scores", default=EvaluateTable())

    def __attrs_post_init__(self) -> None:
        if not getattr(self.data.source.settings, "unlabelled", False):
            return
        if self.sample.guidance_scale != 1:
            raise ValueError(
                "[sample] guidance_scale: images are unlabelled, so there is no class to guide to; leave it out"
            )
        if self.evaluate.features == "classifier":
            raise ValueError(
                '[evaluate] features: images are unlabelled, and a classifier needs classes; use "inception"'
            )

    @property
    def train_seed(self) -> int:
        """Seed of training: its own, so that training can be repeated on the same tokenizer, or the recipe's."""
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def sample_seed(self) -> int:
        """Seed of sampling: its own, or the recipe's."""
        return self.seed if self.sample.seed is None else self.sample.seed


def component_tables(recipe: Recipe) -> list[ComponentTable]:
    """Return the tables of a recipe that name components."""
    tables = [recipe.data.source, recipe.tokenizer, recipe.backbone, recipe.noise, *recipe.regularizers]
    return [table for table in tables if table is not None]
