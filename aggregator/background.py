"""Work that goes on beside the daemon's loop, one task a name: models that are made, updates that are checked.

A job that cannot write is tried again with a pause that grows, and ends the daemon after half an hour of it; one that fails
in a way that nobody foresaw, or whose child SIGKILL does not end, ends it at once. One whose child keeps being killed is
tried for half an hour as well, and so is one whose child cannot be started, and then given up: where one experiment needs
more memory than there is, the others go on.
Whatever was under way is repeated after the next start from what is durable, which is why a job may be dropped at any
moment. Used by `aggregator/engine.py` and `aggregator/experiments.py`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeVar

from histofed.base.clock import Clock
from histofed.base.errors import BadData, CannotWriteState, HistofedError, NoWorker, Stale, WorkerKilled, WorkerLost
from histofed.telemetry.logs import fields
from histofed.transport.backoff import Backoff

log = logging.getLogger(__name__)

T = TypeVar("T")
OWN_TROUBLE: Final = Backoff(first_s=1.0, most_s=60.0, attempts=5)
"""Before what is ours to mend (a child that fails, a file of ours that cannot be read) counts as the end of a job."""
KILLED: Final = Backoff(first_s=60.0, most_s=600.0, attempts=8)
"""The same where the child keeps being killed: half an hour, as a rule. Memory may be short for as long as somebody else's
work takes, and what is given up is the work of all sites."""
UNBORN: Final = Backoff(first_s=1.0, most_s=60.0, attempts=30)
"""The same where no child can be started: half an hour as well, and soon at first, for a try costs nothing."""
DISK_ATTEMPTS: Final = 30
"""How often a job that cannot write is tried again (about half an hour) before the daemon ends with exit code 73."""


class Background:
    """The jobs under way. `fatal` is told the error that the daemon is to end with."""

    def __init__(self, clock: Clock, entropy: random.Random, fatal: Callable[[HistofedError], None]) -> None:
        self._clock = clock
        self._entropy = entropy
        self._fatal = fatal
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._waiting: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Of what is under way."""
        return tuple(self._jobs)

    @property
    def at_work(self) -> tuple[str, ...]:
        """The same without jobs that wait for their next try, which begins anew: they need nothing of what they made."""
        return tuple(name for name in self._jobs if name not in self._waiting)

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Begin a job, unless it is under way."""
        if name in self._jobs:
            return
        job = asyncio.get_running_loop().create_task(self._run(name, work), name=name)
        self._jobs[name] = job
        job.add_done_callback(lambda _done: self._jobs.pop(name, None))

    def drop(self, name: str) -> None:
        """Nobody wants its result any more: stop its child process. A job that itself is the reason goes on."""
        job = self._jobs.get(name)
        if job is not None and job is not asyncio.current_task():
            job.cancel()

    async def close(self) -> None:
        """Stop them all."""
        jobs = tuple(self._jobs.values())
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def patiently(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` makes of its input, tried again a few times where the fault is this machine's and not the input's.

        Raises `BadData` for the input, `CannotWriteState` and `WorkerLost` at once, and any other error after the last try.
        """
        troubles, kills, unborn = (delays.delays(self._entropy) for delays in (OWN_TROUBLE, KILLED, UNBORN))
        while True:
            try:
                return await work()
            except (BadData, CannotWriteState, WorkerLost):
                raise
            except HistofedError as error:
                match error:
                    case WorkerKilled():
                        delay = next(kills, None)
                    case NoWorker():
                        delay = next(unborn, None)
                    case _:
                        delay = next(troubles, None)
                log.error("a job failed here", extra=fields(job=name, again_in_s=delay, reason=str(error)))
                if delay is None:
                    raise
                await self._wait(name, delay)

    def disk_delays(self) -> Iterator[float]:
        """Seconds between tries while a disk refuses; when they are used up, the daemon ends."""
        return Backoff(first_s=1.0, most_s=60.0, attempts=DISK_ATTEMPTS).delays(self._entropy)

    async def _run(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        delays = self.disk_delays()
        while True:
            try:
                await work()
                return
            except Stale as error:
                log.info("not needed any more", extra=fields(job=name, reason=str(error)))
                return
            except CannotWriteState as error:
                delay = next(delays, None)
                log.error("cannot write", extra=fields(job=name, again_in_s=delay, reason=str(error)))
                if delay is None:
                    self._fatal(error)
                    return
                await self._wait(name, delay)
            except WorkerLost as error:
                # it hangs in the kernel and holds what it has: the next life repeats the job from what is durable
                self._fatal(error)
                return
            except Exception as error:
                log.exception("a job failed unexpectedly", extra=fields(job=name))
                self._fatal(HistofedError(f"{name}: {type(error).__name__}"))
                return

    async def _wait(self, name: str, seconds: float) -> None:
        self._waiting.add(name)
        try:
            await self._clock.sleep(seconds)
        finally:
            self._waiting.discard(name)
