"""No progress, no transfer: a block that ends when nothing moved for a while. Both ends of every transfer stand in one.

A peer that is frozen (SIGSTOP, a suspended machine) keeps its TCP connection, and one that answers pings but sends nothing
keeps its HTTP/2 connection too: only the bytes tell. What was broken off resumes at the last acknowledged byte.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

T = TypeVar("T")


@contextlib.asynccontextmanager
async def watchdog(stall_s: float, ended: asyncio.Event | None = None) -> AsyncIterator[Callable[[], None]]:
    """Raises `TimeoutError` when the function it hands out was not called for `stall_s` seconds; at once when `ended` is
    set."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(stall_s) as limit:

        def alive() -> None:
            if ended is None or not ended.is_set():
                limit.reschedule(loop.time() + stall_s)

        async with _at_event(ended, lambda: limit.reschedule(loop.time())):
            yield alive


class Alarm:
    """Calls `act` once when `put_off` was not called for `stall_s` seconds; a context manager.

    For a generator whose reader stalls: a time-out inside it would wait for the reader too.
    """

    def __init__(self, stall_s: float, act: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stall_s = stall_s
        self._act = act

    def put_off(self) -> None:
        """Something moved."""
        self._at = self._loop.time() + self._stall_s

    def __enter__(self) -> Alarm:
        self.put_off()
        self._timer = self._loop.call_at(self._at, self._ring)
        return self

    def __exit__(self, *failure: object) -> None:
        self._timer.cancel()

    def _ring(self) -> None:
        if self._loop.time() < self._at:
            self._timer = self._loop.call_at(self._at, self._ring)
        else:
            self._act()


@contextlib.asynccontextmanager
async def _at_event(event: asyncio.Event | None, act: Callable[[], None]) -> AsyncIterator[None]:
    """Call `act` when the event is set while the block runs."""
    if event is None:
        yield
        return
    waiting = asyncio.ensure_future(event.wait())
    waiting.add_done_callback(lambda done: None if done.cancelled() else act())
    try:
        yield
    finally:
        waiting.cancel()


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """`function(*arguments)` in a thread, for work with files that the caller closes afterwards.

    A caller that is cancelled meanwhile waits for the thread first: it must not close, or write to, what is still in use.
    """
    work = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({work})
        if not work.cancelled():
            work.exception()  # it belongs to what was cancelled
        raise
