"""Who transfers now: a few at once where they fill the line, all who want to where they do not.

Each transfer holds memory at the aggregator: a message in hand and gRPC's window, which widens itself to some MiB. Where
sites are near and quick, a few of them fill the line or the processor; more at once only hold more memory and all end later.
Where they are far and slow, a hundred may be needed. So `TURNS` transfers always go on; more are let in, as many again each
second, while what moves in all stays below `LINE`. The site with the fewest transfers inside goes first, and among equals
who came first: one that asks a thousand times waits behind one that asks once. A transfer that is frozen moves nothing, so
it keeps nobody out for longer than that second.

One event loop uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

from histofed.base.clock import Clock
from histofed.transport import limits


class Turns:
    """The queue, and what moves."""

    def __init__(self, clock: Clock, at_once: int = limits.TURNS, line: float = limits.LINE) -> None:
        """`at_once` transfers always; `line` in bytes per second."""
        self._clock = clock
        self._at_once = at_once
        self._line = line
        self._inside: Counter[str] = Counter()
        self._waiting: list[Turn] = []
        self._since = clock.monotonic()
        self._moved = 0

    @property
    def inside(self) -> int:
        """Transfers that go on."""
        return self._inside.total()

    def __len__(self) -> int:
        """Transfers that go on or wait."""
        return self.inside + len(self._waiting)

    @contextlib.contextmanager
    def queue(self, site: str) -> Iterator[Turn]:
        """A place in the queue for a transfer of `site`, and the turn from when it came to the end of the block."""
        if not self._waiting:
            self._begin_to_count()
        turn = Turn(self, site)
        self._waiting.append(turn)
        self._let_in(self._at_once - self.inside)
        try:
            yield turn
        finally:
            if turn.has_come:
                self._inside[site] -= 1
                if not self._inside[site]:
                    del self._inside[site]
                self._let_in(self._at_once - self.inside)
            else:
                self._waiting.remove(turn)

    def look(self) -> None:
        """Let more in where a second's worth of transfers did not fill the line."""
        seconds = self._clock.monotonic() - self._since
        if seconds < limits.LOOK_S:
            return
        rate = self._moved / seconds
        self._begin_to_count()
        if rate < self._line:
            self._let_in(max(1, self.inside))

    def count(self, size: int) -> None:
        """Bytes that moved."""
        self._moved += size

    def _begin_to_count(self) -> None:
        self._since, self._moved = self._clock.monotonic(), 0

    def _let_in(self, count: int) -> None:
        for _ in range(min(count, len(self._waiting))):
            turn = min(self._waiting, key=lambda turn: self._inside[turn.site])
            self._waiting.remove(turn)
            self._inside[turn.site] += 1
            turn.come()


class Turn:
    """One transfer's."""

    def __init__(self, turns: Turns, site: str) -> None:
        self._turns = turns
        self.site = site
        self._came = asyncio.Event()

    @property
    def has_come(self) -> bool:
        """Whether it may transfer."""
        return self._came.is_set()

    def come(self) -> None:
        """Called by the queue."""
        self._came.set()

    async def came(self, looks: int = limits.LOOKS) -> bool:
        """Wait for the turn, for as many looks at the line; False when it has not come: the other end should hear of it."""
        for _ in range(looks):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.LOOK_S):
                    await self._came.wait()
            if self.has_come:
                return True
            self._turns.look()
        return self.has_come

    def moved(self, size: int) -> None:
        """Bytes that went over the wire."""
        self._turns.count(size)
