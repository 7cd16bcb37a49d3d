"""How many calls one caller may make, a token bucket each, and how many it may have open.

A site that loops, by mistake or not, is slowed down before it slows the others down; one that lets its calls hang, over
however many connections, leaves the others theirs.
"""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from histofed.base.clock import Clock
from histofed.base.errors import TryLater

BUCKETS: Final = 4096
"""Callers that are remembered; the one that was quiet longest is forgotten first, which only fills its bucket."""


@dataclass(frozen=True)
class Rate:
    """`per_second` calls for ever, `burst` of them at once."""

    per_second: float
    burst: float


MEMBER: Final = Rate(per_second=50, burst=200)
"""A member of the federation: progress of a few tasks, an operator's scripts."""
STRANGER: Final = Rate(per_second=1, burst=20)
"""An address on the enrolment port; guessing a token of 256 bits is hopeless, this keeps the log readable."""


class RateLimiter:
    """The buckets. One event loop uses it, so it needs no lock."""

    def __init__(self, rate: Rate, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """One call of `caller`. Raises `TryLater` when it makes too many."""
        now = self._clock.monotonic()
        left, since = self._buckets.pop(caller, (self._rate.burst, now))
        left = min(self._rate.burst, left + (now - since) * self._rate.per_second)
        allowed = left >= 1
        self._buckets[caller] = (left - 1 if allowed else left, now)
        while len(self._buckets) > BUCKETS:
            self._buckets.popitem(last=False)
        if not allowed:
            raise TryLater(f"too many calls ({self._rate.per_second:g} a second are allowed): wait a moment, then go on")


class OpenCalls:
    """The calls that go on. One event loop uses it, so it needs no lock."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, caller: str) -> Iterator[None]:
        """A call of `caller`, open until the end of the block. Raises `TryLater` when it has too many."""
        if self._open[caller] >= self._most:
            raise TryLater(f"{caller} has {self._most} calls open, as many as are allowed: end some of them, then go on")
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]  # nobody who has left is remembered
