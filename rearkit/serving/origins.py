"""Who may ask: only pages of this server itself, by a name that is its own; and no more than is small and soon there.

A page of another site could otherwise drive the server through the browser of somebody who can reach it: by forms and
scripts (their Origin is another one), or by a name of its own that suddenly means this machine (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from rearkit.serving.limits import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

UPLOAD = "/v1/photos"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


def own_names(host: str, more: Iterable[str] = ()) -> frozenset[str]:
    """Return the names by which a server may be asked; numbers are always its own.

    Args:
        host: what it listens on.
        more: further names, such as that of a proxy before it.
    """
    names = {"localhost", host, *more}
    if not is_loopback(host):
        names |= {socket.gethostname(), socket.getfqdn()}
    return frozenset(name.lower().rstrip(".") for name in names)


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def refusal(headers: dict[str, str], names: frozenset[str], navigates: bool) -> str:
    """Return why a request is refused by its headers, or an empty string.

    Args:
        headers: by their names in lower case.
        names: from `own_names`.
        navigates: whether it asks for the page itself, to which other sites may link.
    """
    host = headers.get("host", "")
    name = (urlsplit(f"//{host}").hostname or "").rstrip(".") if _parses(host) else ""
    # A name of another's can be made to mean this machine; a number cannot.
    if name not in names and not _is_number(name):
        return "this name is not the server's; give --allow-host NAME when it is started"
    origin = headers.get("origin")
    if origin is not None and origin.lower().partition("://")[2] != host.lower():
        return "asked by a page of another site"
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not navigates:
        return "asked by a page of another site"
    return ""


def _parses(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").netloc == host and "@" not in host
    except ValueError:
        return False


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


# A body that is too large is read and dropped up to so many times what is allowed, so that the answer arrives.
DRAINED = 4


class Door:
    """What stands before an application: refuses strangers, and bodies that are too large or too slow.

    Args:
        app: the application.
        limits: of the server.
        names: its own names.
    """

    def __init__(self, app: App, limits: Limits, names: frozenset[str]) -> None:
        self.app, self.limits, self.names = app, limits, names
        self.uploading = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        page = scope["method"] == "GET" and scope["path"] == "/"
        navigates = page and headers.get("sec-fetch-mode", "navigate") == "navigate"
        if why := refusal(headers, self.names, navigates):
            await _refuse(send, 403, why)
            return
        if scope["path"] != UPLOAD:
            await self._pass(scope, receive, send, headers)
            return
        if self.uploading >= self.limits.uploads:
            await _refuse(send, 429, "too many uploads at once; try again in 5 s")
            return
        self.uploading += 1
        try:
            await self._pass(scope, receive, send, headers)
        finally:
            self.uploading -= 1

    async def _pass(self, scope: Message, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        most = self.limits.upload_bytes if scope["path"] == UPLOAD else self.limits.json_bytes
        try:
            body = await asyncio.wait_for(_body(receive, headers, most), self.limits.body_s)
        except asyncio.TimeoutError:
            await _refuse(send, 408, f"the request did not arrive in {self.limits.body_s:.0f} s")
            return
        except ConnectionError:
            return
        if body is None:
            await _refuse(send, 413, f"larger than {most:,} bytes")
            return
        await self.app(scope, _again(body, receive), _with_headers(send))


async def _body(receive: Receive, headers: dict[str, str], most: int) -> bytes | None:
    """Read a request's body; return None if it is larger than it may be.

    Raises:
        ConnectionError: whoever asked has gone.
    """
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        return None
    # A client that sends what it has announced hears of nothing before it has sent it, or of a broken connection.
    read_on = DRAINED * most if int(length) > most else most
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionError
        part = message.get("body", b"")
        size += len(part)
        if size <= most:
            parts.append(part)
        if size > read_on:
            return None
        if not message.get("more_body", False):
            return b"".join(parts) if size <= most else None


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a function that gives the body once, and then waits for the end of the connection."""
    given = False

    async def read() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


def _with_headers(send: Send) -> Send:
    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", ()), *ours]}
        await send(message)

    return told


async def _refuse(send: Send, status: int, why: str) -> None:
    # Closed, since a body may still be on its way.
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if status == 429:
        headers.append((b"retry-after", b"5"))
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": why}).encode() + b"\n"})
