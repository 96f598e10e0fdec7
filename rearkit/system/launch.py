"""``run --num-gpus N``: start N ranks of the same command on this machine, with torch's own launcher."""

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
    """Run ``python -m rearkit ARGUMENTS`` as ``num_ranks`` ranks, and return the exit code of the first to fail.

    When one rank ends with an error, the others are stopped.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we tell of failures ourselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_ranks)))
    # After a SIGTERM, how long until ranks are killed that still finish a step and save: torch gives them 30 s.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.5,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "rearkit", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            stderr.print(f"error: rank {rank} was killed by {name}; the others were stopped", style="red", markup=False)
            return EXIT_INTERNAL
        return failure.exitcode
    except SignalException as error:
        return EXIT_PREEMPTED if error.sigval == signal.SIGTERM else EXIT_INTERRUPTED
    return EXIT_OK
