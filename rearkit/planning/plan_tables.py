"""A plan as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from rearkit.model import build_tokenizer
from rearkit.planning.machine import Machine
from rearkit.planning.measure import SamplingMemory, sampling_memory
from rearkit.planning.plan import Plan, gib
from rearkit.planning.scaling import Scale
from rearkit.planning.sizes import image_rows
from rearkit.planning.step_memory import STAGES
from rearkit.recipe.tables import Recipe
from rearkit.system.console import console

# Of a step that is computed faster, a GPU spends most on launching kernels.
SHORT_STEP_S = 0.02
SMALL = "; the launches of kernels are not counted, and take most of so small a step"


def print_plan(recipe: Recipe, machine: Machine, plan: Plan) -> None:
    """Print a plan: its figures, the memory of a training rank, and how to read that table."""
    told = f"on {machine.ranks} × {gib(machine.memory)} (--gpus, --gpu-memory)"
    table = Table("what", "value", title=f"Plan of {recipe.name} {told}", title_justify="left")
    for name, value in plan_rows(recipe, machine, plan).items():
        table.add_row(name, value)
    console.print(table)
    console.print(memory_table(recipe, machine, plan))
    console.print(
        f"a rank has {gib(machine.memory)}; {machine.reserve:.0%} of it stay free for driver, libraries and "
        "fragmentation; what fits is green and marked +, the recipe's own choice is bold and marked *"
    )


def plan_rows(recipe: Recipe, machine: Machine, plan: Plan) -> dict[str, str]:
    """Return every figure except a training rank's memory, as text by name."""
    epochs = "" if plan.epochs is None else f", {plan.epochs:,.1f} epochs"
    shards = "unknown, since the dataset does not say how many images it has"
    return {
        "backbone parameters": f"{plan.backbone_parameters:,}",
        "training-only head parameters": f"{plan.head_parameters:,}",
        **({"frozen copies' parameters": f"{plan.frozen_parameters:,}"} if plan.frozen_parameters else {}),
        "global batch": f"{recipe.train.global_batch:,} = {machine.ranks} ranks × {plan.micro_batch} × "
        f"{plan.accumulation} accumulated",
        "operations of a step": f"{plan.flops / 1e12:,.3f} TFLOP (forward and backward, attention and heads included)",
        "steps": f"{plan.steps:,}{epochs}",
        "image tokens": f"{plan.tokens:,}",
        "training time": f"{duration(plan.seconds)} at {machine.utilisation:.0%} of {machine.tflops:g} TFLOP/s a rank"
        + (SMALL if machine.cuda and plan.seconds < SHORT_STEP_S * plan.steps else ""),
        "disk: token shards": shards if plan.token_shards is None else gib(plan.token_shards),
        "disk: checkpoints": f"{gib(plan.checkpoint)} each, {plan.checkpoints} at most "
        f"({gib(plan.checkpoint * plan.checkpoints)})",
        "disk: exported model": gib(plan.export),
        **sampling_rows(recipe, plan.sampling),
    }


def sampling_rows(recipe: Recipe, sampling: SamplingMemory) -> dict[str, str]:
    """Return what sampling takes, as text by name."""
    return {
        "sampling: key-value cache": f"{gib(sampling.cache)} at {recipe.sample.batch} images a batch"
        + ("" if recipe.sample.guidance_scale == 1 else ", twice that many rows with guidance"),
        "sampling: all of a rank": f"{gib(sampling.total)} in float32, tokenizer included",
    }


def sampling_table(recipe: Recipe, machine: Machine) -> Table:
    """Make the table of a recipe that can only be sampled: its images are no squares."""
    table = Table("what", "value", title=f"Plan of {recipe.name}", title_justify="left")
    rows = image_rows(build_tokenizer(recipe, load=False))
    for name, value in (rows | sampling_rows(recipe, sampling_memory(recipe, machine.cuda))).items():
        table.add_row(name, value)
    return table


def memory_table(recipe: Recipe, machine: Machine, plan: Plan) -> Table:
    """Make the table of a training rank's memory by ZeRO stage and micro-batch, with its parts below."""
    stages = [f"ZeRO {stage}" for stage in STAGES]
    table = Table("micro-batch", "activations", *stages, title="Memory of a training rank", title_justify="left")
    for size, by_stage in plan.memory.items():
        cells = []
        for stage, memory in by_stage.items():
            fits = memory.total <= machine.usable
            own = stage == recipe.train.zero_stage and size == plan.micro_batch
            # Signs as well as colours: output may be piped to a file, and not everybody can tell red from green.
            style = f"{'bold ' if own else ''}{'green' if fits else 'red'}"
            cells.append(f"[{style}]{gib(memory.total)} {'+' if fits else '-'}{' *' if own else ''}[/{style}]")
        table.add_row(str(size), gib(by_stage[STAGES[-1]].activations), *cells)
    table.add_section()
    # These parts are the same for each micro-batch, so any one of them will do.
    first = next(iter(plan.memory.values()))
    parts = ["weights", "gradients", "optimizer", "buffer"]
    if any(memory.offloaded for memory in first.values()):
        parts.append("offloaded")  # on top: not part of the sums above
    for part in parts:
        table.add_row(part, "", *(gib(getattr(first[stage], part)) for stage in STAGES))
    return table


def scaling_table(scales: Sequence[Scale]) -> Table:
    """Make the table of a training's cost by number of accelerators."""
    columns = ("GPUs", "micro-batch", "a step", "MFU", "hours", "GPU-hours", "what limits it")
    table = Table(*columns, title="The same training on other numbers of these GPUs", title_justify="left")
    for scale in scales:
        if not scale.micro_batch:
            table.add_row(str(scale.ranks), *[""] * 5, scale.why)
            continue
        table.add_row(
            str(scale.ranks),
            f"{scale.micro_batch} × {scale.accumulation}",
            f"{scale.compute + scale.communication:.3f} s",
            f"{scale.utilisation:.1%}",
            f"{scale.hours:,.1f}",
            f"{scale.hours * scale.ranks:,.0f}",
            scale.why,
        )
    return table


def duration(seconds: float) -> str:
    """Format seconds in the largest unit that they fill: days, hours, minutes or seconds."""
    for name, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:.1f} seconds"
