"""How a run of `histofed train` shows itself while it works: a bar for a person, a line now and then for a log.

Everything goes to stderr, so that stdout holds the answer alone. rich is imported only where a person watches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from histofed.base.clock import Clock
from histofed.cli.command import Terminal
from histofed.cli.tables import losses, span
from histofed.recipes.contract import Progress
from histofed.recipes.gan.show import Span

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

LINE_SECONDS: Final = 10.0


class TrainingShow(Protocol):
    """`recipes.gan.show.Show`, and whether there is already something to keep."""

    @property
    def training(self) -> bool:
        """The loop has begun."""
        ...

    def phase(self, words: str) -> None:
        """What takes its time now."""
        ...

    def begin(self, span: Span) -> None:
        """The loop begins."""
        ...

    def progress(self, progress: Progress) -> None:
        """How far it is."""
        ...


def numbers(progress: Progress, span_: Span) -> str:
    """`discriminator 0.512  generator 1.204  31.4 images/s  4 min 10 s left`; to which step, where the run does not end."""
    parts = [losses(progress.losses)] if progress.losses else []
    if progress.images_per_second > 0:
        left = (span_.last - progress.step) * span_.batch / progress.images_per_second
        end = f" to step {span_.last}" if span_.last < span_.steps else ""
        parts += [f"{progress.images_per_second:.1f} images/s", f"{span(left)} left{end}"]
    return "  ".join(parts)


class Lines:
    """A line for each phase, and one every ten seconds."""

    def __init__(self, error: TextIO, clock: Clock) -> None:
        self._error, self._clock = error, clock
        self._span: Span | None = None
        self._told = clock.monotonic()

    @property
    def training(self) -> bool:
        return self._span is not None

    def phase(self, words: str) -> None:
        self._say(words)

    def begin(self, span: Span) -> None:
        self._span = span
        self._told = self._clock.monotonic()
        self._say(f"training from step {span.first} to {span.last} of {span.steps}, {span.batch} tiles each")

    def progress(self, progress: Progress) -> None:
        assert self._span is not None
        now = self._clock.monotonic()
        if now - self._told >= LINE_SECONDS or progress.step >= self._span.last:
            self._told = now
            self._say(f"step {progress.step}/{progress.steps}  {numbers(progress, self._span)}")

    def _say(self, words: str) -> None:
        print(f"histofed: {words}", file=self._error, flush=True)


class Bar:
    """A progress bar; what libraries and warnings write to stderr appears above it."""

    def __init__(self, bar: RichProgress) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=None, words="")
        self._span: Span | None = None

    @property
    def training(self) -> bool:
        return self._span is not None

    def phase(self, words: str) -> None:
        self._bar.update(self._task, description=words)

    def begin(self, span: Span) -> None:
        self._span = span
        self._bar.update(self._task, description=self._place(span.first), total=span.last, completed=span.first)

    def progress(self, progress: Progress) -> None:
        assert self._span is not None
        self._bar.update(
            self._task,
            description=self._place(progress.step),
            completed=progress.step,
            words=numbers(progress, self._span),
        )

    def _place(self, step: int) -> str:
        assert self._span is not None
        return f"step {step}/{self._span.steps}"


@contextlib.contextmanager
def training_show(terminal: Terminal, clock: Clock) -> Iterator[TrainingShow]:
    """The show that suits whoever reads stderr."""
    if not terminal.error.isatty():
        yield Lines(terminal.error, clock)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
    with Progress(*columns, console=Console(file=terminal.error), refresh_per_second=4, transient=True) as bar:
        yield Bar(bar)
