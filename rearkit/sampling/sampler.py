"""Class-conditional sampling with a key-value cache and classifier-free guidance.

A sample uses one uniform random number per token, drawn from the run's seed and the sample's own number, so that an
image does not depend on the batch or the rank that makes it. Shapes: B samples, N tokens, V codes, H × W image.
"""

from __future__ import annotations

import copy
import operator
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypedDict

import attrs
import numpy as np
import torch
from torch import Tensor

from rearkit.errors import RearkitError
from rearkit.layers.fusing import can_fuse
from rearkit.layers.packed_linear import can_halve, half_weights
from rearkit.model import Model
from rearkit.recipe.tables import SampleTable
from rearkit.registry.contract import blaming
from rearkit.sampling.drawing import draw, guidance_scales
from rearkit.sampling.finite_logits import check_logits
from rearkit.sampling.graphs import GraphedBackbone
from rearkit.sampling.pixel_decoder import PixelDecoder
from rearkit.sampling.stepping import Decoder, Forced, Rows, Watched, fixed_tokens
from rearkit.system import distributed
from rearkit.system.devices import derive_seed, resolve_device

if TYPE_CHECKING:
    from typing_extensions import Unpack


@attrs.frozen(eq=False)
class Samples:
    """Generated images.

    Attributes:
        images: (n, H, W, 3) uint8.
        classes: (n,) int64, the classes asked for.
        tokens: (n, N) int64.
    """

    images: np.ndarray
    classes: np.ndarray
    tokens: np.ndarray


@torch.no_grad()
def sample_tokens(
    backbone: Decoder,
    classes_B: Tensor,
    uniform_BN: Tensor,
    num_classes: int,
    table: SampleTable,
    scale_B: Tensor | None = None,
) -> Tensor:
    """Sample the tokens of a batch; return (B, N) int64.

    Args:
        backbone: in eval mode.
        classes_B: (B,) int64 in [0, C).
        uniform_BN: (B, N) float64 in [0, 1).
        num_classes: C, the id of "no label".
        table: guidance, temperature, top-k and top-p.
        scale_B: (B,) float64, the guidance scale of each sample; if None, the table's.
    """
    B, N = uniform_BN.shape
    if scale_B is None:
        scale_B = torch.full((B,), table.guidance_scale, dtype=torch.float64)
    guided = bool((scale_B != 1).any())
    schedules = [guidance_scales(N, s, table.guidance_power, table.guidance_schedule) for s in scale_B.tolist()]
    rows = torch.cat([classes_B, torch.full_like(classes_B, num_classes)]) if guided else classes_B
    with half_weights(table.precision == "fp16-weights"):
        logits, cache = backbone.start(rows)
    scale_BN = torch.tensor(schedules, dtype=torch.float32, device=logits.device)
    tokens: list[Tensor] = []
    for i in range(N):
        if guided:
            conditional_BV, unconditional_BV = logits.float().chunk(2)
            scale_B1 = scale_BN[:, i : i + 1]
            guided_BV = unconditional_BV + (conditional_BV - unconditional_BV) * scale_B1
            # At scale 1, rounding would make a sample differ from one in a batch without guidance. A code that is ruled
            # out with the label or without stays as it is with it: from infinities guidance has no number.
            ruled_out_BV = conditional_BV.isneginf() | unconditional_BV.isneginf()
            logits = torch.where((scale_B1 == 1) | ruled_out_BV, conditional_BV, guided_BV)
        token_B = draw(logits, uniform_BN[:, i], table.temperature, table.top_k, table.top_p)
        tokens.append(token_B)
        if i + 1 < N:
            logits = backbone.step(torch.cat([token_B, token_B]) if guided else token_B, cache)
    check_logits(logits)
    return torch.stack(tokens, dim=1)


