"""What a server takes and keeps, so that no request fills its memory or its time."""

from __future__ import annotations

import attrs


@attrs.frozen
class Limits:
    """Limits of a server.

    Attributes:
        images: of one request.
        waiting: requests that wait; further ones are refused until one is done.
        uploads: at once.
        upload_bytes: of one file.
        upload_pixels: of one picture, before it is cut to the model's size.
        json_bytes: of any other request, a mask included.
        body_s: seconds in which a request has to arrive.
        kept_s: seconds for which results stay.
        kept_bytes: of all results, as PNGs; the oldest go first.
        kept_jobs: finished requests whose results stay.
        photos: photos that stay, of a few hundred kilobytes each.
    """

    images: int = 16
    waiting: int = 64
    uploads: int = 8
    upload_bytes: int = 16 * 2**20
    upload_pixels: int = 40_000_000
    json_bytes: int = 2**20
    body_s: float = 60.0
    kept_s: float = 3600.0
    kept_bytes: int = 256 * 2**20
    kept_jobs: int = 500
    photos: int = 128
