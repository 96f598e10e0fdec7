"""The contract of a regularizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from rearkit.contracts import Regularizer, RegularizerContext
from rearkit.testing.clauses import (
    copy_state,
    named,
    require,
    require_gradients,
    require_module,
    seeded,
    stir,
)

# V and Z of two codebooks: Z smaller and larger than the hidden size, and than V.
CODEBOOKS = ((11, 3), (40, 300))
# Lengths of the prefix: a regularizer must not count on one backbone's.
PREFIXES = (1, 2, 3)
ROWS = 4


def check_regularizer(
    build: Callable[[RegularizerContext], Regularizer],
    *,
    hidden_size: int = 16,
    num_layers: int = 4,
    num_tokens: int = 6,
) -> None:
    """Check a regularizer: its terms, its gradients, and that it leaves its inputs and the codebook unchanged.

    Args:
        build: makes the regularizer for a context; called several times.
        hidden_size: D of the hidden states to check with.
        num_layers: number of blocks of the backbone in the context.
        num_tokens: N.

    Raises:
        AssertionError: a clause of the contract is broken.
    """
    with seeded():
        for codebook_size, embedding_dim in CODEBOOKS:
            # With a gradient, to see whether the regularizer sends one there.
            codebook_VZ = torch.randn(codebook_size, embedding_dim).requires_grad_()
            context = RegularizerContext(hidden_size, num_layers, codebook_VZ)
            regularizer = build(context)
            module = require_module(regularizer, "regularizer")
            _check_attributes(regularizer, num_layers)
            stir(module)
            for prefix_length in PREFIXES:
                inputs = _Inputs(context, num_tokens, prefix_length)
                _check_terms(module, inputs)
                _check_gradients(module, regularizer.layers, inputs)
                _check_codebook(module, context, codebook_VZ)
            _check_state(build, context, module, inputs)
            _check_bfloat16(module, inputs)


class _Inputs:
    """A regularizer's arguments: the outputs of all blocks, since other regularizers may have asked for more."""

    def __init__(self, context: RegularizerContext, num_tokens: int, prefix_length: int) -> None:
        shape = (ROWS, prefix_length + num_tokens, context.hidden_size)
        self.hidden = {layer: torch.randn(shape) for layer in range(context.num_layers)}
        self.tokens_BN = torch.randint(len(context.codebook_VZ), (ROWS, num_tokens))
        # Half of each row, so that terms over replaced tokens and terms over kept ones both have some.
        self.replaced_BN = torch.arange(num_tokens).expand(ROWS, -1) % 2 == 0
        self.prefix_length = prefix_length


def _check_attributes(regularizer: Regularizer, num_layers: int) -> None:
    weight = getattr(regularizer, "weight", None)
    layers = getattr(regularizer, "layers", None)
    require(
        isinstance(weight, int | float) and math.isfinite(weight),
        f"regularizer.weight must be a finite number; found {weight!r}",
    )
    require(
        isinstance(layers, list | tuple) and layers and all(type(layer) is int for layer in layers),
        f"regularizer.layers must list the blocks that it reads, at least one; {named(regularizer)} has {layers!r}",
    )
    assert layers is not None
    require(
        all(0 <= layer < num_layers for layer in layers),
        f"regularizer.layers must lie in the backbone, whose blocks are 0 to {num_layers - 1}; found {list(layers)}",
    )


def _terms(
    module: nn.Module, inputs: _Inputs, replaced_BN: Tensor, hidden: Mapping[int, Tensor] | None = None
) -> Tensor:
    """Check each term, and return their sum."""
    terms = module(inputs.hidden if hidden is None else hidden, inputs.tokens_BN, replaced_BN, inputs.prefix_length)
    require(
        isinstance(terms, Mapping) and terms and all(isinstance(name, str) for name in terms),
        f"a regularizer must return named terms, at least one; found {terms!r}",
    )
    share = "all" if replaced_BN.all() else "some" if replaced_BN.any() else "none"
    for name, value in terms.items():
        require(
            isinstance(value, Tensor) and value.dim() == 0 and value.is_floating_point(),
            f"term {name!r} must be a scalar tensor of a floating-point type; found {value!r}",
        )
        require(
            value.isfinite(),
            f"term {name!r} must be finite; it is {value.item()} where {share} of the tokens are replaced, "
            f"at prefix_length {inputs.prefix_length}",
        )
    total: Tensor = torch.stack([value.float() for value in terms.values()]).sum()
    return total


