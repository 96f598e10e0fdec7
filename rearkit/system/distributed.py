"""Ranks: one process by default, many under any launcher that says so in the environment.

torchrun, DeepSpeed's launcher and ``run --num-gpus`` set RANK, WORLD_SIZE and LOCAL_RANK; under Slurm's ``srun`` they
are derived from its own variables. Every launcher ends in the same code path.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from rearkit.errors import EXIT_INTERNAL, RearkitError

T = TypeVar("T")
# Ranks wait for the first while it prepares data, which may take hours; a rank that dies is its launcher's to notice.
PATIENCE = timedelta(days=2)


def adopt_slurm() -> None:
    """Under ``srun``, set what the other launchers set; elsewhere, do nothing."""
    environment = os.environ
    if "RANK" in environment or "SLURM_STEP_ID" not in environment:
        return
    # Of the step where Slurm tells them: a job may have several steps, and nodes that none of them is on.
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    if int(tasks) < 2:
        return
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = tasks
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    if "MASTER_ADDR" not in environment:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
        command = ["scontrol", "show", "hostnames", nodes]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise RearkitError(f"srun: cannot tell the first node ({error}); set MASTER_ADDR to its name") from None
        environment["MASTER_ADDR"] = listed.split()[0]
    step = int(environment.get("SLURM_JOB_ID", "0")) + 101 * int(environment["SLURM_STEP_ID"])
    environment.setdefault("MASTER_PORT", str(20_000 + step % 20_000))


def world_size() -> int:
    """Return the number of ranks that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's rank."""
    return int(os.environ.get("RANK", "0"))


def local_device(device: torch.device) -> torch.device:
    """Return this rank's own device of a kind."""
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


def start(device: torch.device) -> None:
    """Join the other ranks: gloo on CPUs, nccl on CUDA. A lone process needs no port and no launcher."""
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world_size() == 1:
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
            os.environ.setdefault(name, value)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    else:
        dist.init_process_group(backend, timeout=PATIENCE)


def leave() -> None:
    """Part from the other ranks before the interpreter ends; gloo's threads, still running then, may abort it."""
    if several():
        dist.destroy_process_group()


def several() -> bool:
    """Tell whether there are other ranks to agree with."""
    return dist.is_initialized() and dist.get_world_size() > 1


def barrier() -> None:
    """Wait for all ranks."""
    if several():
        dist.barrier()


def from_main(work: Callable[[], T]) -> T:
    """Let rank 0 do some work and give its result to all; where it fails, the others exit with its code."""
    if not several():
        return work()
    result: list[tuple[bool, T | int]] = [(False, EXIT_INTERNAL)]
    try:
        if rank() == 0:
            result = [(True, work())]
    except RearkitError as error:
        result = [(False, error.exit_code)]
        raise
    finally:
        dist.broadcast_object_list(result)
    worked, value = result[0]
    if not worked:
        raise SystemExit(value)
    return value  # type: ignore[return-value]


def from_all(value: T) -> list[T]:
    """Give every rank the values of all, in the order of their ranks."""
    if not several():
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def together(work: Callable[[], T]) -> list[T]:
    """Let all ranks do their part, and return all results in the order of the ranks.

    Raises:
        RearkitError: what one of them met; all raise it.
    """
    if not several():
        return [work()]
    outcome: tuple[T | None, RearkitError | None]
    try:
        outcome = work(), None
    except RearkitError as error:
        outcome = None, error
    outcomes = from_all(outcome)
    for _, failure in [outcome, *outcomes]:  # one's own first, since it has its cause with it
        if failure is not None:
            raise failure
    return [result for result, _ in outcomes]  # type: ignore[misc]


def mean_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Average named numbers over the ranks."""
    if not several():
        return values
    tensor = torch.tensor(list(values.values()), device=device, dtype=torch.float64 if device.type == "cpu" else None)
    dist.all_reduce(tensor)
    return dict(zip(values, (tensor / dist.get_world_size()).tolist(), strict=True))


def most_over_ranks(value: int, device: torch.device) -> int:
    """Return the largest of a number over the ranks."""
    if not several():
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)
