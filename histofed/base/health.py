"""How the daemon is, in named conditions and in words; probes and `status` read it, subsystems write it.

*Live* means that the event loop turned lately: only then does restarting help, so nothing else can make it false.
*Ready* means live and every required condition good. A required condition that nobody has reported on is not good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from histofed.base.clock import Clock

Watcher = Callable[[bool, bool], None]
"""Told (live, ready) at each change."""


@dataclass(frozen=True)
class Condition:
    """One thing that can be good or bad, for example `aggregator: unreachable since three tries`."""

    name: str
    ok: bool
    words: str
    since: datetime
    """When it last turned good or bad."""
    required: bool
    """Readiness waits for it; otherwise it is a warning."""


class Health:
    """The conditions of one process. Not for threads: call it from the event loop."""

    def __init__(self, clock: Clock, required: Iterable[str], *, loop_seconds: float = 30.0) -> None:
        self._clock = clock
        self._loop_seconds = loop_seconds
        self._beaten = clock.monotonic()
        self._watchers: list[Watcher] = []
        self._conditions = {
            name: Condition(name, ok=False, words="not known yet", since=clock.now(), required=True) for name in required
        }
        self._told = (self.live, self.ready)

    def set(self, name: str, ok: bool, words: str) -> None:
        """Report on a condition; one that is not required is added as a warning."""
        before = self._conditions.get(name)
        self._conditions[name] = Condition(
            name=name,
            ok=ok,
            words=words,
            since=before.since if before and before.ok == ok else self._clock.now(),
            required=before.required if before else False,
        )
        self._tell()

    def beat(self) -> None:
        """The loop turned."""
        self._beaten = self._clock.monotonic()
        self._tell()

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher(live, ready)` now and at each change that `set` or `beat` brings about."""
        self._watchers.append(watcher)
        watcher(self.live, self.ready)

    @property
    def live(self) -> bool:
        """The loop turned within `loop_seconds`."""
        return self._clock.monotonic() - self._beaten <= self._loop_seconds

    @property
    def ready(self) -> bool:
        """Live, and every required condition is good."""
        return self.live and all(condition.ok for condition in self._conditions.values() if condition.required)

    def conditions(self) -> tuple[Condition, ...]:
        """Bad ones first, then by name."""
        return tuple(sorted(self._conditions.values(), key=lambda condition: (condition.ok, condition.name)))

    def words(self) -> str:
        """One line for a person."""
        bad = [f"{condition.name}: {condition.words}" for condition in self.conditions() if not condition.ok]
        if not self.live:
            bad.insert(0, f"the loop has not turned for {self._clock.monotonic() - self._beaten:.0f} s")
        return "; ".join(bad) or "all is well"

    def _tell(self) -> None:
        now = (self.live, self.ready)
        if now != self._told:
            self._told = now
            for watcher in self._watchers:
                watcher(*now)
