"""Run a sweep: each run in its own process, several at once. Finished runs are skipped, interrupted ones resume."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch

from rearkit.analysis.table import Group
from rearkit.errors import RearkitError
from rearkit.recipe.tables import Recipe
from rearkit.stages.flow import STAGES
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import save_resolved_recipe
from rearkit.stages.stage import expected_keys, up_to_date
from rearkit.sweeps.sharing import COMMON, UNSCORED, link, prepare_common, take_over
from rearkit.sweeps.sweep import PlannedRun, Sweep
from rearkit.system.console import say
from rearkit.system.locks import try_lock
from rearkit.system.signals import GUARD, StopRequest

LOG = "run.log"
# Seconds between looks at the processes: short beside any run, long enough to cost no processor time.
POLL_S = 0.5


@attrs.define(eq=False)
class Job:
    """The state of one run of the sweep.

    Attributes:
        run: what to run.
        folder: the run's own folder.
        shared: the folder with its stages before training.
        leader: an earlier job that trains the same model, or None.
        donors: earlier runs, whose stages are taken over where they are the same.
        process: its process; None before it starts.
        started: when the process started, in seconds of the monotonic clock.
        over: True once the run has finished or failed.
        trouble: why it failed, or None.
    """

    run: PlannedRun
    folder: RunFolder
    shared: RunFolder
    leader: Job | None
    donors: Sequence[RunFolder]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    over: bool = False
    trouble: str | None = None


def run_sweep(
    sweep: Sweep, root: Path, num_jobs: int | None = None, donors: Sequence[RunFolder] = ()
) -> dict[str, list[RunFolder]]:
    """Bring all runs of a sweep up to date.

    Args:
        sweep: from `load_sweep`.
        root: the sweep's folder, after `claim`.
        num_jobs: processes at once; None for one a GPU, or one a core without GPUs.
        donors: earlier runs, whose stages are taken over where they are the same.

    Returns:
        the folders of the finished runs, by variant.

    Raises:
        RearkitError: some runs failed (after all others have finished).
    """
    jobs = _jobs(sweep, root, donors)
    gpus = visible_gpus(sweep.runs[0].recipe)
    width = num_jobs or len(gpus) or (os.cpu_count() or 1)
    _work(jobs, root, min(width, len(jobs)), gpus)
    # One failed run stops no other: all that can finish has done so before the error is raised.
    failed = [job for job in jobs if job.trouble is not None]
    if failed:
        told = [f"{job.run.name}: {job.trouble}; see {job.folder.path / LOG}" for job in failed]
        raise RearkitError(
            "\n".join([*told, f"{len(failed)} of {len(jobs)} runs failed; run the same command to retry"])
        )
    return finished(sweep, root)


def finished(sweep: Sweep, root: Path) -> dict[str, list[RunFolder]]:
    """Return the folders of the runs whose stages are all up to date, by variant."""
    found: dict[str, list[RunFolder]] = {variant: [] for variant in sweep.variants}
    for run in sweep.runs:
        folder = RunFolder(root / run.name)
        if up_to_date(STAGES, run.recipe, folder):
            found[run.variant].append(folder)
    return found


def finished_groups(sweep: Sweep, root: Path) -> list[Group]:
    """Return the finished runs as a group for each variant, which may be empty."""
    found = finished(sweep, root)
    return [Group(name, found[name], sweep.table.published.get(name)) for name in sweep.variants]


def visible_gpus(recipe: Recipe) -> list[str]:
    """Return the GPUs to spread runs over, as CUDA_VISIBLE_DEVICES names them; empty for a recipe on the CPU."""
    if recipe.device == "cpu" or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def _jobs(sweep: Sweep, root: Path, donors: Sequence[RunFolder]) -> list[Job]:
    """Return a job for each run; the stages before training are run here, since several runs share them."""
    shared = prepare_common((run.recipe for run in sweep.runs), root, donors)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # of a fit: the runs, in processes of their own, count on the memory
    # Runs that differ only after training (in sampling, say) have the same key up to there: the first one trains.
    leaders: dict[str, Job] = {}
    jobs = []
    for run, common in zip(sweep.runs, shared, strict=True):
        training = expected_keys(STAGES, run.recipe)["train"]
        job = Job(run, RunFolder(root / run.name), common, leaders.get(training), donors)
        leaders.setdefault(training, job)
        jobs.append(job)
    return jobs


def _work(jobs: list[Job], root: Path, width: int, gpus: list[str]) -> None:
    """Keep up to ``width`` processes running until no job is left."""
    # A slot is one process at a time on one GPU, so that the runs spread evenly over the GPUs.
    slots: list[Job | None] = [None] * width
    started = time.monotonic()
    waiting = False
    try:
        while not all(job.over for job in jobs):
            for slot, job in enumerate(slots):
                if job is not None and job.process is not None and job.process.poll() is not None:
                    _end(job, jobs, started)
                    slots[slot] = None
                if slots[slot] is None:
                    slots[slot] = _start_next(jobs, root, width, gpus[slot % len(gpus)] if gpus else None)
            if not any(slots) and not waiting and not all(job.over for job in jobs):
                waiting = True
                say("waiting for runs that another process is working on")
            time.sleep(POLL_S)
    finally:
        # All are told to stop before any is waited for, so that they save their checkpoints at the same time.
        working = [job.process for job in jobs if job.process is not None and job.process.poll() is None]
        with GUARD.patient():
            for process in working:
                process.terminate()  # it saves a checkpoint
            for process in working:
                process.wait()


def _start_next(jobs: list[Job], root: Path, width: int, gpu: str | None) -> Job | None:
    """Start the first job that is ready and return it; mark jobs that need no work as over on the way."""
    for job in jobs:
        # A job with a leader waits for it, to take over its trained model.
        if job.over or job.process is not None or (job.leader is not None and not job.leader.over):
            continue
        # Another process may work on the same sweep; a lock says which runs are taken.
        lock = try_lock(root / "locks" / f"{job.run.name}.lock")
        if lock is None:
            continue
        try:
            job.folder.claim(job.run.recipe.name)
            save_resolved_recipe(job.run.recipe, job.folder)
            link(job.shared, job.folder, (*COMMON, "classifier"))
            if job.leader is not None:
                link(job.leader.folder, job.folder, ("train",))
            take_over(job.run.recipe, job.folder, job.donors, UNSCORED)
            # Only now, with the lock held and the links made: another process may have finished the run meanwhile.
            if up_to_date(STAGES, job.run.recipe, job.folder):
                job.over = True
                continue
            _start(job, width, gpu, lock)
            return job
        finally:
            os.close(lock)  # a started process inherited it, and holds it until its end
    return None


def _start(job: Job, width: int, gpu: str | None, lock: int) -> None:
    environment = dict(os.environ)
    # By default each process would start a thread for every core, and the runs would slow each other down.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // width)))
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    recipe = str(job.folder.recipe)
    out = str(job.folder.path)
    # A signal is handled once the process is known, or nobody would stop it.
    with (job.folder.path / LOG).open("wb") as log, StopRequest():
        job.process = subprocess.Popen(
            [sys.executable, "-m", "rearkit", "run", recipe, "--out", out],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock,),
            # In a session of its own Ctrl-C does not reach the run: the sweep gets it, and stops its runs by SIGTERM.
            start_new_session=True,
        )
    job.started = time.monotonic()


def _end(job: Job, jobs: list[Job], started: float) -> None:
    """Record how a job's process ended, and report it."""
    assert job.process is not None
    job.over = True
    if job.process.returncode:
        job.trouble = _last_words(job.folder.path / LOG, job.process.returncode)
        say(f"{job.run.name}: failed: {job.trouble}")
        return
    left = [other for other in jobs if not other.over]
    ended = sum(other.over and other.process is not None for other in jobs)
    # From the jobs that this call ran: those found finished took no time, and would make the estimate too low.
    minutes = (time.monotonic() - started) / ended * len(left) / 60
    fid = job.folder.result("evaluate")["fid"]
    seconds = time.monotonic() - job.started
    say(f"{job.run.name}: FID {fid:.2f}, in {seconds:.0f} s; {len(left)} runs left, {minutes:.0f} min")


def _last_words(log: Path, code: int) -> str:
    """Return the first error line in a run's log, else its last line, else its exit code."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(iter(told), lines[-1] if lines else f"exit code {code}")
