"""``plan``: estimate what a recipe's training needs."""

from __future__ import annotations

from typing import Any

import click

from rearkit.cli.examples import Command
from rearkit.cli.given import Given
from rearkit.cli.options import FiniteRange, recipe_options, size_option

# The defaults below are a usual node for training: eight A100s with 80 GB each.
POSITIVE = FiniteRange(0, min_open=True)


@click.command(cls=Command, example="plan rear_b_maskgit --gpus 8")
@recipe_options
@click.option("--gpus", type=click.IntRange(1), default=8, show_default=True, help="Accelerators, over all nodes.")
@click.option("--gpu-memory", type=POSITIVE, default=80.0, show_default=True, help="Memory of each accelerator, GiB.")
@click.option(
    "--gpu-tflops",
    type=POSITIVE,
    default=312.0,
    show_default=True,
    help="Peak of each in the recipe's precision, TFLOP/s; 312 is an A100 in bf16 (NVIDIA's data sheet).",
)
@click.option(
    "--utilisation",
    type=FiniteRange(0, 1, min_open=True),
    default=0.4,
    show_default=True,
    help="Share of the peak that training reaches.",
)
@click.option(
    "--reserve",
    type=FiniteRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the memory to keep free for driver, libraries and fragmentation.",
)
@click.option("--node", type=click.IntRange(1), default=8, show_default=True, help="Accelerators of one node.")
@click.option(
    "--within-node",
    type=POSITIVE,
    default=300.0,
    show_default=True,
    help="What each sends to others of its node, GB/s; 300 is an A100's NVLink (NVIDIA's data sheet).",
)
@click.option(
    "--between-nodes",
    type=POSITIVE,
    default=25.0,
    show_default=True,
    help="What each sends to other nodes, GB/s; 25 is one port of 200 Gbit/s for each.",
)
@size_option("other than the recipe's")
def plan(given: Given, gpus: int, gpu_memory: float, gpu_tflops: float, utilisation: float, **options: Any) -> None:
    """Estimate parameters, operations, time, memory and disk of RECIPE. Needs no data, weights or GPU."""
    from rearkit.planning.machine import Machine
    from rearkit.planning.plan import make_plan
    from rearkit.planning.plan_tables import print_plan, sampling_table, scaling_table
    from rearkit.planning.scaling import RANKS, scaling
    from rearkit.planning.step_memory import GIB
    from rearkit.stages.resizing import only_sampled, resized
    from rearkit.system.console import console

    recipe = given.recipe
    if options["size"] is not None:
        recipe = resized(recipe, options["size"])
    machine = Machine(
        gpus,
        gpu_memory * GIB,
        gpu_tflops,
        utilisation,
        options["reserve"],
        cuda=recipe.device != "cpu",
        node=options["node"],
        within=options["within_node"] * 1e9,
        between=options["between_nodes"] * 1e9,
    )
    if only_sampled(recipe):
        console.print(sampling_table(recipe, machine))
        return
    made = make_plan(recipe, machine)
    print_plan(recipe, machine, made)
    if machine.cuda:
        console.print(scaling_table(scaling(recipe, machine, made.flops, sorted({*RANKS, gpus}))))
