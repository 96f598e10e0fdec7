"""The commands of ``python -m rearkit``, one file for those that belong together.

What they run is imported inside them, so that ``--help`` and a mistake in an option answer at once.
"""

from __future__ import annotations

import click

from rearkit.commands.comparing import compare, diagnose, sweep
from rearkit.commands.components import new_plugin, plugins
from rearkit.commands.evaluate import evaluate
from rearkit.commands.plan import plan
from rearkit.commands.show import show
from rearkit.commands.stages import data, run, sample, tokenizer, tokens, train
from rearkit.commands.weights import convert

COMMANDS: tuple[click.Command, ...] = (
    run,
    data,
    tokenizer,
    tokens,
    train,
    sample,
    evaluate,
    sweep,
    compare,
    diagnose,
    show,
    plan,
    plugins,
    convert,
    new_plugin,
)
