"""``verify``: whether a run's files are what was written."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rearkit.cli.examples import Command


@click.command(cls=Command, example="verify runs/mnist\nverify runs/components\nverify runs/mnist --json")
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def verify(folder: Path, as_json: bool) -> None:
    """Check all files that are read back of RUN, a run, a sweep or an exported model; nothing is written.

    Exit code 0: no file is damaged or missing; 3: some are, and each is named with what makes it again.
    """
    import attrs

    from rearkit.analysis.verify import DAMAGED, SOUND, UNCHECKED
    from rearkit.analysis.verify import verify as verified
    from rearkit.errors import EXIT_DATA
    from rearkit.system.console import printable

    found = verified(folder)
    damaged, unchecked = found.of(DAMAGED), found.of(UNCHECKED)
    trusted = found.trusted()
    if as_json:
        files = [attrs.asdict(verdict) for verdict in found.verdicts]
        click.echo(json.dumps({"busy": found.busy, "trusted_stages": trusted, "files": files}, indent=2))
    else:
        lines = [f"{found.busy} is at work here: files may change while they are read"] if found.busy else []
        if unchecked:
            lines.append(
                f"unchecked, since an earlier version gave no checksum: {', '.join(o.file for o in unchecked)}"
            )
        lines += [f"damaged: {one.file}: {one.why}; {one.remedy}" for one in damaged]
        # Of a sweep there may be hundreds.
        listed = trusted if len(found.runs) == 1 else [f"{len(trusted)} of {len(found.runs)} runs"]
        lines += [f"stages to trust: {', '.join(listed)}"] if trusted else []
        counts = f"{len(found.of(SOUND))} sound, {len(unchecked)} unchecked, {len(damaged)} damaged or missing"
        for line in [*lines, f"{folder}: {counts}"]:
            click.echo(printable(line))
    if damaged:
        raise click.exceptions.Exit(EXIT_DATA)
