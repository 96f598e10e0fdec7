"""The contract of a regularizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from rearkit.contracts import Backbone, Regularizer, RegularizerContext, TokenSpace, TrainingStep
from rearkit.contracts.methods import LOGGED_ONLY, OPTIONAL
from rearkit.objective import fields_read, regularizer_terms
from rearkit.testing.clauses import (
    copy_state,
    named,
    require,
    require_gradients,
    require_module,
    require_parameters,
    seeded,
    stir,
)
from rearkit.testing.placement import check_regularizer_placed
from rearkit.testing.toy import ToyBackbone

# V and Z of two codebooks: Z smaller and larger than the hidden size, and than V.
CODEBOOKS = ((11, 3), (40, 300))
# Lengths of the prefix: a regularizer must not count on one backbone's.
PREFIXES = (1, 2, 3)
ROWS, CLASSES, SIDE = 4, 3, 16
TRAINED = "the hidden states, the logits or the backbone"


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
            space = TokenSpace(num_tokens, codebook_size, CLASSES)
            for prefix_length in PREFIXES:
                backbone = ToyBackbone(space, hidden_size, num_layers, prefix_length)
                context = RegularizerContext(hidden_size, num_layers, codebook_VZ, space, backbone)
                module = require_module(build(context), "regularizer")
                _check_attributes(module, num_layers)
                require_parameters(module, "regularizer")
                stir(module)
                inputs = _Inputs(context, prefix_length)
                _check_reads(module, inputs)
                _check_terms(module, inputs)
                _check_gradients(module, inputs)
                _check_codebook(module, context, codebook_VZ)
            _check_state(build, context, module, inputs)
            _check_after_step(module, inputs)
            _check_bfloat16(module, inputs)
            check_regularizer_placed(build, context, inputs.step(inputs.replaced_BN))


class _Inputs:
    """A step with the outputs of all blocks, since other regularizers may have asked for more."""

    def __init__(self, context: RegularizerContext, prefix_length: int) -> None:
        assert context.space is not None
        assert context.backbone is not None
        N, V = context.space.num_tokens, context.space.codebook_size
        shape = (ROWS, prefix_length + N, context.hidden_size)
        self.backbone = context.backbone
        self.hidden = {layer: torch.randn(shape) for layer in range(context.num_layers)}
        self.logits_BNV = torch.randn(ROWS, N, V)
        self.tokens_BN = torch.randint(V, (ROWS, N))
        # Half of each row, so that terms over replaced tokens and terms over kept ones both have some.
        self.replaced_BN = torch.arange(N).expand(ROWS, -1) % 2 == 0
        self.prefix_length = prefix_length
        self.images = torch.rand(ROWS, 3, SIDE, SIDE)
        self.classes_B = torch.arange(ROWS) % (CLASSES + 1)

    def step(self, replaced_BN: Tensor, **fields: Any) -> TrainingStep:
        """Return the step with these tokens replaced, and with other fields where they are given."""
        given = {"hidden": self.hidden, "logits_BNV": self.logits_BNV, "backbone": self.backbone, **fields}
        return TrainingStep(
            tokens_BN=self.tokens_BN,
            replaced_BN=replaced_BN,
            prefix_length=self.prefix_length,
            context_BN=self.tokens_BN.where(~replaced_BN, 0),
            classes_B=self.classes_B,
            progress=0.5,
            images=self.images,
            **given,
        )

    def tensors(self) -> list[Tensor]:
        """Return all tensors that a regularizer is handed, besides parameters."""
        given = (self.logits_BNV, self.tokens_BN, self.replaced_BN, self.images, self.classes_B)
        return [*self.hidden.values(), *given]


def _check_attributes(regularizer: nn.Module, num_layers: int) -> None:
    weight = getattr(regularizer, "weight", None)
    layers = getattr(regularizer, "layers", None)
    reads = getattr(regularizer, "reads", ())
    require(
        isinstance(weight, int | float) and math.isfinite(weight),
        f"regularizer.weight must be a finite number; found {weight!r}",
    )
    require(
        isinstance(layers, list | tuple) and all(type(layer) is int for layer in layers),
        f"regularizer.layers must list the blocks that it reads; {named(regularizer)} has {layers!r}",
    )
    assert layers is not None
    require(
        all(0 <= layer < num_layers for layer in layers),
        f"regularizer.layers must lie in the backbone, whose blocks are 0 to {num_layers - 1}; found {list(layers)}",
    )
    require(
        isinstance(reads, list | tuple) and all(field in OPTIONAL for field in reads),
        f"regularizer.reads must list fields among {', '.join(OPTIONAL)}; found {reads!r}",
    )


def _check_reads(module: nn.Module, inputs: _Inputs) -> None:
    """Check that a regularizer does without the fields that it does not list."""
    step = inputs.step(inputs.replaced_BN)
    try:
        regularizer_terms(module, step)
    except Exception as error:
        # With all fields it works, so it lacked one.
        try:
            module(step)
        except Exception:
            raise error from None
        missing = [field for field in OPTIONAL if field not in fields_read(module)]
        raise AssertionError(
            f"a regularizer must list in reads what it reads; {named(module)} needs one of {', '.join(missing)}"
        ) from error


def _terms(module: nn.Module, inputs: _Inputs, replaced_BN: Tensor, **fields: Any) -> Tensor:
    """Check each term, and return the sum of those that are added to the loss."""
    terms = regularizer_terms(module, inputs.step(replaced_BN, **fields))
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
    added = [value.float() for name, value in terms.items() if not name.startswith(LOGGED_ONLY)]
    # None are added by a regularizer that only logs.
    total: Tensor = torch.stack(added).sum() if added else torch.zeros(())
    return total


@torch.no_grad()
def _check_terms(module: nn.Module, inputs: _Inputs) -> None:
    everything = torch.ones_like(inputs.replaced_BN)
    nothing = torch.zeros_like(inputs.replaced_BN)
    # Compared afterwards: other regularizers read the same tensors.
    before = [tensor.clone() for tensor in inputs.tensors()]
    for training in (True, False):
        module.train(training)
        # A mean over no tokens is NaN: the usual mistake, which all or none replaced brings out.
        for replaced_BN in (nothing, everything, inputs.replaced_BN):
            total = _terms(module, inputs, replaced_BN)
    require(
        all(torch.equal(one, other) for one, other in zip(before, inputs.tensors(), strict=True)),
        "a regularizer must not write into its arguments, which others read too",
    )
    again = _terms(module, inputs, inputs.replaced_BN)
    require(torch.equal(total, again), "in eval mode, the same input must give the same terms")


def _check_gradients(module: nn.Module, inputs: _Inputs) -> None:
    module.train()
    module.zero_grad()
    inputs.backbone.zero_grad()
    hidden = {layer: states.clone().requires_grad_() for layer, states in inputs.hidden.items()}
    logits_BNV = inputs.logits_BNV.clone().requires_grad_()
    names = regularizer_terms(module, inputs.step(inputs.replaced_BN))
    if all(name.startswith(LOGGED_ONLY) for name in names):
        return
    total = _terms(module, inputs, inputs.replaced_BN, hidden=hidden, logits_BNV=logits_BNV)
    require(total.requires_grad, f"the terms of a regularizer must depend on {TRAINED}; they carry no gradient")
    total.backward()
    require_gradients(module, "regularizer")
    blocks = {layer: states.grad for layer, states in hidden.items() if states.grad is not None}
    reached = [*blocks.values(), logits_BNV.grad, *(p.grad for p in inputs.backbone.parameters())]
    gradients = [grad for grad in reached if grad is not None]
    require(gradients, f"the terms of a regularizer must reach {TRAINED}; none of them gets a gradient")
    require(all(grad.isfinite().all() for grad in gradients), "what a regularizer reads must get finite gradients")
    # In training, the output of a block that is not listed is missing, unless another regularizer reads it.
    surplus = sorted(blocks.keys() - set(module.layers))  # type: ignore[arg-type]
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


@attrs.frozen(eq=False)
class _Taken:
    """See `rearkit.contracts.StepTaken`."""

    backbone: Backbone
    done: int = 1
    progress: float = 0.5

    def average(self, teacher: nn.Module, student: nn.Module, decay: float) -> None:
        for own, followed in zip(teacher.parameters(), student.parameters(), strict=True):
            require(
                not own.requires_grad, "a teacher's parameters must need no gradient: teacher.requires_grad_(False)"
            )
            own.lerp_(followed, 1 - decay)


@torch.no_grad()
def _check_after_step(module: nn.Module, inputs: _Inputs) -> None:
    after_step = getattr(module, "after_step", None)
    if after_step is None:
        return
    before = [p.clone() for p in (*inputs.backbone.parameters(), *_trained(module))]
    after_step(_Taken(inputs.backbone))
    after = [*inputs.backbone.parameters(), *_trained(module)]
    require(
        all(torch.equal(one, other) for one, other in zip(before, after, strict=True)),
        "after_step must leave trained parameters alone, which the optimizer steps",
    )


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@torch.no_grad()
def _check_bfloat16(module: nn.Module, inputs: _Inputs) -> None:
    """Check the terms in bfloat16: DeepSpeed casts parameters and buffers, and tensors made on the way must follow."""
    module.to(torch.bfloat16)
    low: dict[str, Any] = {
        "hidden": {layer: states.bfloat16() for layer, states in inputs.hidden.items()},
        "logits_BNV": inputs.logits_BNV.bfloat16(),
        "backbone": copy.deepcopy(inputs.backbone).to(torch.bfloat16),
    }
    try:
        _terms(module, inputs, inputs.replaced_BN, **low)
    except RuntimeError as error:
        raise AssertionError(f"a regularizer must run when it is cast to bfloat16: {error}") from error