@torch.no_grad()
def _check_terms(module: nn.Module, inputs: _Inputs) -> None:
    everything = torch.ones_like(inputs.replaced_BN)
    nothing = torch.zeros_like(inputs.replaced_BN)
    # Compared afterwards: other regularizers read the same tensors.
    before = [tensor.clone() for tensor in (*inputs.hidden.values(), inputs.tokens_BN, inputs.replaced_BN)]
    for training in (True, False):
        module.train(training)
        # A mean over no tokens is NaN: the usual mistake, which all or none replaced brings out.
        for replaced_BN in (nothing, everything, inputs.replaced_BN):
            total = _terms(module, inputs, replaced_BN)
    after = (*inputs.hidden.values(), inputs.tokens_BN, inputs.replaced_BN)
    require(
        all(torch.equal(one, other) for one, other in zip(before, after, strict=True)),
        "a regularizer must not write into its arguments, which others read too",
    )
    again = _terms(module, inputs, inputs.replaced_BN)
    require(torch.equal(total, again), "in eval mode, the same input must give the same terms")


def _check_gradients(module: nn.Module, layers: object, inputs: _Inputs) -> None:
    module.train()
    module.zero_grad()
    hidden = {layer: states.clone().requires_grad_() for layer, states in inputs.hidden.items()}
    total = _terms(module, inputs, inputs.replaced_BN, hidden)
    require(total.requires_grad, "the terms of a regularizer must depend on the hidden states; they carry no gradient")
    total.backward()
    require_gradients(module, "regularizer")
    read = {layer: states.grad for layer, states in hidden.items() if states.grad is not None}
    require(read, "the terms of a regularizer must reach the hidden states; none of them gets a gradient")
    require(all(grad.isfinite().all() for grad in read.values()), "hidden states must get finite gradients")
    # In training, the output of a block that is not listed is missing, unless another regularizer reads it.
    surplus = sorted(read.keys() - set(layers))  # type: ignore[call-overload]
    require(not surplus, f"a regularizer must list in layers every block that it reads; it also reads {surplus}")
    module.zero_grad()


def _check_codebook(module: nn.Module, context: RegularizerContext, codebook_VZ: Tensor) -> None:
    require(
        codebook_VZ.grad is None,
        "the tokenizer's codebook must get no gradient from a regularizer: detach context.codebook_VZ",
    )
    require(context.codebook_VZ is codebook_VZ, "a regularizer must not change its context")
    # By memory: a parameter that is a view of the codebook would train it.
    storage = codebook_VZ.untyped_storage().data_ptr()
    shared = [name for name, value in module.named_parameters() if value.untyped_storage().data_ptr() == storage]
    require(not shared, f"the tokenizer's codebook must not be a parameter of the regularizer; {', '.join(shared)} is")


@torch.no_grad()
def _check_state(
    build: Callable[[RegularizerContext], Regularizer], context: RegularizerContext, module: nn.Module, inputs: _Inputs
) -> None:
    # Another seed, so that the second regularizer starts with other weights than the first.
    torch.manual_seed(1)
    second = require_module(build(context), "regularizer")
    copy_state(module, second, "regularizer")
    total = _terms(module.eval(), inputs, inputs.replaced_BN)
    loaded = _terms(second.eval(), inputs, inputs.replaced_BN)
    require(
        torch.equal(total, loaded),
        "a second regularizer with the first's state dict must give the same terms; "
        f"their sum is {loaded.item():g}, not {total.item():g}",
    )


@torch.no_grad()
def _check_bfloat16(module: nn.Module, inputs: _Inputs) -> None:
    """Check the terms in bfloat16: DeepSpeed casts parameters and buffers, and tensors made on the way must follow."""
    module.to(torch.bfloat16)
    hidden = {layer: states.bfloat16() for layer, states in inputs.hidden.items()}
    try:
        _terms(module, inputs, inputs.replaced_BN, hidden)
    except RuntimeError as error:
        raise AssertionError(f"a regularizer must run when it is cast to bfloat16: {error}") from error
