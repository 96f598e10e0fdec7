"""``run --num-gpus N``: start N ranks of the same command on this machine, none of which outlives this process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

from rearkit.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_OK, EXIT_PREEMPTED
from rearkit.system.console import stderr
from rearkit.system.processes import end_with_parent
from rearkit.system.signals import GUARD, exit_code

# Variables with file descriptors: of a pipe that ends when the launcher does, and of the first rank's listening socket,
# which no other process can take before that rank does.
PARENT, STORE = "REARKIT_PARENT_FD", "REARKIT_STORE_FD"
POLL_S = 0.1
# Seconds that ranks are given to end after another has failed; and to finish a step and save it after a signal.
GRACE_S, SAVE_S = 30.0, 600.0

Rank = subprocess.Popen[bytes]


def launch(num_ranks: int, arguments: Sequence[str]) -> int:
    """Run ``python -m rearkit ARGUMENTS`` as ``num_ranks`` ranks.

    When one rank fails, the launcher stops the others; when it gets a signal, all save and stop; when it is killed, the
    ranks end too.

    Returns:
        0, or the exit code of the first rank that failed.
    """
    reading, writing = os.pipe()
    ranks: list[Rank] = []
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            for rank in range(num_ranks):
                ranks.append(_start(rank, num_ranks, arguments, (reading, server)))
        return _result(ranks)
    except KeyboardInterrupt:
        with GUARD.patient():
            _stop(ranks, SAVE_S)
        code = ranks[0].returncode if ranks else None
        # The first rank has said how far it came, or has met an error on the way.
        if code is None or code < 0:
            raise
        return exit_code() if code in (EXIT_INTERRUPTED, EXIT_PREEMPTED) else code
    finally:
        _stop(ranks, GRACE_S)
        os.close(reading)
        os.close(writing)


def end_with_launcher() -> None:
    """In a rank, end when the launcher does, however that ends."""
    # Taken out, or processes that this one starts would take it for theirs.
    pipe = int(os.environ.pop(PARENT))
    os.set_inheritable(pipe, False)
    end_with_parent(pipe)


def _start(rank: int, num_ranks: int, arguments: Sequence[str], shared: tuple[int, socket.socket]) -> Rank:
    pipe, server = shared
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    # By default each rank would use all cores, and the ranks would slow each other down.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), PARENT: str(pipe)}
    environment |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    handed = [pipe]
    if rank == 0:
        environment[STORE] = str(server.fileno())
        handed.append(server.fileno())
    command = [sys.executable, "-m", "rearkit", *arguments]
    # In a session of its own Ctrl-C does not reach a rank: the launcher gets it, and stops the ranks.
    return subprocess.Popen(command, env=environment, pass_fds=handed, start_new_session=True)


def _result(ranks: Sequence[Rank]) -> int:
    """Wait until all ranks have ended well or one has failed; report it and return its exit code."""
    while not any(rank.poll() for rank in ranks):
        if all(rank.returncode == EXIT_OK for rank in ranks):
            return EXIT_OK
        time.sleep(POLL_S)
    failed = {number: rank.returncode for number, rank in enumerate(ranks) if rank.poll()}
    # A rank that was killed comes first: others may have failed for it, and have said so.
    number = min(failed, key=lambda number: (failed[number] > 0, number))
    if failed[number] > 0:
        return failed[number]
    _stop(ranks, GRACE_S)
    # It could not report that itself (out of memory, say).
    name = signal.Signals(-failed[number]).name
    stderr.print(f"error: rank {number} was killed by {name}; the others were stopped", style="red", markup=False)
    return EXIT_INTERNAL


def _stop(ranks: Iterable[Rank], seconds: float) -> None:
    """Stop the ranks that still run, by SIGTERM, and kill those that are not gone after so many seconds."""
    running = [rank for rank in ranks if rank.poll() is None]
    for rank in running:
        rank.terminate()
    end = time.monotonic() + seconds
    while any(rank.poll() is None for rank in running) and time.monotonic() < end:
        time.sleep(POLL_S)
    for rank in running:
        rank.kill()
        rank.wait()
