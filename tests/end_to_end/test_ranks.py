"""Several ranks, through the real launchers: the same losses whatever the layout, and one error for all."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rank_runs import ENVIRONMENT, SMOKE, TINY, children, descendants, finish, rearkit


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stages up to the tokens are done."""
    out = tmp_path_factory.mktemp("ranks") / "run"
    for stage in ("data", "tokenizer", "tokens"):
        finish(rearkit(stage, str(SMOKE), *TINY, f"--out={out}"))
    return out


@pytest.fixture(scope="module")
def layouts(prepared: Path) -> Callable[[str], Path]:
    """Train in a layout of `LAYOUTS`, once, and return the run."""

    @functools.cache
    def trained(layout: str) -> Path:
        return train(prepared, layout.replace(" ", "-").replace(",", ""), *LAYOUTS[layout])

    return trained


@pytest.fixture(scope="module")
def one_rank(layouts: Callable[[str], Path]) -> list[float]:
    return losses(layouts("one"))


def train(prepared: Path, name: str, *options: str, launcher: tuple[str, ...] | None = None) -> Path:
    out = prepared.with_name(name)
    shutil.copytree(prepared, out)
    arguments = ("train", str(SMOKE), *TINY, f"--out={out}", *options)
    finish(rearkit(*arguments) if launcher is None else rearkit(*arguments, launcher=launcher))
    return out


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "train" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 51))
    return [line["loss"] for line in lines]


DEEPSPEED = (str(Path(sys.executable).with_name("deepspeed")), "--num_gpus=2", "--module", "rearkit")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "rearkit")
LAYOUTS = {
    "one": (),
    "two ranks, ZeRO 0": ("--num-gpus=2", "--set=train.zero_stage=0"),
    "two ranks, ZeRO 1": ("--num-gpus=2",),
    "two ranks, ZeRO 2": ("--num-gpus=2", "--set=train.zero_stage=2"),
    "two ranks, ZeRO 3": ("--num-gpus=2", "--set=train.zero_stage=3"),
    "four accumulated": ("--set=train.micro_batch=4",),
    "two ranks, two accumulated": ("--num-gpus=2", "--set=train.micro_batch=4"),
}


SLOW = {"two ranks, ZeRO 0", "two ranks, ZeRO 2", "two ranks, ZeRO 3", "two ranks, two accumulated"}


@pytest.mark.parametrize(
    "layout", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in LAYOUTS if n != "one"]
)
def test_losses_do_not_depend_on_the_layout(layout: str, layouts: Callable[[str], Path], one_rank: list[float]) -> None:
    assert losses(layouts(layout)) == pytest.approx(one_rank, abs=1e-4)


@pytest.mark.slow
def test_torchrun_takes_the_same_path(prepared: Path, one_rank: list[float]) -> None:
    assert losses(train(prepared, "torchrun", launcher=TORCHRUN)) == pytest.approx(one_rank, abs=1e-4)


@pytest.mark.slow
def test_deepspeeds_launcher_takes_the_same_path(prepared: Path, one_rank: list[float]) -> None:
    hosts = prepared.with_name("hosts")
    hosts.write_text("localhost slots=2\n")
    alone = ("--no_ssh_check", "--master_addr", "127.0.0.1")  # a test's machine may have no ssh to itself
    launcher = (DEEPSPEED[0], "--hostfile", str(hosts), *alone, "--module", "rearkit")
    assert losses(train(prepared, "deepspeed", launcher=launcher)) == pytest.approx(one_rank, abs=1e-4)


@pytest.mark.slow
def test_only_the_first_rank_speaks(prepared: Path) -> None:
    out = prepared.with_name("speech")
    shutil.copytree(prepared, out)
    output = finish(rearkit("run", str(SMOKE), *TINY, f"--out={out}", "--num-gpus=2"))
    assert output.count("finished in") == 1 and output.count("tokens: up to date") == 1
    assert "Traceback" not in output


def test_a_mistake_that_all_ranks_meet_is_told_once(prepared: Path) -> None:
    out = prepared.with_name("unprepared")
    output = finish(rearkit("train", str(SMOKE), *TINY, f"--out={out}", "--num-gpus=2"), code=2)
    assert output.count("error:") == 1 and "needs stage 'tokenizer'" in output
    assert "Traceback" not in output


def test_ranks_that_the_batch_does_not_divide_over_are_refused_before_anything_starts(tmp_path: Path) -> None:
    output = finish(rearkit("run", str(SMOKE), f"--out={tmp_path / 'run'}", "--num-gpus=3"), code=2)
    assert "16 samples don't divide over 3 ranks; use 2 ranks" in output
    assert not (tmp_path / "run").exists()


def start_training(
    prepared: Path, name: str, launcher: tuple[str, ...] | None = None
) -> tuple[subprocess.Popen[str], Path]:
    out = prepared.with_name(name)
    shutil.copytree(prepared, out)
    arguments = ("train", str(SMOKE), *TINY, "--set=train.steps=5000", f"--out={out}")
    process = rearkit(*arguments, "--num-gpus=2") if launcher is None else rearkit(*arguments, launcher=launcher)
    wait_for_steps(out, process)
    return process, out


