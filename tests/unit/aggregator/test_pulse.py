"""The daemon's beat on a disk that is full."""

from __future__ import annotations

from typing import Any, cast

from aggregator.pulse import Pulse
from histofed.base.errors import CannotWriteState


class Parts:
    """The chronicle, the gauges and the probes, each of which may stand on a full disk."""

    def __init__(self, *full: str) -> None:
        self.full = full
        self.done: list[str] = []

    def note_backups(self) -> None:
        self._do("backups")

    def refresh(self) -> None:
        self._do("gauges")

    async def renew(self) -> None:
        self._do("probes")

    def _do(self, what: str) -> None:
        if what in self.full:
            raise CannotWriteState("cannot write: No space left on device")
        self.done.append(what)


async def beat(*full: str) -> list[str]:
    parts = Parts(*full)
    stand_in = cast("Any", parts)
    await Pulse(stand_in, stand_in, stand_in).beat()
    return parts.done


async def test_a_full_disk_stops_nothing_but_what_writes() -> None:
    assert await beat() == ["backups", "gauges", "probes"]
    assert await beat("backups") == ["gauges", "probes"], "the gauge of the disk above all"
    assert await beat("backups", "gauges") == ["probes"]
