"""How long the agent keeps trying: calls about a task until its round closes, everything else with growing pauses.

Full jitter (Brooker 2015, "Exponential backoff and jitter"): each pause is drawn between nothing and a bound that doubles,
so that sites do not come back all at once when an aggregator returns.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from random import Random
from typing import Final, TypeVar

from histofed.base.clock import Clock
from histofed.base.errors import AggregatorUnavailable, CannotWriteState, HistofedError, Stale, TryLater
from histofed.transport.backoff import Backoff

log = logging.getLogger(__name__)

T = TypeVar("T")

PASSING: Final[tuple[type[HistofedError], ...]] = (AggregatorUnavailable, TryLater, CannotWriteState)
"""What an aggregator may get over by itself: its absence, its being busy, its full disk."""
TASK_BACKOFF: Final = Backoff(first_s=0.5, most_s=30.0, attempts=None)


async def until(
    deadline: datetime,
    what: str,
    operation: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    random: Random,
    passing: tuple[type[HistofedError], ...] = PASSING,
) -> T:
    """The operation's result, tried again until the wall clock passes `deadline`; then `Stale`.

    Errors outside `passing` leave at once.
    """
    delays = TASK_BACKOFF.delays(random)
    while True:
        try:
            return await operation()
        except passing as error:
            if clock.now() >= deadline:
                raise Stale(f"the round closed while this site could not {what}: {error}") from error
            delay = next(delays)
            log.warning("cannot %s: %s; next try in %.1f s", what, error, delay)
            await clock.sleep(delay)
