"""What a training step and a sampler need, by running them on tensors without content.

So any plugin's backbone and regularizers are planned alike, from their modules, and nothing is downloaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from rearkit.contracts import num_parameters
from rearkit.errors import RearkitError, first_line
from rearkit.model import Model, build, build_tokenizer
from rearkit.planning.tracking import FusedAttention, LiveBytes, StandIns
from rearkit.recipe.tables import Recipe
from rearkit.training.batches import Batch
from rearkit.training.blocks import prepared_blocks
from rearkit.training.engine import TrainModule

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@attrs.frozen
class StepMemory:
    """Bytes that live during the forward and backward pass of one micro-batch on one rank, without the weights.

    Attributes:
        activations: the most at any time, gradients of parameters apart.
        gradients: all gradients of parameters, in the precision of the step.
        both: the most of the two together at any time; less than their sum, since the backward pass makes gradients
            while it lets activations go.
    """

    activations: int
    gradients: int
    both: int


def step_memory(recipe: Recipe, micro_batch: int, cuda: bool) -> StepMemory:
    """Count what a micro-batch takes.

    Args:
        recipe: what to train; its blocks are checkpointed where it says so, and never compiled.
        micro_batch: B.
        cuda: whether on an accelerator, with fused attention kernels; else on a CPU.
    """
    with _contentless(recipe, cuda) as model, prepared_blocks(model):
        module = TrainModule(model).train()
        _move_here(module, DTYPES[recipe.train.precision])
        batch = _batch(model, micro_batch)
        with LiveBytes(module.parameters()) as counted:
            loss, parts = module(batch)
            loss.backward()
            del loss, parts
        gradients = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
        return StepMemory(counted.peak, gradients, max(counted.peak_with_gradients, gradients))


def step_flops(recipe: Recipe, micro_batch: int) -> int:
    """Count the floating-point operations of a micro-batch's forward and backward pass.

    Two for each multiplication and addition in matrix products and convolutions, as `FlopCounterMode` counts them;
    attention as if it computed all T × T products, also those that causality leaves out.
    """
    with _contentless(recipe, cuda=True, fused=False) as model, prepared_blocks(model):
        module = TrainModule(model).train()
        batch = _batch(model, micro_batch)
        with FlopCounterMode(display=False) as counter:
            module(batch)[0].backward()
        return int(counter.get_total_flops())


@attrs.frozen
class SamplingMemory:
    """Bytes of one rank while it samples a batch; guidance doubles the rows.

    Attributes:
        weights: of tokenizer, backbone and heads, in float32.
        cache: what lives beside them from token to token: keys and values, and whatever else the backbone keeps.
        peak: the most that lives beside the weights while a batch is decoded, and one image of the one before it is
            turned into pixels.
    """

    weights: int
    cache: int
    peak: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.peak


def sampling_memory(recipe: Recipe, cuda: bool) -> SamplingMemory:
    """Count what sampling takes, in float32, over the first two tokens; every image is of another class.

    Args:
        recipe: its batch and guidance.
        cuda: whether on an accelerator; else on a CPU, where backbones may hold a packed copy of their weights.
    """
    rows = recipe.sample.batch * (1 if recipe.sample.guidance_scale == 1 else 2)
    with _contentless(recipe, cuda) as model, torch.no_grad():
        modules = [model.backbone.eval(), model.tokenizer, model.objective]
        for module in modules:
            _move_here(module, torch.float32)
        weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
        with LiveBytes(model.backbone.parameters()) as decoding:
            classes_B = torch.zeros(rows, dtype=torch.int64)
            logits_BV, cache = model.backbone.start(classes_B)
            if model.space.num_tokens > 1:
                logits_BV = model.backbone.step(classes_B, cache)
            del logits_BV
            live = decoding.live
        del cache
        with LiveBytes() as pixels:
            model.tokenizer.decode(torch.zeros(1, model.space.num_tokens, dtype=torch.int64))
    return SamplingMemory(weights, live, decoding.peak + pixels.peak)


def parameter_counts(recipe: Recipe) -> tuple[int, int]:
    """Count the parameters of the backbone, and of the regularizers' training-only heads."""
    with _contentless(recipe, cuda=True) as model:
        return num_parameters(model.backbone), num_parameters(model.objective)


@contextlib.contextmanager
def _contentless(recipe: Recipe, cuda: bool, fused: bool = True) -> Iterator[Model]:
    """Build a recipe's modules without content, and stay where tensors have none.

    For a CPU they claim to lie there, so that torch chooses its kernels as it would; for an accelerator they are meta
    tensors.

    Raises:
        RearkitError: a component looks at the content of tensors.
    """
    plain: Recipe = attrs.evolve(  # type: ignore[misc]
        recipe,
        backbone=attrs.evolve(recipe.backbone, weights=None),
        train=attrs.evolve(recipe.train, compile=False),  # type: ignore[misc]
    )
    with contextlib.ExitStack() as stack:
        try:
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
        except (RuntimeError, NotImplementedError) as error:
            raise RearkitError(
                f"{recipe.name}: cannot be planned, since a component needs the content of tensors, and planning "
                f"computes with shapes alone ({first_line(error)})"
            ) from error


def _move_here(module: nn.Module, dtype: torch.dtype) -> None:
    """Exchange a module's tensors for ones of the mode that is on, floats in a type; shared ones stay shared."""
    made: dict[int, Tensor] = {}
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
    return Batch(tokens_BN, tokens_BN.clone(), tokens_BN.bool(), classes_B, 0.0)
