"""What each kind of component must do. The stages rely on nothing else.

Tokenizers, backbones and regularizers are modules: they inherit from the classes here, which are `nn.Module`. Datasets
and noise schedules are plain objects with the methods named here.

Shape letters, in all of rearkit: B batch, N image tokens, T positions in the transformer's sequence, D hidden width, V
codes in the codebook, Z embedding width of a code, C classes, R image side, H × W height and width. Images are float32
in [0, 1] or uint8 in [0, 255], channels first; tokens and classes are int64. ``rearkit.testing`` checks a component
against its contract.

How each kind is built, from the ``build`` of its `rearkit.registry.component.Component`:

=============  ======================================================================================
dataset        ``build(settings) -> Dataset``
tokenizer      ``build(settings) -> Tokenizer``
backbone       ``build(settings, space: TokenSpace) -> Backbone``
noise          ``build(settings) -> NoiseSchedule``, or ``build(settings, context: NoiseContext)``
regularizer    ``build(settings, context: RegularizerContext) -> Regularizer``
=============  ======================================================================================

Modules have four rules in common. In eval mode, their output depends only on the input, row by row. Their state dict
contains, as tensors, everything that the output depends on, so that a second instance can load it. Every trained
parameter contributes to the loss, and has a dimension or more (``torch.ones(1)``). Tensors that they create have their
parameters' device and dtype, since bf16 training casts parameters and buffers.
"""

from __future__ import annotations

from rearkit.contracts.breaches import MODULES
from rearkit.contracts.datasets import SPLITS, Classes, Dataset, ImageSample
from rearkit.contracts.image_sizes import ImageSize, height_width, is_square, size_argument, size_text
from rearkit.contracts.methods import (
    NoiseContext,
    NoiseSchedule,
    NoiseStep,
    Regularizer,
    RegularizerContext,
    StepTaken,
    TrainingStep,
)
from rearkit.contracts.modules import (
    EXTRA,
    Backbone,
    FitPass,
    FittableTokenizer,
    PublishedLayout,
    Tokenizer,
    TokenSpace,
    grid_of,
    num_parameters,
    square_side,
)

__all__ = [
    "EXTRA",
    "MODULES",
    "SPLITS",
    "Backbone",
    "Classes",
    "Dataset",
    "FitPass",
    "FittableTokenizer",
    "ImageSample",
    "ImageSize",
    "NoiseContext",
    "NoiseSchedule",
    "NoiseStep",
    "PublishedLayout",
    "Regularizer",
    "RegularizerContext",
    "StepTaken",
    "TokenSpace",
    "Tokenizer",
    "TrainingStep",
    "grid_of",
    "height_width",
    "is_square",
    "num_parameters",
    "size_argument",
    "size_text",
    "square_side",
]
