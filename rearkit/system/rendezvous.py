"""Where ranks find each other: a store that the first rank, or torchrun, serves to all of them.

torch's own way waits in C++, for minutes or days, where Python handles no signal and says nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from rearkit.errors import RearkitError, first_line
from rearkit.system.console import stderr
from rearkit.system.launch import STORE

# Seconds until the first line about ranks that have not come, and between further lines.
SAY_AFTER_S, SAY_EVERY_S = 5.0, 60.0
# Seconds between two looks at most; at first they are a tenth of the time waited.
LOOK_EVERY_S = 0.2
ALONE = "to run as one process, put RANK=0 WORLD_SIZE=1 before the command"


def looks() -> Iterator[float]:
    """Yield the seconds waited, again and again, in ever longer intervals; Python handles signals in between."""
    started = time.monotonic()
    while True:
        waited = time.monotonic() - started
        yield waited
        time.sleep(min(LOOK_EVERY_S, waited / 10 + 1e-4))


def meet(rank: int, ranks: int, patience: timedelta) -> Store:
    """Wait until all ranks have come, and return the store that they share.

    Args:
        rank: this one.
        ranks: number of all.
        patience: how long the store waits for a value afterwards.

    Raises:
        RearkitError: the environment does not say where to meet, or another process serves there.
    """
    environment = os.environ
    address, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    if not address or not port.isdecimal() or not 0 <= rank < ranks:
        told = f"RANK={rank} WORLD_SIZE={ranks} MASTER_ADDR={address} MASTER_PORT={port}"
        raise RearkitError(f"the environment has {told}, which makes no ranks; {ALONE}")
    # torchrun serves the store itself, and again the same one when it starts ranks anew.
    elastic = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    where = (address, int(port))
    store: Store
    store = _served(where, ranks) if rank == 0 and not elastic else _reached(where, rank, ranks)
    store = PrefixStore(f"rearkit/{attempt}", store)
    store.set_timeout(patience)
    store.set(f"here/{rank}", "")
    missing = list(range(ranks))
    said = SAY_AFTER_S
    for waited in looks():
        missing = [other for other in missing if not store.check([f"here/{other}"])]
        if not missing:
            break
        if waited > said:
            said += SAY_EVERY_S
            # One of those that wait.
            if rank == next(other for other in range(ranks) if other not in missing):
                _say(missing, ranks, where)
    return store


def _served(where: tuple[str, int], ranks: int) -> TCPStore:
    """Serve the store in this process."""
    descriptor = os.environ.pop(STORE, None)
    try:
        return TCPStore(
            *where,
            ranks,
            is_master=True,
            wait_for_workers=False,
            # As torch does, so that others in this process may use the same address; not with a socket of ours.
            multi_tenant=descriptor is None,
            master_listen_fd=None if descriptor is None else int(descriptor),
        )
    except RuntimeError as error:
        raise RearkitError(
            f"rank 0 cannot serve at MASTER_ADDR={where[0]} MASTER_PORT={where[1]}: {first_line(error)}; give another "
            f"MASTER_PORT to all ranks, or {ALONE}"
        ) from None


def _reached(where: tuple[str, int], rank: int, ranks: int) -> TCPStore:
    """Wait until the store is served, and connect to it."""
    # Those of one machine leave it to their first.
    said = SAY_AFTER_S if os.environ.get("LOCAL_RANK", "0") == "0" else 2 * SAY_AFTER_S
    for waited in looks():
        try:
            # torch would print a warning for each try.
            socket.create_connection(where, timeout=1).close()
            return TCPStore(*where, ranks, is_master=False, wait_for_workers=False)
        except (OSError, RuntimeError):
            if waited > said:
                said += SAY_EVERY_S
                _say([0], ranks, where)
    raise AssertionError("looks() has no end")


def _say(missing: Sequence[int], ranks: int, where: tuple[str, int]) -> None:
    names = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
    stderr.print(
        f"waiting for {len(missing)} of {ranks} ranks (rank {names}) at {where[0]}:{where[1]}; the environment has "
        f"WORLD_SIZE={ranks}: {ALONE}",
        markup=False,
    )
