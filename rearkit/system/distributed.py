"""Ranks: one process by default, several under any launcher that sets the usual environment variables.

torchrun, DeepSpeed's launcher and ``run --num-gpus`` set RANK, WORLD_SIZE and LOCAL_RANK; under Slurm's ``srun`` they
are derived from Slurm's variables. From there on, all launchers take the same code path.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]

from rearkit.errors import EXIT_INTERNAL, RearkitError
from rearkit.system.ranks import rank as rank
from rearkit.system.ranks import world_size as world_size
from rearkit.system.rendezvous import looks, meet
from rearkit.system.signals import exit_code

T = TypeVar("T")
# Other ranks wait while rank 0 prepares data, which may take hours, so torch's default of minutes is too short.
# A rank that dies is noticed by its launcher, which then stops the others; this timeout is not needed for that.
PATIENCE = timedelta(days=2)
# Of tensors exchanged by NCCL within a step, for which no rank waits long: one that hangs is stopped. Longer than
# `[train.guards] data_timeout`, whose message names the shard.
STEP_PATIENCE = timedelta(minutes=20)
# Of all ranks, where `start` has made one; with the numbers of the calls of `from_main`.
_stores: list[tuple[Store, Iterator[int]]] = []
# On CUDA, objects and waits go through gloo: waiting in NCCL keeps a GPU busy, and meets its time-out.
_waiting: list[dist.ProcessGroup] = []
# A context variable, since quantizers sum over a batch deep inside a tokenizer's loss.
_divided: ContextVar[bool] = ContextVar("divided_batch", default=False)


def adopt_slurm() -> None:
    """Under ``srun``, set the variables that other launchers set; otherwise do nothing."""
    environment = os.environ
    # A launcher started by srun has set RANK itself, and Slurm's numbers would be those of the launchers.
    if "RANK" in environment or "SLURM_STEP_ID" not in environment:
        return
    # The step's own values where Slurm gives them: a job may have several steps, and nodes that a step does not use.
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1")
    # One task runs as a lone process, which needs no address and no port.
    if int(tasks) < 2:
        return
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["WORLD_SIZE"] = tasks
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    if "MASTER_ADDR" not in environment:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
        # Slurm abbreviates lists of nodes (node[01-04]); scontrol expands them.
        command = ["scontrol", "show", "hostnames", nodes]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise RearkitError(f"srun: cannot find the first node ({error}); set MASTER_ADDR to its name") from None
        environment["MASTER_ADDR"] = listed.split()[0]
    # All ranks derive the same port without talking to each other. It comes from the numbers of the job and the step,
    # so that two of them on one node get different ports.
    step = int(environment.get("SLURM_JOB_ID", "0")) + 101 * int(environment["SLURM_STEP_ID"])
    environment.setdefault("MASTER_PORT", str(20_000 + step % 20_000))


def local_device(device: torch.device) -> torch.device:
    """Return this rank's device of the same type, and make it CUDA's current device.

    Raises:
        RearkitError: there are fewer devices than ranks on this machine.
    """
    if device.type == "cuda":
        seen = torch.cuda.device_count()
        # `srun --gpus-per-task=1` and `--gpu-bind` show a rank only its own. A shell may keep another job's LOCAL_RANK.
        local = 0 if seen == 1 or world_size() == 1 else int(os.environ.get("LOCAL_RANK", "0"))
        if local >= seen:
            raise RearkitError(
                f"rank {rank()} is number {local} on its machine, counted from 0, and torch sees {seen} GPUs there; "
                f'start at most {seen} ranks on a machine, or use device = "cpu"'
            )
        device = torch.device("cuda", local)
        # NCCL, and code that says just "cuda", use the current device.
        torch.cuda.set_device(device)
    return device


def start(device: torch.device) -> None:
    """Initialise the process group: gloo on CPUs, NCCL on CUDA. A lone process needs no port and no launcher."""
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world_size() == 1:
        # DeepSpeed reads these variables and needs a process group, even for one process.
        os.environ["RANK"] = "0"
        for name, value in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
            os.environ.setdefault(name, value)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        return
    store = meet(rank(), world_size(), PATIENCE)
    _stores.append((store, itertools.count(1)))
    dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=_patience(backend))
    if backend == "nccl":
        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        # Every rank is a member of it, and so gets no mark of one that is not.
        assert isinstance(group, dist.ProcessGroup)
        _waiting.append(group)


def _patience(backend: str) -> timedelta:
    return PATIENCE if backend == "gloo" else STEP_PATIENCE


@contextlib.contextmanager
def patient_groups() -> Iterator[None]:
    """Within this context, new groups that name no time-out have the default group's.

    DeepSpeed makes groups of its own and names none; torch's is 10 minutes with NCCL, whatever the default group's is.
    """
    new_group = dist.new_group
    dist.new_group = lambda *ranks, **named: new_group(*ranks, **{"timeout": _patience(dist.get_backend()), **named})
    try:
        yield
    finally:
        dist.new_group = new_group


def _patient() -> dist.ProcessGroup | None:
    """Return the group for objects and waits; None stands for the default one."""
    return _waiting[0] if _waiting else None


def leave() -> None:
    """Destroy the process group if there are several ranks."""
    if several():
        # gloo's threads may abort the interpreter if they still run when it exits.
        dist.destroy_process_group()
        _waiting.clear()
        _stores.clear()


def several() -> bool:
    """Return whether there is more than one rank."""
    return dist.is_initialized() and dist.get_world_size() > 1


def barrier() -> None:
    """Wait until all ranks have come here."""
    if several():
        dist.barrier(_patient())


def from_main(work: Callable[[], T]) -> T:
    """Run ``work`` on rank 0 and return its result on all ranks.

    If it fails, rank 0 raises the error, and the other ranks exit with its code: one message is enough. The work may
    take any time: the others look for its end again and again, so that no group's time-out applies and a signal ends
    them.
    """
    if not several():
        return work()
    for store, calls in _stores:
        call = next(calls)
        # The waiting is in Python.
        for _ in looks() if rank() else ():
            if store.add("from_main", 0) >= call:
                break
    # Sent as it is if rank 0 meets an error other than a RearkitError.
    result: list[tuple[bool, T | int]] = [(False, EXIT_INTERNAL)]
    try:
        if rank() == 0:
            result = [(True, work())]
    except RearkitError as error:
        result = [(False, error.exit_code)]
        raise
    except KeyboardInterrupt:
        result = [(False, exit_code())]
        raise
    finally:
        for store, _ in _stores if rank() == 0 else ():
            store.add("from_main", 1)
        # In any case, an error included: the other ranks wait in this call, and would wait for days.
        dist.broadcast_object_list(result, group=_patient())
    worked, value = result[0]
    if not worked:
        raise SystemExit(value)
    return value  # type: ignore[return-value]


def from_all(value: T) -> list[T]:
    """Return the values of all ranks, in rank order, on every rank."""
    if not several():
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_patient())
    return values


def together(work: Callable[[], T]) -> list[T]:
    """Run ``work`` on all ranks and return all results, in rank order, on every rank.

    Raises:
        RearkitError: the error of any rank; every rank raises it.
    """
    if not several():
        return [work()]
    outcome: tuple[T | None, RearkitError | None]
    try:
        outcome = work(), None
    except RearkitError as error:
        outcome = None, error
    # Errors are exchanged like results: a rank that raised at once would leave the others waiting in their next
    # collective call.
    outcomes = from_all(outcome)
    # This rank's own error first: it still has its cause and traceback, which pickling drops.
    for _, failure in [outcome, *outcomes]:
        if failure is not None:
            raise failure
    return [result for result, _ in outcomes]  # type: ignore[misc]


def mean_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Average each named number over the ranks. The names must be the same on all ranks."""
    if not several():
        return values
    # One tensor, so that one reduction serves all numbers.
    tensor = torch.tensor(list(values.values()), device=device, dtype=torch.float64 if device.type == "cpu" else None)
    dist.all_reduce(tensor)
    return dict(zip(values, (tensor / dist.get_world_size()).tolist(), strict=True))


