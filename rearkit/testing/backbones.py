"""The contract of a backbone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from rearkit.contracts import Backbone, TokenSpace
from rearkit.objective import capture
from rearkit.testing.clauses import (
    SPACE,
    TOLERANCE,
    close,
    copy_state,
    largest,
    named,
    require,
    require_count,
    require_gradients,
    require_module,
    require_parameters,
    require_tensor,
    seeded,
    stir,
)
from rearkit.testing.grids import check_grids
from rearkit.testing.placement import check_backbone_placed


def check_backbone(build: Callable[[TokenSpace], Backbone], space: TokenSpace = SPACE) -> None:
    """Check a backbone: shapes, causality, cached decoding (for CUDA graphs too), gradients, and its state dict.

    Args:
        build: makes the backbone for a token space; called several times.
        space: small sizes to check with. The default is not a square grid: a backbone that needs one must get another.

    Raises:
        AssertionError: a clause of the contract is broken.
    """
    with seeded():
        backbone = build(space)
        module = require_module(backbone, "backbone")
        require(
            isinstance(backbone, Backbone),
            f"a backbone must inherit from rearkit.contracts.Backbone; {named(backbone)} does not",
        )
        for attribute in ("prefix_length", "hidden_size", "num_layers"):
            require_count(backbone, attribute, "backbone")
        require_parameters(module, "backbone")
        stir(module)
        module.eval()
        # Row 0 as drawn; row i + 1 is the same with token i changed. More rows than classes, since a backbone may then
        # compute something once a class.
        tokens_BN = torch.randint(space.codebook_size, (1, space.num_tokens)).repeat(space.num_tokens + 1, 1)
        for i in range(space.num_tokens):
            tokens_BN[i + 1, i] = (tokens_BN[0, i] + 1) % space.codebook_size
        classes_B = torch.arange(len(tokens_BN)) % (space.num_classes + 1)
        _check_forward(backbone, module, tokens_BN, classes_B, space)
        _check_rows_apart(module, tokens_BN, classes_B)
        _check_causal(backbone, module, tokens_BN, space)
        _check_reads_class(module, tokens_BN, space)
        _check_decoding(backbone, module, tokens_BN, classes_B, space, "two batches were decoded in turns")
        stir(module)
        _check_decoding(backbone, module, tokens_BN, classes_B, space, "weights were changed before start")
        _check_state(build, module, tokens_BN, classes_B, space)
        if backbone.any_grid:
            check_grids(build, space)
        _check_recordable(backbone, tokens_BN, classes_B, space)
        _check_blocks(backbone, module, tokens_BN, classes_B)
        _check_gradients(module, tokens_BN, classes_B)
        _check_bfloat16(module, tokens_BN, classes_B)
        check_backbone_placed(build, space)


@torch.no_grad()
def _check_forward(
    backbone: Backbone, module: nn.Module, tokens_BN: Tensor, classes_B: Tensor, space: TokenSpace
) -> None:
    rows = len(tokens_BN)
    layers = tuple(range(backbone.num_layers))
    logits, hidden = _call(module, tokens_BN, classes_B, layers)
    require_tensor(logits, (rows, space.num_tokens + 1, space.codebook_size), torch.float32, "logits, (B, N+1, V),")
    require(logits.isfinite().all(), "logits must be finite")
    require(
        set(hidden) == set(layers),
        f"hidden states must have exactly the layers asked for, {list(layers)}; found {sorted(hidden)}",
    )
    places = backbone.prefix_length + space.num_tokens
    for layer, states in hidden.items():
        shape = (rows, places, backbone.hidden_size)
        require_tensor(states, shape, torch.float32, f"the output of block {layer}, (B, prefix_length + N, D),")
        require(states.isfinite().all(), f"the output of block {layer} must be finite")
    # Twice the same: no dropout in eval mode, and asking for layers changes nothing.
    again, none = _call(module, tokens_BN, classes_B)
    require(not none, "without layers asked for, no hidden states must be returned")
    require(
        torch.equal(logits, again), "in eval mode, the same input must give the same logits, with layers or without"
    )


@torch.no_grad()
def _check_rows_apart(module: nn.Module, tokens_BN: Tensor, classes_B: Tensor) -> None:
    logits, _ = _call(module, tokens_BN, classes_B)
    for row in range(len(tokens_BN)):
        alone, _ = _call(module, tokens_BN[row : row + 1], classes_B[row : row + 1])
        require(
            close(alone[0], logits[row]),
            "in eval mode, a sample's logits must not depend on the rest of the batch; "
            f"alone they differ by {largest(alone[0] - logits[row]):.2g}",
        )


@torch.no_grad()
def _check_causal(backbone: Backbone, module: nn.Module, tokens_BN: Tensor, space: TokenSpace) -> None:
    layers = tuple(range(backbone.num_layers))
    logits, hidden = _call(module, tokens_BN, torch.zeros(len(tokens_BN), dtype=torch.int64), layers)
    for i in range(space.num_tokens):
        change = (logits[i + 1] - logits[0]).abs().amax(-1)
        require(
            # Not exactly 0: rows of a batch may be computed in different order.
            largest(change[: i + 1]) <= TOLERANCE / 10,
            f"a backbone must be causal: changing token {i} must not change the logits of tokens 0 to {i}, "
            f"which changed by {largest(change[: i + 1]):.2g}",
        )
        if i + 1 < space.num_tokens:
            require(
                largest(change[i + 1 : space.num_tokens]) > 0,
                f"a backbone must read its context: changing token {i} changed no logits",
            )
        # Regularizers find a token's hidden state by this position.
        own = backbone.prefix_length + i
        place = f"token {i} is at position prefix_length + {i}: changing it"
        for layer, states in hidden.items():
            change = (states[i + 1] - states[0]).abs().amax(-1)
            require(
                largest(change[:own]) <= TOLERANCE / 10,
                f"{place} must not change the output of block {layer} at earlier positions, "
                f"which changed by {largest(change[:own]):.2g}",
            )
            require(
                largest(change[own]) > 0,
                f"{place} must change the output of block {layer} there",
            )


@torch.no_grad()
def _check_reads_class(module: nn.Module, tokens_BN: Tensor, space: TokenSpace) -> None:
    """Check that each class and "no label" change the logits of token 0: guidance relies on the difference."""
    classes_B = torch.arange(space.num_classes + 1)
    logits, _ = _call(module, tokens_BN[:1].repeat(len(classes_B), 1), classes_B)
    for label in range(space.num_classes):
        require(
            largest(logits[label, 0] - logits[-1, 0]) > 0,
            f"a backbone must read the class: the logits of token 0 are the same for class {label} and for no label",
        )


@torch.no_grad()
def _check_decoding(
    backbone: Backbone, module: nn.Module, tokens_BN: Tensor, classes_B: Tensor, space: TokenSpace, why: str
) -> None:
    """Decode two batches alternately: the cache must belong to the caller, not to the module."""
    # The same rows in reverse: a decoder that mixes up the batches gives wrong logits at once.
    batches = [(tokens_BN, classes_B), (tokens_BN.flip(0), classes_B.flip(0))]
    expected = [_call(module, tokens, classes)[0] for tokens, classes in batches]
    started = [backbone.start(classes) for _, classes in batches]
    found = [logits for logits, _ in started]
    caches = [cache for _, cache in started]
    for i in range(space.num_tokens):
        for index, (tokens, _) in enumerate(batches):
            what = "the logits of token 0 from start, (B, V)," if i == 0 else "the logits from step, (B, V),"
            require_tensor(found[index], (len(tokens), space.codebook_size), torch.float32, what)
            require(
                close(found[index], expected[index][:, i]),
                f"cached decoding must equal the teacher-forced forward: at token {i} the logits differ by "
                f"{largest(found[index] - expected[index][:, i]):.2g} ({why})",
            )
            if i + 1 < space.num_tokens:
                found[index] = backbone.step(tokens[:, i], caches[index])


@torch.no_grad()
def _check_state(
    build: Callable[[TokenSpace], Backbone],
    module: nn.Module,
    tokens_BN: Tensor,
    classes_B: Tensor,
    space: TokenSpace,
) -> None:
    # Another seed, so that the second backbone starts with other weights than the first.
    torch.manual_seed(1)
    second = require_module(build(space), "backbone")
    copy_state(module, second, "backbone")
    logits, _ = _call(module, tokens_BN, classes_B)
    loaded, _ = _call(second.eval(), tokens_BN, classes_B)
    require(
        torch.equal(logits, loaded),
        "a second backbone with the first's state dict must give the same logits; they differ by "
        f"{largest(logits - loaded):.2g}, so the state dict does not hold everything",
    )


class _NothingFromHost(TorchFunctionMode):
    """Refuses operations that make a tensor from Python data, or that read or make a tensor on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # as_tensor of a tensor copies nothing from Python, so it is allowed.
        of_data = func in (torch.tensor, Tensor.new_tensor) or (func is torch.as_tensor and not read)
        on_host = made and any(tensor.device.type == "cpu" for tensor in made + read)
        require(
            not (of_data or on_host),
            f"start and step must copy nothing from the host, since CUDA graphs record them; {resolve_name(func)} does",
        )
        return out


