"""What two blobs of a store have in common: compared once for all the sites that ask in a round.

It only saves bytes: where the disk does not give one of the two, all of them travel.
Used by `blob_service.py`. Bounded: the pair asked for longest ago is forgotten first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import Final

from histofed.base.errors import BadData
from histofed.base.ids import Digest
from histofed.transport.held import opened
from histofed.transport.store import BlobStore
from histofed.transport.unchanged import Stretch, unchanged

_log = logging.getLogger(__name__)

PAIRS: Final = 64
"""Results that are kept; a frozen trunk of 1 GiB is 32 stretches."""


class Comparisons:
    """The results so far. One event loop uses it; the reading is done in a thread."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._found: OrderedDict[tuple[Digest, Digest], asyncio.Task[tuple[Stretch, ...]]] = OrderedDict()

    async def stretches(self, new: Digest, old: Digest) -> tuple[Stretch, ...]:
        """What `new` has in common with `old`; nothing where one of them is gone, or cannot be read."""
        pair = new, old
        if pair not in self._found:
            self._found[pair] = asyncio.create_task(asyncio.to_thread(self._compare, new, old))
            while len(self._found) > PAIRS:
                self._found.popitem(last=False)
        self._found.move_to_end(pair)
        try:
            return await asyncio.shield(self._found[pair])
        except (OSError, BadData) as error:
            self._found.pop(pair, None)  # a disk that refuses is asked again
            words = "nothing is taken as unchanged between blobs %s… and %s…: %s"
            _log.warning(words, new[:12], old[:12], getattr(error, "strerror", error))
            return ()

    def _compare(self, new: Digest, old: Digest) -> tuple[Stretch, ...]:
        with opened(self._store.path(new)) as one, opened(self._store.path(old)) as other:
            return () if one is None or other is None else unchanged(one, other)
