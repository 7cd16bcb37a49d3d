"""What two blobs of a store have in common: compared once for all the sites that ask in a round, one pair after the other.

It only saves bytes: where the disk does not give one of the two, all of them travel. The disk and the threads belong to the
transfers, so whoever asks for much gets little: a pair for which nobody waits any more is not compared, and a site that
waits for one is told of no other. Used by `blob_service.py`. Bounded: the pair asked for longest ago is forgotten first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from histofed.base.errors import BadData
from histofed.base.ids import Digest
from histofed.transport.held import opened
from histofed.transport.store import BlobStore
from histofed.transport.unchanged import Stretch, unchanged

_log = logging.getLogger(__name__)

PAIRS: Final = 64
"""Results that are kept; a frozen trunk of 1 GiB is 32 stretches."""

_Pair = tuple[Digest, Digest]
_Stretches = tuple[Stretch, ...]


@dataclass
class _Wanted:
    """A pair that is being compared, or is to be."""

    work: asyncio.Future[_Stretches] = field(init=False)
    askers: list[str] = field(default_factory=list)
    """Who waits, once for each call."""
    began: bool = False
    """A thread that reads cannot be stopped."""


class Comparisons:
    """The results so far, and what waits. One event loop uses it; the reading is done in a thread."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._turn = asyncio.Lock()
        self._wanted: dict[_Pair, _Wanted] = {}
        self._found: OrderedDict[_Pair, _Stretches] = OrderedDict()

    @contextlib.contextmanager
    def asked(self, site: str, new: Digest, old: Digest) -> Iterator[asyncio.Future[_Stretches]]:
        """What `new` has in common with `old`, for as long as `site` stays in the block, which must not cancel the future.

        Nothing where one of them is gone, or cannot be read, or where the site waits for another pair.
        """
        pair = new, old
        if pair in self._found:
            self._found.move_to_end(pair)
            yield _known(self._found[pair])
        elif any(site in other.askers for of, other in self._wanted.items() if of != pair):
            yield _known(())
        else:
            wanted = self._wanted.get(pair) or self._want(pair)
            wanted.askers.append(site)
            try:
                yield wanted.work
            finally:
                wanted.askers.remove(site)
                if not wanted.askers and not wanted.began:
                    wanted.work.cancel()
                    del self._wanted[pair]

    def _want(self, pair: _Pair) -> _Wanted:
        wanted = self._wanted[pair] = _Wanted()
        wanted.work = asyncio.create_task(self._in_turn(pair, wanted))
        return wanted

    async def _in_turn(self, pair: _Pair, wanted: _Wanted) -> _Stretches:
        async with self._turn:
            wanted.began = True
            try:
                self._found[pair] = await asyncio.to_thread(self._compare, *pair)
            except (OSError, BadData) as error:  # a disk that refuses is asked again
                words = "nothing is taken as unchanged between blobs %s… and %s…: %s"
                _log.warning(words, pair[0][:12], pair[1][:12], getattr(error, "strerror", error))
                return ()
            finally:
                del self._wanted[pair]
            while len(self._found) > PAIRS:
                self._found.popitem(last=False)
            return self._found[pair]

    def _compare(self, new: Digest, old: Digest) -> _Stretches:
        with opened(self._store.path(new)) as one, opened(self._store.path(old)) as other:
            return () if one is None or other is None else unchanged(one, other)


def _known(stretches: _Stretches) -> asyncio.Future[_Stretches]:
    """A result that nobody has to wait for."""
    future: asyncio.Future[_Stretches] = asyncio.get_running_loop().create_future()
    future.set_result(stretches)
    return future
