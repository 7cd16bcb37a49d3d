"""What is done every few seconds beside the rounds: backups are noted, values are read, probes are told.

One that a full disk refuses does not keep the others from being done: then above all they are looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from aggregator.gauges import Gauges
from aggregator.history import Chronicle
from aggregator.probes import Probes
from histofed.base.errors import CannotWriteState
from histofed.telemetry.logs import fields

log = logging.getLogger(__name__)

BEAT_S: Final = 5.0


class Pulse:
    """Run by the daemon."""

    def __init__(self, chronicle: Chronicle, gauges: Gauges, probes: Probes) -> None:
        self._chronicle = chronicle
        self._gauges = gauges
        self._probes = probes

    async def run(self, drain: asyncio.Event) -> None:
        """Beat until the daemon drains; from then on probes hear that it is not ready."""
        while not drain.is_set():
            await self.beat()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(drain.wait(), BEAT_S)
        await self._probes.drain()

    async def beat(self) -> None:
        """Everything once."""
        try:
            self._chronicle.note_backups()
        except CannotWriteState as error:
            log.error("backups are not noted", extra=fields(reason=str(error)))
        try:
            self._gauges.refresh()
        except CannotWriteState as error:
            log.error("gauges are not renewed", extra=fields(reason=str(error)))
        await self._probes.renew()