class Sampler:
    """Samples images from a trained model and yields them batch by batch.

    Args:
        model: from `rearkit.build`, trained.
        table: the sampling settings; if None, those of the model's recipe.
        seed: the seed; if None, that of the model's recipe.

    Raises:
        RearkitError: this machine does not support the precision.
    """

    def __init__(self, model: Model, table: SampleTable | None = None, seed: int | None = None) -> None:
        self.model = model
        self.table = table or model.recipe.sample
        self.seed = model.recipe.sample_seed if seed is None else seed
        self.device = distributed.local_device(resolve_device(model.recipe.device))
        for module in (model.backbone, model.tokenizer):
            module.to(self.device).eval()
        if self.table.precision == "fp16-weights" and (self.device.type != "cpu" or not can_halve()):
            raise RearkitError(
                '[sample] precision: "fp16-weights" is for CPUs of the x86 family, with a torch that has FBGEMM; '
                'leave it out, or on an accelerator say "bf16"'
            )
        on_gpu = self.device.type == "cuda"
        backbone = model.backbone
        if self.table.precision == "bf16" or (self.table.precision == "auto" and on_gpu):
            # A copy, since the caller may go on using the model.
            backbone = copy.deepcopy(backbone)
            backbone.to(torch.bfloat16)
        self.decoder: Decoder = backbone
        if on_gpu:
            self.decoder = GraphedBackbone(backbone, model.space.num_tokens, self.table.compile and can_fuse())
        self.pixels = PixelDecoder(model.tokenizer, self.device, exact=self.table.precision == "fp32")

    def stream(
        self,
        classes: Sequence[int],
        first: int = 0,
        numbers: Sequence[int] | None = None,
        guidance_scale: Sequence[float] | None = None,
        given: Any = None,
        known: Any = None,
    ) -> Iterator[Samples]:
        """Yield batches of images, in order. While one is decoded and used, a thread generates the next.

        Args:
            classes: the class of each image, in [0, C).
            first: the number of the first image, which fixes its randomness; the following ones count up from it.
            numbers: the number of each image, instead of ``first``.
            guidance_scale: the guidance scale of each image; if None, the table's for all.
            given: tokens that are kept as they are, (n, N) or (N,) for all alike; the others are drawn after them in
                the tokenizer's order, each from those before it.
            known: as many booleans: which of ``given`` are kept.

        Raises:
            ValueError: a class is out of range or no whole number, the lengths of numbers, scales and classes differ,
                or given tokens do not fit.
        """
        space = self.model.space
        count = len(classes := _whole_numbers(classes))
        if count and not 0 <= min(classes) <= max(classes) < space.num_classes:
            raise ValueError(f"classes must lie in 0 to {space.num_classes - 1}")
        numbers = range(first, first + count) if numbers is None else numbers
        scales = [self.table.guidance_scale] * count if guidance_scale is None else guidance_scale
        if not len(numbers) == len(scales) == count:
            raise ValueError(f"{count} classes, but {len(numbers)} numbers and {len(scales)} guidance scales")
        fixed = fixed_tokens(given, known, (count, space.num_tokens), space.codebook_size)
        parts = [slice(start, start + self.table.batch) for start in range(0, count, self.table.batch)]
        stop = threading.Event()

        def watch(tokens_B: Tensor) -> None:
            if stop.is_set():
                raise InterruptedError

        with ThreadPoolExecutor(1, "generation", distributed.local_device, (self.device,)) as thread:

            def begin(part: slice) -> Future[Tensor]:
                some = None if fixed is None else fixed[part]
                rows = self.rows(classes[part], numbers[part], scales[part], some)
                return thread.submit(self.tokens, rows, watch)

            try:
                # Two batches, so that the thread does not wait for this one between them.
                ahead = deque(begin(part) for part in parts[:2])
                for part, following in zip_longest(parts, parts[2:]):
                    if part is None:
                        break
                    tokens_BN = ahead.popleft().result()
                    if following is not None:
                        ahead.append(begin(following))
                    yield Samples(self.pixels(tokens_BN), np.array(classes[part], np.int64), tokens_BN.numpy())
            finally:
                # If the caller stops early, leaving the pool would otherwise wait for a whole batch.
                stop.set()

    def rows(
        self,
        classes: Sequence[int],
        numbers: Sequence[int],
        scales: Sequence[float],
        fixed_BN: Tensor | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Rows:
        """Return what the images of a batch are drawn from; ``seeds`` of each instead of the sampler's, if given."""
        seeds = [self.seed] * len(numbers) if seeds is None else seeds
        num_tokens = self.model.space.num_tokens
        uniforms = [sample_uniforms(seed, n, num_tokens) for seed, n in zip(seeds, numbers, strict=True)]
        return Rows(
            torch.tensor(classes, dtype=torch.int64),
            torch.from_numpy(np.stack(uniforms)),
            torch.tensor(scales, dtype=torch.float64),
            fixed_BN,
        )

    def tokens(self, rows: Rows, watch: Callable[[Tensor], None], table: SampleTable | None = None) -> Tensor:
        """Draw the tokens of a batch; return (B, N), on the CPU.

        Args:
            rows: at most ``table.batch`` of them on a GPU.
            watch: gets the tokens of each step, on the device: B and maybe more; it may raise InterruptedError.
            table: another table than the sampler's, with the same precision.
        """
        count = len(rows.classes_B)
        # A last, smaller batch is filled up, so that its size needs no graphs of its own.
        rows = rows.filled(self.table.batch) if self.device.type == "cuda" else rows
        decoder = Watched(self.decoder, watch)
        forced = None if rows.fixed_BN is None else Forced(decoder, rows.fixed_BN.to(self.device))
        with blaming(self.model.backbone):
            tokens_BN = sample_tokens(
                forced or decoder,
                rows.classes_B.to(self.device),
                rows.uniform_BN.to(self.device),
                self.model.space.num_classes,
                table or self.table,
                rows.scale_B,
            )
        if forced is not None:
            tokens_BN = forced.whole(tokens_BN)
        return tokens_BN[:count].cpu()


def _whole_numbers(classes: Any) -> list[int]:
    # Tensors and arrays are lists, too; fractions are refused, since they would be cut off.
    try:
        return [operator.index(label) for label in classes]
    except TypeError:
        raise ValueError(f"classes must be a list of whole numbers; got {classes!r}") from None


def sample_uniforms(seed: int, number: int, num_tokens: int) -> np.ndarray:
    """Return the random numbers of one sample: (N,) float64 in [0, 1), from the seed and the sample's number alone."""
    return np.random.default_rng(derive_seed(seed, "sample", number)).random(num_tokens)


class Each(TypedDict, total=False):
    """What each image of `sample` may have of its own; see `Sampler.stream`."""

    numbers: Sequence[int] | None
    guidance_scale: Sequence[float] | None
    given: Any
    known: Any


def sample(
    model: Model,
    classes: Sequence[int],
    table: SampleTable | None = None,
    seed: int | None = None,
    **each: Unpack[Each],
) -> Samples:
    """Sample one image for each of ``classes``, in order.

    Args:
        model: a trained model.
        classes: the class of each image, in [0, C).
        table: the sampling settings; if None, those of the model's recipe.
        seed: the seed; if None, that of the model's recipe.
        each: of each image, ``numbers``, ``guidance_scale``, and tokens that are ``given`` where they are ``known``;
            see `Sampler.stream`.

    Raises:
        ValueError: they do not fit one another, or there are no classes.
    """
    sampler = Sampler(model, table, seed)
    parts = list(sampler.stream(classes, **each))
    if not parts:
        raise ValueError("no classes were given")
    return Samples(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in attrs.fields(Samples)))


def balanced_classes(num_images: int, num_classes: int) -> list[int]:
    """Return the classes of ``num_images`` images, each equally often: 0, 1, …, C-1, 0, 1, …

    Classes are mixed, since evaluators split a file of samples in order (into ten parts for the Inception Score).
    """
    return [i % num_classes for i in range(num_images)]
