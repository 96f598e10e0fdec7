"""``serve``: a page to sample from, and an HTTP interface."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rearkit.cli.examples import Command
from rearkit.cli.given import Given, open_model
from rearkit.cli.options import OUT, recipe_options, size_option

if TYPE_CHECKING:
    from rearkit.contracts import ImageSize

EXAMPLE = """serve mnist
serve ./my-model --port 8001
serve ./my-model --host 0.0.0.0 --allow-host images.example.org"""


@click.command(cls=Command, example=EXAMPLE)
@recipe_options
@OUT
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0: a free one."
)
@click.option("--allow-host", "names", multiple=True, help="Another name by which it may be asked; repeatable.")
@size_option("of an exported model at another size than trained")
@click.option("--batch", type=click.IntRange(1), help="Images drawn at once on a CPU; left out: 16.")
@click.option("--most-images", type=click.IntRange(1), default=16, show_default=True, help="Images of one request.")
@click.option("--most-waiting", type=click.IntRange(1), default=64, show_default=True, help="Requests that may wait.")
def serve(
    given: Given,
    out: Path | None,
    host: str,
    port: int,
    names: Sequence[str],
    size: ImageSize | None,
    batch: int | None,
    most_images: int,
    most_waiting: int,
) -> None:
    """Serve RECIPE's trained model: a page to sample from in a browser, and an HTTP interface.

    RECIPE may be an exported model (model.safetensors, or its folder), which needs no run.
    """
    from rearkit.errors import RearkitError
    from rearkit.system.console import say

    try:
        from rearkit.serving.server import Server, serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "starlette", "pydantic"):
            raise
        raise RearkitError(f"serve needs the package {error.name}; run: pip install 'rearkit[serve]'") from None
    from rearkit.serving.limits import Limits
    from rearkit.serving.origins import is_loopback
    from rearkit.serving.served import Served

    served = Served.of(*open_model(given, out, size), batch, size)

    def ready(server: Server, number: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        say(f"{given.recipe.name}: open http://{shown}:{number} in a browser; its interface is described at /docs")
        if not is_loopback(host):
            say("anybody who reaches this address can draw; there are neither accounts nor encryption")

    # Uvicorn ends in order, and then raises the signal again.
    with contextlib.suppress(KeyboardInterrupt):
        serve(served, Limits(images=most_images, waiting=most_waiting), (host, port), names, ready)
    say("stopped")
