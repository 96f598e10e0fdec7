"""Listens, answers and ends: uvicorn around the application, the thread that draws beside it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from types import FrameType

import uvicorn

from rearkit.errors import RearkitError
from rearkit.serving.app import Desk
from rearkit.serving.jobs import Jobs
from rearkit.serving.limits import Limits
from rearkit.serving.origins import Door, own_names
from rearkit.serving.served import Served
from rearkit.serving.worker import Worker

# Connections at once; each page that follows a request holds one.
CONNECTIONS = 512
# Seconds that answers may go on for after a stop, and that the thread that draws may take for its last token.
ENDING_S = 3


class Server(uvicorn.Server):
    """A server that lets those who follow requests go when it is told to stop."""

    jobs: Jobs | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, by Ctrl-C or SIGTERM; a second one stops at once."""
        self.stop()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """Begin to stop."""
        self.should_exit = True
        if self.jobs is not None:
            self.jobs.stop()


def serve(
    served: Served,
    limits: Limits,
    address: tuple[str, int],
    names: Iterable[str] = (),
    ready: Callable[[Server, int], None] | None = None,
) -> None:
    """Serve a model until the process is told to stop.

    Args:
        served: the model.
        limits: what is taken and kept.
        address: host and port; port 0 for one that is free.
        names: further names by which it may be asked.
        ready: called with the server and its port once it listens.

    Raises:
        RearkitError: nothing can listen there.
    """
    asyncio.run(_serve(served, limits, address, names, ready))


async def _serve(
    served: Served,
    limits: Limits,
    address: tuple[str, int],
    names: Iterable[str],
    ready: Callable[[Server, int], None] | None,
) -> None:
    jobs = Jobs(limits, asyncio.get_running_loop())
    desk = Desk(served, jobs, limits, version("rearkit"))
    config = uvicorn.Config(
        Door(desk.app, limits, own_names(address[0], names)),
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=ENDING_S,
    )
    server = Server(config)
    server.jobs = jobs
    worker = Worker(served, jobs)
    with _listening(*address) as listener:
        worker.start()
        if ready is not None:
            ready(server, listener.getsockname()[1])
        try:
            await server.serve([listener])
        finally:
            jobs.stop()
            worker.join(ENDING_S)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Open the socket before anything else, so that a port in use is an error of one line."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(where[:2], family=family, backlog=CONNECTIONS)
    except OSError as error:
        raise RearkitError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror}); give another, --port 0 for any"
        ) from None
    with listener:
        yield listener
