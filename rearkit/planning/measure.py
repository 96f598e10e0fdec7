"""Memory and operations of a training step and of a sampler, measured by running them on meta tensors.

No downloads: modules, plugins' included, run on tensors that have shapes but no data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from rearkit.context_noise import NoiseDraw, reads_predictions
from rearkit.contracts import height_width, num_parameters
from rearkit.errors import RearkitError, first_line
from rearkit.model import Model, build, build_tokenizer
from rearkit.planning.tracking import FusedAttention, LiveBytes, StandIns
from rearkit.recipe.settings import with_changes
from rearkit.recipe.tables import Recipe
from rearkit.sampling.pixel_decoder import images_at_once
from rearkit.training.batches import Batch
from rearkit.training.blocks import prepared_blocks
from rearkit.training.train_module import TrainModule

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-autocast": torch.float32, "fp16": torch.float16}


@attrs.frozen
class StepMemory:
    """Bytes allocated in the forward and backward pass of one micro-batch on one rank, without the weights.

    Attributes:
        activations: peak, without the parameters' gradients.
        gradients: all gradients of parameters, in the precision of the step.
        both: peak of activations and gradients together. Less than the sum of the two peaks, since the backward pass
            frees activations while it makes gradients.
    """

    activations: int
    gradients: int
    both: int


def step_memory(recipe: Recipe, micro_batch: int, cuda: bool) -> StepMemory:
    """Measure the memory of one micro-batch's forward and backward pass.

    Args:
        recipe: what to train; blocks are checkpointed if the recipe says so, and never compiled.
        micro_batch: B.
        cuda: True for an accelerator with fused attention kernels, False for a CPU.
    """
    with _contentless(recipe, cuda) as model, prepared_blocks(model):
        module = TrainModule(model).train()
        _move_here(module, DTYPES[recipe.train.precision])
        batch = _batch(model, micro_batch)
        # Meta tensors are not cast, so autocast's memory is that of float32 at most; lean layers do without it.
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.precision == "bf16-autocast")
        with LiveBytes(module.parameters()) as counted:
            with autocast:
                loss, parts = module(batch)
            loss.backward()
            del loss, parts
        gradients = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
        return StepMemory(counted.peak, gradients, max(counted.peak_with_gradients, gradients))


def step_flops(recipe: Recipe, micro_batch: int) -> int:
    """Count the floating-point operations of a micro-batch's forward and backward pass.

    Counted by `FlopCounterMode`: matrix products and convolutions, two operations for each multiply-add. Attention
    counts as all T × T products, including those that the causal mask removes.
    """
    # Attention stays unfused here: the stand-in for fused kernels computes nothing, so the counter would miss it.
    with _contentless(recipe, cuda=True, fused=False) as model, prepared_blocks(model):
        module = TrainModule(model).train()
        batch = _batch(model, micro_batch)
        with FlopCounterMode(display=False) as counter:
            module(batch)[0].backward()
        return int(counter.get_total_flops())


@attrs.frozen
class SamplingMemory:
    """Bytes of one rank while it samples a batch; guidance doubles the number of rows.

    Attributes:
        weights: of tokenizer, backbone and heads, in float32.
        cache: what is kept from one token to the next: keys, values and anything else the backbone caches.
        peak: peak beside the weights, while a batch is sampled and images of the previous batch are decoded to pixels.
    """

    weights: int
    cache: int
    peak: int

    @property
    def total(self) -> int:
        """Weights and peak together, in bytes."""
        return self.weights + self.peak


def sampling_memory(recipe: Recipe, cuda: bool) -> SamplingMemory:
    """Measure the memory of sampling in float32, over the first two tokens, with all classes of the batch distinct.

    Args:
        recipe: gives model, batch size and guidance.
        cuda: True for an accelerator, False for a CPU, where backbones may hold a packed copy of their weights.
    """
    # Guidance runs a second, unconditional row for each image; at scale 1 it has no effect and is left out.
    rows = recipe.sample.batch * (1 if recipe.sample.guidance_scale == 1 else 2)
    with _contentless(recipe, cuda) as model, torch.no_grad():
        modules = [model.backbone.eval(), model.tokenizer, model.objective]
        for module in modules:
            _move_here(module, torch.float32)
        weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
        with LiveBytes(model.backbone.parameters()) as decoding:
            classes_B = torch.zeros(rows, dtype=torch.int64)
            logits_BV, cache = model.backbone.start(classes_B)
            # A second token: its buffers live beside a cache that exists already, as in all later steps.
            if model.space.num_tokens > 1:
                logits_BV = model.backbone.step(classes_B, cache)
            del logits_BV
            live = decoding.live  # with the logits gone, little but the cache is left
        del cache
        # Images are decoded while the next batch is being sampled: hence the sum of the peaks.
        images = min(recipe.sample.batch, images_at_once(model.tokenizer.image_size, cuda))
        with LiveBytes() as pixels:
            model.tokenizer.decode(torch.zeros(images, model.space.num_tokens, dtype=torch.int64))
    return SamplingMemory(weights, live, decoding.peak + pixels.peak)


@attrs.frozen
class ParameterCounts:
    """Numbers of parameters.

    Attributes:
        backbone: of the backbone, which sampling needs.
        heads: of the regularizers' training-only heads.
        frozen: of what regularizers keep and do not train, such as the copy of the backbone in self-guided training.
    """

    backbone: int
    heads: int
    frozen: int

    @property
    def trained(self) -> int:
        """Of backbone and heads."""
        return self.backbone + self.heads


def parameter_counts(recipe: Recipe) -> ParameterCounts:
    """Count the parameters of what a recipe trains."""
    with _contentless(recipe, cuda=True) as model:
        heads = model.objective
        counts = num_parameters(heads, trained=True), num_parameters(heads, trained=False)
        return ParameterCounts(num_parameters(model.backbone), *counts)


@contextlib.contextmanager
def _contentless(recipe: Recipe, cuda: bool, fused: bool = True) -> Iterator[Model]:
    """Build a recipe's modules on meta tensors; new tensors within this context hold no data either.

    For a CPU they are fake tensors that report the device cpu, so that torch chooses the kernels it would choose there.

    Raises:
        RearkitError: a component reads values of tensors.
    """
    # Weights are not read, since they may not be downloaded yet; and nothing is compiled, since nothing is computed.
    plain = with_changes(
        recipe,
        backbone=with_changes(recipe.backbone, weights=None),
        train=with_changes(recipe.train, compile=False),
    )
    with contextlib.ExitStack() as stack:
        try:
            # Built on meta for CPUs too: `_move_here` later replaces the tensors by ones of the active mode.
            with torch.device("meta"):
                model = build(plain, build_tokenizer(plain, load=False))
            if cuda:
                stack.enter_context(torch.device("meta"))
            else:
                stack.enter_context(FakeTensorMode())
                stack.enter_context(StandIns())
            if cuda and fused:
                stack.enter_context(FusedAttention())
            yield model
        # TypeError: into an array of NumPy's.
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise RearkitError(
                f"{recipe.name}: cannot be planned: a component reads the values of tensors, but planning runs on "
                f"meta tensors, which have only shapes ({first_line(error)})"
            ) from error


def _move_here(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace a module's tensors by empty ones of the active device or mode; floating-point ones get ``dtype``."""
    made: dict[int, Tensor] = {}  # by the id of the old tensor: tied weights must stay tied, or they count twice
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty(old.shape, dtype=dtype if old.is_floating_point() else old.dtype)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                tensors[name] = made[id(old)]  # type: ignore[assignment]


def _batch(model: Model, size: int) -> Batch:
    tokens_BN = torch.zeros(size, model.space.num_tokens, dtype=torch.int64)
    classes_B = torch.zeros(size, dtype=torch.int64)
    replaced_BN = tokens_BN.bool()
    draw = images = None
    if reads_predictions(model.noise):
        # Then a step has a second forward pass.
        draw = NoiseDraw(torch.zeros(size), replaced_BN, None, torch.zeros(tokens_BN.shape))
    if "images" in model.objective.reads:
        images = torch.zeros(size, 3, *height_width(model.tokenizer.image_size), dtype=torch.uint8)
    return Batch(tokens_BN, tokens_BN.clone(), replaced_BN, classes_B, 0.0, images=images, draw=draw)
