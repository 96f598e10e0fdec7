"""The six stages of a run, in order."""

from __future__ import annotations

from rearkit.stages import data, tokenizer, tokens
from rearkit.stages import evaluate as evaluation
from rearkit.stages import sample as sampling
from rearkit.stages import train as training
from rearkit.stages.stage import Stage

STAGES: tuple[Stage, ...] = (
    data.STAGE,
    tokenizer.STAGE,
    tokens.STAGE,
    training.STAGE,
    sampling.STAGE,
    evaluation.STAGE,
)
NAMES = tuple(stage.name for stage in STAGES)
