"""Waiting before the next attempt: exponential with full jitter, bounded, logged.

"Full jitter" (uniform between nothing and the exponential bound) spreads the sites that lost the aggregator at the same
moment. Randomness and clock are the caller's.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from histofed.base.clock import Clock
from histofed.base.errors import AggregatorUnavailable, Cancelled, HistofedError, TryLater

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backoff:
    """Bounds of the waiting, in seconds; `attempts` counts the waits, None never gives up (an idle agent)."""

    first_s: float = 0.5
    most_s: float = 30.0
    attempts: int | None = 8

    def delays(self, random: Random) -> Iterator[float]:
        """The waits of one run of failures, one after the other."""
        counter = itertools.count() if self.attempts is None else range(self.attempts)
        for number in counter:
            yield random.uniform(0, min(self.most_s, self.first_s * 2.0 ** min(number, 30)))


RETRYABLE: tuple[type[HistofedError], ...] = (AggregatorUnavailable, TryLater)
"""What may succeed later without any change."""


def may_retry(error: HistofedError) -> bool:
    """Whether the same operation may succeed later; a cancelled one was stopped on request."""
    return isinstance(error, RETRYABLE) and not isinstance(error, Cancelled)


async def retry(operation: Callable[[], Awaitable[T]], *, what: str, backoff: Backoff, clock: Clock, random: Random) -> T:
    """Run an idempotent `operation` until it succeeds; raises its last error when it may not or the waits are used up."""
    delays = backoff.delays(random)
    while True:
        try:
            return await operation()
        except HistofedError as error:
            delay = next(delays, None) if may_retry(error) else None
            if delay is None:
                raise
            _log.warning("%s failed, trying again in %.1f s: %s", what, delay, error)
        await clock.sleep(delay)
