"""The check that what is drawn from are numbers."""

from __future__ import annotations

from torch import Tensor

from rearkit.errors import DivergedError


def check_logits(logits_BV: Tensor) -> None:
    """Check the logits of a batch's last step: what is no number stays in the cache, and so in all later logits.

    Raises:
        DivergedError: a row has NaN or infinity in it, or no code that can be drawn.
    """
    # The largest of a row, since a code may be ruled out by minus infinity.
    if not logits_BV.amax(1).isfinite().all():
        raise DivergedError(
            "sampling: the backbone's logits are NaN or infinite; its training diverged, or they exceed the precision: "
            'set [sample] precision = "fp32", or a smaller guidance_scale'
        )
