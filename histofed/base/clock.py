"""The one place that reads time. UTC everywhere; tests hand in `FakeClock`."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol


class Clock(Protocol):
    """Wall clock and monotonic clock, and the only way to wait for time to pass."""

    def now(self) -> datetime:
        """The wall clock, aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary point; never jumps."""
        ...

    def sleep(self, seconds: float) -> Awaitable[None]:
        """Wait inside the event loop."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class FakeClock:
    """A clock that moves only when a test says so; `sleep` moves it too."""

    def __init__(self, start: datetime | None = None) -> None:
        self._now = start or datetime(2026, 1, 1, tzinfo=UTC)
        self._monotonic = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Time passes on both clocks."""
        self._monotonic += seconds
        self._now += timedelta(seconds=seconds)

    def jump(self, seconds: float) -> None:
        """The wall clock is set, as by an administrator; the monotonic clock does not notice."""
        self._now += timedelta(seconds=seconds)


_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


def iso(moment: datetime) -> str:
    """`2026-01-01T00:00:00.000000Z`: sortable text, microseconds, always UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def from_iso(text: str) -> datetime:
    """The reverse of `iso`; no other way of writing a moment is understood. Raises `ValueError`."""
    if _MOMENT.fullmatch(text) is None:
        raise ValueError(f"not a moment in UTC: {text[:40]!r}")
    return datetime.fromisoformat(text)
