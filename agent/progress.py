"""Tell the aggregator how a task goes, and hear from it whether the task is still wanted.

While an operation runs it writes its progress on a `Board`; a reporter beside it sends the newest state about once a second.
The site's own administrator reads the same on the `Sign`.
Progress is for the live view: an aggregator that is away costs reports, never work. The one answer that counts is "not
wanted": then the operation is cancelled and `Stale` is raised.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from agent.link import Link
from histofed.base.clock import Clock
from histofed.base.errors import HistofedError, NotFound, Stale
from histofed.base.ids import TaskKey
from histofed.recipes.contract import Progress

log = logging.getLogger(__name__)

T = TypeVar("T")

REPORT_SECONDS: Final = 1.0


@dataclass
class Board:
    """The newest state of one phase of a task."""

    phase: str
    clock: Clock
    done: int = 0
    total: int = 0
    losses: Mapping[str, float] = field(default_factory=dict)
    rate: float = 0.0
    device: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: bool = False
    """Of a transfer of which nothing has moved yet: others may have their turn, or a first stretch is on its way."""
    _began: float = 0.0
    _from: int | None = None

    def __post_init__(self) -> None:
        self._began = self.clock.monotonic()

    def trained(self, progress: Progress) -> None:
        """A line of the trainer."""
        self.done, self.total = progress.step, progress.steps
        self.losses, self.rate, self.device = progress.losses, progress.images_per_second, progress.device
        self.changed.set()

    def transferred(self, done: int, total: int) -> None:
        """Bytes of a transfer. The rate is that of what has moved since it began to move."""
        self.done, self.total = done, total
        now = self.clock.monotonic()
        self._from = done if self._from is None else self._from
        self.waiting = done == self._from < total
        if self.waiting:
            self._began = now
        self.rate = (done - self._from) / max(now - self._began, 1e-3)
        self.changed.set()

    def words(self) -> str:
        """For STATUS."""
        done = f"{self.phase} {self.done} of {self.total}" if self.total else self.phase
        done = f"{done}, nothing moved yet" if self.waiting else done
        return f"{done} on {self.device}" if self.device else done


class Sign:
    """What the agent is at, in words for STATUS."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._board: Board | None = None
        self.take_down()

    @property
    def words(self) -> str:
        """In one line."""
        return f"{self._words}: {self._board.words()}" if self._board else self._words

    def show(self, words: str) -> None:
        """Something has begun, of which nothing moves yet."""
        self._words, self._board = words, None

    def task(self, task: TaskKey) -> None:
        """The work on a task has begun."""
        self.show(f"round {task.round.number} of {task.round.experiment}")

    def board(self, phase: str) -> Board:
        """A phase of it has begun, which writes its progress on the board."""
        self._board = board = Board(phase, self._clock)
        return board

    def take_down(self) -> None:
        """It has ended."""
        self.show("waits for work")


async def watched(
    link: Link, task: TaskKey, attempt: int, board: Board, operation: Callable[[], Awaitable[T]], clock: Clock
) -> T:
    """The operation's result. Raises `Stale` when the aggregator does not want it any more; then it was cancelled."""
    work = asyncio.ensure_future(operation())
    reporter = asyncio.create_task(_report(link, task, attempt, board, clock))
    try:
        await asyncio.wait([work, reporter], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            reporter.result()
        return await work
    finally:
        await _cancelled(work)
        await _cancelled(reporter)


async def _report(link: Link, task: TaskKey, attempt: int, board: Board, clock: Clock) -> None:
    """Send the board whenever it changed, until the answer is that nobody wants the task; then raises `Stale`."""
    away = False
    while True:
        await board.changed.wait()
        board.changed.clear()
        try:
            answer = await link.report(task, attempt, board.phase, board.done, board.total, board.losses, board.rate)
        except (Stale, NotFound):
            raise
        except HistofedError as error:
            if not away:
                log.warning("progress of %s cannot be reported: %s; the work goes on", task, error)
            away = True
        else:
            away = False
            if not answer.wanted:
                raise Stale(answer.reason or "the aggregator does not want the task any more")
        await clock.sleep(REPORT_SECONDS)


async def _cancelled(running: asyncio.Future[T]) -> None:
    """Cancel and wait for the end; an error on the way out belongs to what was cancelled and is logged."""
    if not running.done():
        running.cancel()
        await asyncio.wait({running})
        if not running.cancelled() and (error := running.exception()) is not None:
            log.warning("while stopping: %s", error)
    elif not running.cancelled():
        # whoever waited for it has seen its error, or did not want it
        running.exception()
