"""The commands of ``python -m rearkit``; related commands share a file.

Commands import what they run inside their functions, so that ``--help`` and mistakes in options answer at once.
"""

from __future__ import annotations

import click

from rearkit.cli.components import new_plugin, plugins
from rearkit.cli.evaluate import evaluate
from rearkit.cli.export import export
from rearkit.cli.plan import plan
from rearkit.cli.recipes import recipes
from rearkit.cli.reconstruct import reconstruct
from rearkit.cli.runs import compare, diagnose, sweep
from rearkit.cli.sample import sample
from rearkit.cli.serve import serve
from rearkit.cli.show import show
from rearkit.cli.stages import data, run, tokenizer, tokens, train
from rearkit.cli.verify import verify
from rearkit.cli.version import version
from rearkit.cli.weights import convert

# In the order of a workflow; click lists them alphabetically.
COMMANDS: tuple[click.Command, ...] = (
    run,
    data,
    tokenizer,
    tokens,
    train,
    sample,
    evaluate,
    reconstruct,
    serve,
    sweep,
    compare,
    diagnose,
    verify,
    recipes,
    show,
    plan,
    plugins,
    export,
    convert,
    new_plugin,
    version,
)
