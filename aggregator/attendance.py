"""When each site was there last, kept for the next process: `Fleet` knows it to the second, and forgets it at the end.

A hello and a site's leaving are written as they happen (`members.py`). Of a site that stays, this is written every few
minutes, and once more when the aggregator stops, so a site that goes away meanwhile was there last when it was. Run by the
daemon's pulse.
"""

from __future__ import annotations

import logging
from typing import Final

from aggregator.fleet import Fleet
from aggregator.members import Members
from histofed.base.clock import Clock
from histofed.base.errors import CannotWriteState
from histofed.telemetry.logs import fields

log = logging.getLogger(__name__)

EVERY_S: Final = 300.0
"""How much too early a site's last moment may be where the aggregator was killed."""


class Attendance:
    """Writes what the fleet knows."""

    def __init__(self, fleet: Fleet, members: Members, clock: Clock) -> None:
        self._fleet = fleet
        self._members = members
        self._clock = clock
        self._next = clock.monotonic() + EVERY_S

    def turn(self) -> None:
        """Write it, when it is time. Raises `CannotWriteState`; then it waits for the next time."""
        if self._clock.monotonic() < self._next:
            return
        self._next = self._clock.monotonic() + EVERY_S
        self._members.sites_stayed(self._fleet.last_seen())

    def close(self) -> None:
        """The aggregator stops; a disk that refuses keeps it from nothing."""
        try:
            self._members.sites_stayed(self._fleet.last_seen())
        except CannotWriteState as error:
            log.error("when sites were there last is not kept", extra=fields(reason=str(error)))