@torch.no_grad()
def _check_recordable(backbone: Backbone, tokens_BN: Tensor, classes_B: Tensor, space: TokenSpace) -> None:
    """Decode on the meta device: like CUDA it is not the CPU, every machine has it, and reading content fails."""
    # A copy, since moving to the meta device loses the weights.
    elsewhere: Any = copy.deepcopy(backbone)
    elsewhere.to("meta")
    tokens_BN = tokens_BN.to("meta")
    classes_B = classes_B.to("meta")
    try:
        with _NothingFromHost():
            _, cache = elsewhere.start(classes_B)
            for i in range(space.num_tokens - 1):
                elsewhere.step(tokens_BN[:, i], cache)
    except RuntimeError as error:
        raise AssertionError(f"start and step must not look at the content of tensors: {error}") from error


@torch.no_grad()
def _check_blocks(backbone: Backbone, module: nn.Module, tokens_BN: Tensor, classes_B: Tensor) -> None:
    """Check that the blocks compute the hidden states: activation checkpointing replaces their forward."""
    if not hasattr(backbone, "blocks"):
        return
    blocks = list(backbone.blocks)
    layers = tuple(range(backbone.num_layers))
    require(
        len(blocks) == len(layers) and all(isinstance(block, nn.Module) for block in blocks),
        f"blocks, where a backbone has them, must be its {len(layers)} blocks, modules; found {len(blocks)} items",
    )
    with capture(dict(enumerate(blocks))) as outputs:
        _, hidden = _call(module, tokens_BN, classes_B, layers)
    for layer in layers:
        require(
            layer in outputs and torch.equal(outputs[layer], hidden[layer]),
            f"blocks[{layer}] must be the module whose call gives the output of block {layer}",
        )


