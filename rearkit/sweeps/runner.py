"""Runs a sweep: each run in a process of its own, some at once; what is finished is kept, what was cut off goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import attrs
import torch

from rearkit.analysis.groups import SWEEP as ABOUT
from rearkit.errors import RearkitError
from rearkit.recipe.tables import Recipe
from rearkit.stages.flow import STAGES
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import expected_keys, save_resolved_recipe, up_to_date
from rearkit.sweeps.sharing import COMMON, link, prepare_common
from rearkit.sweeps.sweep import PlannedRun, Sweep
from rearkit.system.console import say
from rearkit.system.files import read_json, write_json
from rearkit.system.locks import try_lock

LOG = "run.log"
POLL_S = 0.5


@attrs.define(eq=False)
class Job:
    """A run of the sweep on its way.

    Attributes:
        run: the plan.
        folder: its own.
        shared: where its stages before training are.
        leader: an earlier job that trains the very same model, or None.
        process: while it works.
        started: when, by the monotonic clock.
        over: finished, or failed.
        trouble: why it failed, or None.
    """

    run: PlannedRun
    folder: RunFolder
    shared: RunFolder
    leader: Job | None
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    over: bool = False
    trouble: str | None = None


def run_sweep(sweep: Sweep, root: Path, num_jobs: int | None = None) -> dict[str, list[RunFolder]]:
    """Bring all runs of a sweep up to date.

    Args:
        sweep: from `load_sweep`.
        root: its folder.
        num_jobs: processes at once; left out, one a GPU, or one a core.

    Returns:
        by variant, the folders of its finished runs.

    Raises:
        RearkitError: some runs failed (the others were finished first), or the folder holds something else.
    """
    _claim(sweep, root)
    jobs = _jobs(sweep, root)
    gpus = visible_gpus(sweep.runs[0].recipe)
    width = num_jobs or len(gpus) or (os.cpu_count() or 1)
    _work(jobs, root, min(width, len(jobs)), gpus)
    failed = [job for job in jobs if job.trouble is not None]
    if failed:
        told = [f"{job.run.name}: {job.trouble}; see {job.folder.path / LOG}" for job in failed]
        raise RearkitError(
            "\n".join([*told, f"{len(failed)} of {len(jobs)} runs failed; run the same command to retry"])
        )
    return finished(sweep, root)


def finished(sweep: Sweep, root: Path) -> dict[str, list[RunFolder]]:
    """By variant, the folders of those runs that have been scored."""
    found: dict[str, list[RunFolder]] = {variant: [] for variant in sweep.variants}
    for run in sweep.runs:
        folder = RunFolder(root / run.name)
        if up_to_date(STAGES, run.recipe, folder):
            found[run.variant].append(folder)
    return found


def visible_gpus(recipe: Recipe) -> list[str]:
    """The GPUs that runs may be spread over, as CUDA_VISIBLE_DEVICES would name them."""
    if recipe.device == "cpu" or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def _claim(sweep: Sweep, root: Path) -> None:
    about = read_json(root / ABOUT)
    if root.exists() and (not root.is_dir() or (about is None and any(root.iterdir()))):
        raise RearkitError(f"{root}: not empty and not a sweep; choose another folder with --out")
    if about is not None and about.get("sweep") != sweep.name:
        raise RearkitError(f"{root}: holds another sweep, {about.get('sweep')!r}; choose another folder with --out")
    runs = {name: [run.name for run in sweep.runs if run.variant == name] for name in sweep.variants}
    told = {"sweep": sweep.name, "runs": runs, "published": sweep.published, "published_as": sweep.published_as}
    if about != told:
        write_json(root / ABOUT, told)


def _jobs(sweep: Sweep, root: Path) -> list[Job]:
    shared = prepare_common((run.recipe for run in sweep.runs), root)
    leaders: dict[str, Job] = {}
    jobs = []
    for run, common in zip(sweep.runs, shared, strict=True):
        training = expected_keys(STAGES, run.recipe)["train"]
        job = Job(run, RunFolder(root / run.name), common, leaders.get(training))
        leaders.setdefault(training, job)
        jobs.append(job)
    return jobs


def _work(jobs: list[Job], root: Path, width: int, gpus: list[str]) -> None:
    """Keep ``width`` processes at work until no job is left."""
    slots: list[Job | None] = [None] * width
    started, waiting = time.monotonic(), False
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
                say("waiting for runs that another process is at")
            time.sleep(POLL_S)
    finally:
        working = [job.process for job in jobs if job.process is not None and job.process.poll() is None]
        for process in working:
            process.terminate()  # it saves a checkpoint
        for process in working:
            process.wait()


def _start_next(jobs: list[Job], root: Path, width: int, gpu: str | None) -> Job | None:
    """Start the first job that can be; jobs that turn out to be finished are marked so on the way."""
    for job in jobs:
        if job.over or job.process is not None or (job.leader is not None and not job.leader.over):
            continue
        lock = try_lock(root / "locks" / f"{job.run.name}.lock")
        if lock is None:
            continue
        try:
            job.folder.claim(job.run.recipe.name)
            save_resolved_recipe(job.run.recipe, job.folder)
            link(job.shared, job.folder, (*COMMON, "classifier"))
            if job.leader is not None:
                link(job.leader.folder, job.folder, ("train",))
            if up_to_date(STAGES, job.run.recipe, job.folder):
                job.over = True
                continue
            _start(job, width, gpu, lock)
            return job
        finally:
            os.close(lock)  # the process that was started holds it on
    return None


def _start(job: Job, width: int, gpu: str | None, lock: int) -> None:
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // width)))
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    recipe, out = str(job.folder.recipe), str(job.folder.path)
    with (job.folder.path / LOG).open("wb") as log:
        job.process = subprocess.Popen(
            [sys.executable, "-m", "rearkit", "run", recipe, "--out", out],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C is for the sweep, which then stops its runs by SIGTERM
        )
    job.started = time.monotonic()


def _end(job: Job, jobs: list[Job], started: float) -> None:
    """Note how a process ended, and tell."""
    assert job.process is not None
    job.over = True
    if job.process.returncode:
        job.trouble = _last_words(job.folder.path / LOG, job.process.returncode)
        say(f"{job.run.name}: failed: {job.trouble}")
        return
    left = [other for other in jobs if not other.over]
    ended = sum(other.over and other.process is not None for other in jobs)
    minutes = (time.monotonic() - started) / ended * len(left) / 60
    fid = job.folder.result("evaluate")["fid"]
    seconds = time.monotonic() - job.started
    say(f"{job.run.name}: FID {fid:.2f}, in {seconds:.0f} s; {len(left)} runs left, {minutes:.0f} min")


def _last_words(log: Path, code: int) -> str:
    """The error that a process ended with, in a line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(iter(told), lines[-1] if lines else f"exit code {code}")
