"""``run --num-gpus N``: start N ranks of the same command on this machine, with torch's elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from rearkit.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_OK, EXIT_PREEMPTED
from rearkit.system.console import stderr


def launch(num_ranks: int, arguments: Sequence[str]) -> int:
    """Run ``python -m rearkit ARGUMENTS`` as ``num_ranks`` ranks.

    When one rank fails, the launcher stops the others.

    Returns:
        0, or the exit code of the first rank that failed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The launcher would log a traceback of its own for a failure that the rank has reported in one line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # By default each rank would use all cores, and the ranks would slow each other down.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    # Seconds after a SIGTERM until ranks are killed. torch's 30 are too few to finish a step and save a checkpoint.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        # Port 0: any free one, so that two runs can share a machine.
        rdzv_endpoint="localhost:0",
        # A restart would repeat the same error; a run resumes from its checkpoint when it is started again.
        max_restarts=0,
        monitor_interval=0.5,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "rearkit", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # A negative code is a signal's number: the rank was killed, and could not report it (out of memory, say).
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            stderr.print(f"error: rank {rank} was killed by {name}; the others were stopped", style="red", markup=False)
            return EXIT_INTERNAL
        return failure.exitcode
    except SignalException as error:
        return EXIT_PREEMPTED if error.sigval == signal.SIGTERM else EXIT_INTERRUPTED
    return EXIT_OK
