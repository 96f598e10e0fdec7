"""The table ``[train.guards]`` of a recipe."""

from __future__ import annotations

from rearkit.options import setting, settings


@settings
class GuardsTable:
    """``[train.guards]``: what training puts up with before it stops."""

    max_skipped_steps: int = setting(
        "steps skipped for a NaN or infinite loss or gradient, since the start or the resume; one more stops training",
        default=20,
        ge=0,
        cosmetic=True,
    )
    spike_factor: float = setting(
        "gradient norms of more than so many times the median of the last 100 are told and counted; 0: never",
        default=10.0,
        ge=0,
        cosmetic=True,
    )
    data_timeout: float = setting(
        "seconds that a step waits for its samples before training stops with the name of the shard being read",
        default=600.0,
        gt=0,
        cosmetic=True,
    )
