"""The values that are read rather than counted here: what alerts look at (`deploy/k8s/components/prometheus-operator`).

Called by the daemon every few seconds; reads, never writes. A series whose subject is gone is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from aggregator.engine import Engine
from aggregator.fleet import Fleet
from aggregator.members import Members
from histofed.base import durable
from histofed.base.clock import Clock
from histofed.base.health import Health
from histofed.telemetry import attributes as names
from histofed.telemetry.metrics import Metrics
from histofed.telemetry.tracing import Tracing


class Gauges:
    """Sites, rounds, conditions, disk and certificates as they are now, and what the tracing has dropped."""

    def __init__(
        self,
        *,
        metrics: Metrics,
        tracing: Tracing,
        engine: Engine,
        fleet: Fleet,
        members: Members,
        health: Health,
        clock: Clock,
        state: Path,
        certificate_ends: Callable[[], datetime],
    ) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._engine = engine
        self._fleet = fleet
        self._members = members
        self._health = health
        self._clock = clock
        self._state = state
        self._certificate_ends = certificate_ends
        self._open: set[str] = set()
        self._dropped = 0

    def refresh(self) -> None:
        """Read everything once. Raises `CannotWriteState` when the database cannot be read."""
        metrics, now = self._metrics, self._clock.now()
        connected = set(self._fleet.connected)
        metrics.set(names.SITES_CONNECTED, len(connected))
        for condition in self._health.conditions():
            metrics.set(names.CONDITION, condition.ok, condition=condition.name)
        metrics.set(names.DISK_FREE_BYTES, durable.free_bytes(self._state))
        dropped = self._tracing.dropped
        metrics.count(names.TELEMETRY_DROPPED_TOTAL, dropped - self._dropped)
        self._dropped = dropped
        metrics.set(names.CERTIFICATE_EXPIRY, (self._certificate_ends() - now).total_seconds())
        self._rounds(now)
        for site, expiry in self._members.certificate_expiries().items():
            metrics.set(names.SITE_CONNECTED, site in connected, site=site)
            metrics.set(names.SITE_CERTIFICATE_EXPIRY, (expiry - now).total_seconds(), site=site)

    def _rounds(self, now: datetime) -> None:
        deadlines = {
            state.key.experiment: state.deadline for state in self._engine.open_rounds if state.deadline is not None
        }
        for experiment in self._open - deadlines.keys():
            self._metrics.forget(names.ROUND_DEADLINE, experiment=experiment)
        for experiment, deadline in deadlines.items():
            self._metrics.set(names.ROUND_DEADLINE, (deadline - now).total_seconds(), experiment=experiment)
        self._open = set(deadlines)