def most_over_ranks(value: int) -> int:
    """Return the largest of the ranks' values; it does not wait for a GPU."""
    if not several():
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_patient())
    return int(tensor)


@contextlib.contextmanager
def divided_batch() -> Iterator[None]:
    """Within this context, each rank computes a share of a batch, and `summed` and `joined` put the shares together."""
    token = _divided.set(True)
    try:
        yield
    finally:
        _divided.reset(token)


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of the ranks' tensors, within `divided_batch`; else the tensor. All ranks must call this."""
    if several() and _divided.get():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def joined(rows: Tensor) -> Tensor:
    """Return the rows of all ranks, in rank order, while they share a batch; else the rows. All ranks must call this.

    For a tokenizer that starts something from the first batch of its fit: ranks that each started from their own share
    would have different weights from then on.
    """
    if not (several() and _divided.get()):
        return rows
    counts = [0] * world_size()
    counts[rank()] = len(rows)
    numbers: list[int] = summed(torch.tensor(counts, device=rows.device)).tolist()
    first = sum(numbers[: rank()])
    whole = rows.new_zeros(sum(numbers), *rows.shape[1:])
    whole[first : first + len(rows)] = rows
    return summed(whole)


def from_first(tensor: Tensor) -> Tensor:
    """Return the first rank's tensor, of the same shape on all, within `divided_batch`; else the tensor."""
    if several() and _divided.get():
        tensor = tensor.contiguous()
        dist.broadcast(tensor, 0)
    return tensor