def _check_gradients(module: nn.Module, tokens_BN: Tensor, classes_B: Tensor) -> None:
    module.train()
    module.zero_grad()
    logits, _ = _call(module, tokens_BN, classes_B)
    # The last position has no target.
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens_BN.flatten()).backward()
    require_gradients(module, "backbone")
    module.zero_grad()


@torch.no_grad()
def _check_bfloat16(module: nn.Module, tokens_BN: Tensor, classes_B: Tensor) -> None:
    """Check a forward in bfloat16: DeepSpeed casts parameters and buffers, and tensors made on the way must follow."""
    module.to(torch.bfloat16).eval()
    try:
        logits, _ = _call(module, tokens_BN, classes_B)
    except RuntimeError as error:
        raise AssertionError(f"a backbone must run when it is cast to bfloat16: {error}") from error
    require(logits.isfinite().all(), "logits must be finite when the backbone is cast to bfloat16")


def _call(module: nn.Module, tokens_BN: Tensor, classes_B: Tensor, layers: tuple[int, ...] = ()) -> tuple[Tensor, Any]:
    output = module(tokens_BN, classes_B, layers)
    require(
        isinstance(output, tuple) and len(output) == 2,
        f"forward must return logits and hidden states by layer; found {type(output).__name__}",
    )
    logits, hidden = output
    return logits, hidden
