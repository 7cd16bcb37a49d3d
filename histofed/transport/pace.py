"""How fast bytes may go: a bucket of tokens, one a byte, that whoever sends shares with the others under the same cap.

The sender keeps the pace in both directions: a receiver that reads slowly would only fill its own memory (gRPC's window
grows to hundreds of MiB). So a site tells the aggregator its cap for downloads, and the aggregator tells a site its cap for
uploads. Over any time t at most `rate * t`, a burst of a quarter of a second, and one piece have gone.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from histofed.base.clock import Clock
from histofed.transport import limits

BURST_S: Final = 0.25
"""Seconds of the rate that may go at once after a pause; also what one piece holds, so that a slow link sees progress."""
SLOWEST: Final = 16 * limits.KIB
"""Bytes per second of the lowest cap: below it a piece would take so long that the other end thinks nothing moves."""
SITES: Final = 4096
"""Sites whose buckets are remembered; the one that was quiet longest goes first, which only fills its bucket."""


def kept_cap(bytes_per_second: int) -> int:
    """The cap that is kept where this one is set; 0 is none."""
    return max(bytes_per_second, SLOWEST) if bytes_per_second > 0 else 0


class Bucket:
    """The arithmetic, without a clock: when may the next bytes go? Times are seconds of a clock that never jumps."""

    def __init__(self, rate: float) -> None:
        """`rate` in bytes per second."""
        self.rate = rate
        self._free_at = float("-inf")
        """When everything that was taken has gone at the full rate."""

    def take(self, size: int, now: float) -> float:
        """Reserve `size` bytes; returns how many seconds to wait before they may go."""
        begin = max(self._free_at, now - BURST_S)
        self._free_at = begin + size / self.rate
        return max(0.0, begin - now)


class Pace:
    """A cap on the wire, or none. Those who send together share one; the rate may change while they do."""

    def __init__(self, clock: Clock, bytes_per_second: int = 0) -> None:
        """0 is no cap; less than `SLOWEST` is taken as that."""
        self._clock = clock
        self._bucket: Bucket | None = None
        self.set(bytes_per_second)

    @property
    def bytes_per_second(self) -> int:
        """0 without a cap."""
        return 0 if self._bucket is None else int(self._bucket.rate)

    def set(self, bytes_per_second: int) -> None:
        """Another cap from the next piece on; what is owed stays owed."""
        rate = kept_cap(bytes_per_second)
        if not rate:
            self._bucket = None
            return
        if self._bucket is None:
            self._bucket = Bucket(rate)
        self._bucket.rate = rate

    @property
    def piece(self) -> int:
        """Bytes that should go in one message."""
        return limits.CHUNK if self._bucket is None else min(limits.CHUNK, max(limits.KIB, int(self._bucket.rate * BURST_S)))

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may go."""
        if self._bucket is not None and (wait := self._bucket.take(size, self._clock.monotonic())) > 0:
            await self._clock.sleep(wait)


class Paces:
    """One `Pace` for each site, all with the same cap. One event loop uses it."""

    def __init__(self, clock: Clock, bytes_per_second: int = 0) -> None:
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._paces: OrderedDict[str, Pace] = OrderedDict()

    def set(self, bytes_per_second: int) -> None:
        """Another cap for every site, from the next piece on; 0 is no cap."""
        self.bytes_per_second = bytes_per_second
        for pace in self._paces.values():
            pace.set(bytes_per_second)

    def of(self, site: str) -> Pace:
        """The site's own, shared by all its transfers."""
        pace = self._paces.pop(site, None) or Pace(self._clock, self.bytes_per_second)
        self._paces[site] = pace
        while len(self._paces) > SITES:
            self._paces.popitem(last=False)
        return pace
