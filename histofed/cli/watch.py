"""`histofed rounds watch`: follow an experiment until it has ended or rests, over restarts of the aggregator.

`follow` turns the stream into moments and reconnects with back-off; a `Show` puts them on a terminal, into a log, or into a
program. It ends with the experiment, when that is paused and no round is open, or after `patience` seconds without a
connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Protocol, TextIO

from histofed.base.clock import Clock, SystemClock
from histofed.base.errors import AggregatorUnavailable, BadData, HistofedError, TryLater
from histofed.base.words import readable
from histofed.cli import lifetime
from histofed.cli.client import OperatorClient
from histofed.cli.command import Finished, Terminal, in_json, printable
from histofed.cli.config import load_operator
from histofed.cli.moments import Course, Moment, changes, interrupted, observe
from histofed.cli.views import Experiment, document
from histofed.transport.backoff import Backoff, may_retry

RECONNECT = Backoff(first_s=0.5, most_s=10.0, attempts=None)
"""A restarted aggregator is back in seconds; `patience` is the bound."""

Connect = Callable[[], contextlib.AbstractAsyncContextManager[OperatorClient]]


class Show(Protocol):
    """Puts what happens somewhere."""

    def moment(self, moment: Moment) -> None:
        """Something changed."""
        ...

    def notice(self, sentence: str) -> None:
        """The connection was lost."""
        ...


def run(config: Path | None, experiment: str, patience: float, terminal: Terminal, *, as_json: bool) -> Finished:
    """Watch until it rests; 0 when it finished, 75 when it is paused, else 65, with the reason on stderr."""
    operator = load_operator(config)
    clock = SystemClock()
    lifetime.warn(operator, clock, terminal.error)

    async def watch() -> Experiment:
        with _show_on(terminal, clock, as_json=as_json) as show:
            last: Experiment | None = None
            followed = follow(lambda: OperatorClient.connect(operator), experiment, patience, clock, show.notice)
            async with contextlib.aclosing(followed) as moments:
                async for moment in moments:
                    show.moment(moment)
                    last = moment.sight.experiment
        assert last is not None
        return last

    end = asyncio.run(watch())
    if end.state == "finished":
        return Finished()
    reason = readable(end.reason) or "no reason given"
    if not end.ended:
        terminal.error.write(
            f"histofed: experiment {end.name} is paused: {reason}; `histofed experiments resume {end.name}` begins the next "
            "round, `cancel` ends it\n"
        )
        return Finished(TryLater.exit_code)
    terminal.error.write(f"histofed: experiment {end.name} {end.state}: {reason}\n")
    return Finished(BadData.exit_code)


async def follow(
    connect: Connect, experiment: str, patience: float, clock: Clock, notice: Callable[[str], None]
) -> AsyncGenerator[Moment, None]:
    """Moments until the experiment rests. Raises the last connection error after `patience` seconds without a message.

    Whoever may stop listening earlier closes it: its connection ends with it.
    """
    lost_at: float | None = None
    waits = RECONNECT.delays(random.Random())
    while True:
        error: HistofedError = AggregatorUnavailable("the aggregator closed the stream (it is restarting?)")
        try:
            async with connect() as operator, contextlib.aclosing(_one_connection(operator, experiment)) as moments:
                async for moment in moments:
                    lost_at, waits = None, RECONNECT.delays(random.Random())
                    yield moment
                    if moment.sight.experiment.rests:
                        return
        except HistofedError as found:
            if not may_retry(found):
                raise
            error = found
        lost_at = clock.monotonic() if lost_at is None else lost_at
        if clock.monotonic() - lost_at >= patience:
            raise error
        wait = next(waits)
        notice(f"{error}; trying again in {wait:.1f} s")
        await clock.sleep(wait)


async def _one_connection(operator: OperatorClient, experiment: str) -> AsyncGenerator[Moment, None]:
    """The stream of one connection; the list of rounds is asked for at the start and whenever a round closed."""
    past = await operator.rounds(experiment)
    listed: tuple[int, bool] | None = None
    async with contextlib.aclosing(operator.watch(experiment)) as sights:
        async for sight in sights:
            now = (sight.round.round, sight.round.closed) if sight.round is not None else None
            if sight.experiment.rests or (now != listed and listed is not None):
                past = await operator.rounds(experiment)
            listed = now
            yield Moment(sight, past)


@contextlib.contextmanager
def _show_on(terminal: Terminal, clock: Clock, *, as_json: bool) -> Iterator[Show]:
    """The show that suits whoever reads stdout."""
    if as_json:
        yield JsonLines(terminal.out, terminal.error)
    elif terminal.live:
        with live_show(terminal.out, clock) as show:
            yield show
    else:
        yield Lines(terminal.out, terminal.error)


@contextlib.contextmanager
def live_show(out: TextIO, clock: Clock) -> Iterator[Show]:
    """The live view; drawn again twice a second, so that the times left run down between messages."""
    from rich.console import Console
    from rich.live import Live

    from histofed.cli.live import draw

    if (reconfigure := getattr(out, "reconfigure", None)) is not None:
        reconfigure(errors="backslashreplace")  # rich would end at a letter that the terminal does not take
    show = Screen(clock)
    with Live(
        console=Console(file=out),
        refresh_per_second=2,
        get_renderable=lambda: draw(show.course, clock.monotonic()),
        redirect_stdout=False,
        redirect_stderr=False,
    ):
        yield show


class Screen:
    """What the live view draws next. The drawing thread reads `course`, one frozen value that is only ever exchanged."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.course = Course()

    def moment(self, moment: Moment) -> None:
        self.course = observe(self.course, moment, self._clock.monotonic())

    def notice(self, sentence: str) -> None:
        self.course = interrupted(self.course, sentence)


class Lines:
    """A line per change: for logs and pipes."""

    def __init__(self, out: TextIO, error: TextIO) -> None:
        self._out, self._error = out, error
        self._last: Moment | None = None

    def moment(self, moment: Moment) -> None:
        for line in changes(self._last, moment):
            print(printable(readable(line), self._out), file=self._out, flush=True)
        self._last = moment

    def notice(self, sentence: str) -> None:
        print(f"histofed: {readable(sentence)}", file=self._error, flush=True)


class JsonLines:
    """A document per message: for programs."""

    def __init__(self, out: TextIO, error: TextIO) -> None:
        self._out, self._error = out, error

    def moment(self, moment: Moment) -> None:
        print(in_json(document(moment.sight), self._out), file=self._out, flush=True)

    def notice(self, sentence: str) -> None:
        print(f"histofed: {readable(sentence)}", file=self._error, flush=True)
