"""What is done every few seconds beside the rounds: what other processes did is noted, values are read, probes are told.

One that a full disk refuses does not keep the others from being done: then above all they are looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Final

from aggregator.probes import Probes
from histofed.base.errors import CannotWriteState
from histofed.telemetry.logs import fields

log = logging.getLogger(__name__)

BEAT_S: Final = 5.0


class Pulse:
    """Run by the daemon."""

    def __init__(self, steps: Mapping[str, Callable[[], None]], probes: Probes) -> None:
        """`steps` are done in their order; a name is what the log says of one that the disk refuses."""
        self._steps = steps
        self._probes = probes

    async def run(self, drain: asyncio.Event) -> None:
        """Beat until the daemon drains; from then on probes hear that it is not ready."""
        while not drain.is_set():
            await self.beat()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(drain.wait(), BEAT_S)
        self._probes.drain()

    async def beat(self) -> None:
        """Everything once."""
        for refused, step in self._steps.items():
            try:
                step()
            except CannotWriteState as error:
                log.error(refused, extra=fields(reason=str(error)))
        self._probes.renew()