def wait_for_steps(out: Path, process: subprocess.Popen[str], steps: int = 25) -> None:
    log = out / "train" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") > steps):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_killed_rank_takes_the_other_down_and_is_named(prepared: Path) -> None:
    process, out = start_training(prepared, "killed")
    ranks = children(process.pid)
    os.kill(ranks[1], signal.SIGKILL)
    output = finish(process, code=1, timeout=60)
    assert "was killed by SIGKILL; the others were stopped" in output
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert list((out / "train" / "checkpoints").glob("step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, DEEPSPEED], ids=["torchrun", "deepspeed"])
def test_other_launchers_stop_the_ranks_beside_a_killed_one(launcher: tuple[str, ...], prepared: Path) -> None:
    process, _ = start_training(prepared, f"killed-{launcher[-3].strip('-')}", launcher)
    ranks = [pid for pid in descendants(process.pid) if b"--local_rank" in command(pid) or b"rearkit" in command(pid)]
    ranks = [pid for pid in ranks if b"torch.distributed.run" not in command(pid) and b"launch" not in command(pid)]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, output
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def slurm(prepared: Path, name: str, *options: str, room: str = "") -> tuple[list[subprocess.Popen[str]], Path]:
    """Start two ranks as `srun` would, which tells them of each other by variables alone.

    Args:
        prepared: the run to copy.
        name: of the copy.
        options: of ``train``.
        room: KiB that a file of the second rank may have.
    """
    out = prepared.with_name(name)
    shutil.copytree(prepared, out)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            ["bash", "-c", f'{limit}exec "$@"', "-", sys.executable, "-m", "rearkit", "train", str(SMOKE), *TINY,
             f"--out={out}", *options],
            env=ENVIRONMENT | job | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank, limit in enumerate(("", f"ulimit -f {room}; " if room else ""))
    ]  # fmt: skip
    return ranks, out


@pytest.mark.slow
def test_srun_takes_the_same_path(prepared: Path, one_rank: list[float]) -> None:
    ranks, out = slurm(prepared, "srun")
    first, second = (finish(process) for process in ranks)
    assert losses(out) == pytest.approx(one_rank, abs=1e-4)
    assert "finished in" in first and second == ""


@pytest.mark.slow
def test_a_rank_without_a_launcher_to_stop_it_notices_that_another_is_gone(prepared: Path) -> None:
    (first, second), out = slurm(prepared, "srun-killed", "--set=train.steps=5000")
    wait_for_steps(out, first)
    second.kill()
    output = finish(first, code=1, timeout=60)
    assert "error: lost contact with another rank; see that rank's error message" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_save_that_fails_on_one_rank_ends_all(prepared: Path) -> None:
    ranks, out = slurm(prepared, "no-room", room="40")
    output = finish(ranks[0], code=4)
    finish(ranks[1], code=4)
    assert "step-00000020: the disk is full, or a quota is used up" in output and "Traceback" not in output
    assert list((out / "train" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_launcher_saves_on_all_ranks(number: signal.Signals, code: int, prepared: Path) -> None:
    process, out = start_training(prepared, f"signal-{code}")
    process.send_signal(number)
    output = finish(process, code=code, timeout=60)
    logged = int(json.loads((out / "train" / "log.jsonl").read_text().splitlines()[-1])["step"])
    saved = max(int(path.name.removeprefix("step-")) for path in (out / "train" / "checkpoints").glob("step-*"))
    assert saved == logged, output
    assert f"stopped at step {saved}" in output


RESUMED = {
    # layout up to step 20 and layout after it
    "two ranks, then one": ("two ranks, ZeRO 1", ()),
    "one rank, then two at ZeRO 2": ("one", ("--num-gpus=2", "--set=train.zero_stage=2")),
    "two ranks at ZeRO 3, then one at ZeRO 1": ("two ranks, ZeRO 3", ()),
    "two ranks at ZeRO 1, then two at ZeRO 3": ("two ranks, ZeRO 1", ("--num-gpus=2", "--set=train.zero_stage=3")),
    "one rank, then two at ZeRO 0": ("one", ("--num-gpus=2", "--set=train.zero_stage=0")),
}


@pytest.mark.parametrize(
    "resumed", [n if i == 0 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(RESUMED)]
)
def test_a_run_goes_on_in_another_layout(resumed: str, layouts: Callable[[str], Path], one_rank: list[float]) -> None:
    before, options = RESUMED[resumed]
    done = layouts(before)
    out = done.with_name(resumed.replace(" ", "-").replace(",", ""))
    shutil.copytree(done, out)
    (out / "train" / "stage.json").unlink()
    for folder in (out / "train" / "checkpoints").iterdir():
        if folder.name > "step-00000020":
            shutil.rmtree(folder)
    output = finish(rearkit("train", str(SMOKE), *TINY, f"--out={out}", *options))
    assert "going on from step 20 of 50" in output
    assert losses(out) == pytest.approx(one_rank, abs=1e-4)
    assert losses(out)[:20] == losses(done)[:20] and losses(out)[20:] != losses(done)[20:]
