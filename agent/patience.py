"""How long the agent keeps trying: calls about a task until the aggregator says that its round has closed.

Only the aggregator's clock closes a round. This machine's may have been set wrong, and an agent that gave up by it would
leave its round waiting for a task that nobody does.


Full jitter (Brooker 2015, "Exponential backoff and jitter"): each pause is drawn between nothing and a bound that doubles,
so that sites do not come back all at once when an aggregator returns. After a failure of this site's own, a full disk or too
little memory, the task's next attempt waits too: three attempts within a second are one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from random import Random
from typing import Final, TypeVar

from histofed.base.clock import Clock
from histofed.base.errors import AggregatorUnavailable, CannotWriteState, HistofedError, OutOfMemory, TryLater
from histofed.base.ids import TaskKey
from histofed.transport.backoff import Backoff

log = logging.getLogger(__name__)

T = TypeVar("T")

PASSING: Final[tuple[type[HistofedError], ...]] = (AggregatorUnavailable, TryLater, CannotWriteState)
"""What an aggregator may get over by itself: its absence, its being busy, its full disk."""
TASK_BACKOFF: Final = Backoff(first_s=0.5, most_s=30.0, attempts=None)
OWN_TROUBLE: Final[tuple[type[HistofedError], ...]] = (CannotWriteState, OutOfMemory, TryLater)
"""What this site may get over by itself, or by its administrator, if it is given time."""
REST_S: Final = 30.0
"""After the first failed attempt; four times as long after each further one."""
REST_MOST_S: Final = 600.0
_REST_SHARE: Final = 8
"""At most one part in eight of the time that the round has left: the attempt itself needs some."""


def rest_s(attempt: int, left: timedelta) -> float:
    """Seconds that a task rests after its failed `attempt` (from 1) in a round with so much time left."""
    return max(0.0, min(REST_S * 4.0 ** min(attempt - 1, 10), REST_MOST_S, left.total_seconds() / _REST_SHARE))


class Rests:
    """The tasks that rest here, each until a moment of the monotonic clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[TaskKey, float] = {}

    def begin(self, task: TaskKey, error: HistofedError, attempt: int, left: timedelta) -> None:
        """The task's attempt failed so, in a round with so much time left: it rests where this is `OWN_TROUBLE`."""
        if isinstance(error, OWN_TROUBLE):
            self._until[task] = self._clock.monotonic() + rest_s(attempt, left)

    def end(self, task: TaskKey) -> float:
        """Seconds for which the task should have rested still; it does not rest any more."""
        return max(0.0, self._until.pop(task, 0.0) - self._clock.monotonic())


async def until_told(
    what: str,
    operation: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    random: Random,
    passing: tuple[type[HistofedError], ...] = PASSING,
) -> T:
    """The operation's result, tried again with growing pauses for as long as its errors are `passing`.

    Others leave at once; `Stale` and `NotFound` are how the aggregator says that the task is over.
    """
    delays = TASK_BACKOFF.delays(random)
    while True:
        try:
            return await operation()
        except passing as error:
            delay = next(delays)
            log.warning("cannot %s: %s; next try in %.1f s", what, error, delay)
            await clock.sleep(delay)
