"""How image shards are come by and read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping

import attrs

from rearkit.data.fetching import Retry
from rearkit.data.shard_members import Fields


@attrs.frozen
class Access:
    """How shards are come by and read.

    Attributes:
        retry: how often to try to fetch a shard that is remote.
        fields: which members of a sample are its image and its label.
        in_place: whether single images will be read out of the middle, which a compressed shard does not allow.
        only: which samples of each shard to read, by their place in it; None for all.
        counts: takes how many samples remote shards have, as they are read.
        quiet: shards whose damage is counted elsewhere, where no sample tells of it.
        threads: how many decode ahead; 0 for none but the one that reads.
    """

    retry: Retry = attrs.field(factory=Retry)
    fields: Fields = attrs.field(factory=Fields)
    in_place: bool = False
    only: Mapping[str, Collection[int]] | None = None
    counts: MutableMapping[str, int] | None = None
    quiet: Collection[str] = ()
    threads: int = 0
