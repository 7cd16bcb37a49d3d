"""The daemon's beat on a disk that is full."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from aggregator.pulse import Pulse
from histofed.base.errors import CannotWriteState


class Parts:
    """What is done, each of which may stand on a full disk."""

    def __init__(self, *full: str) -> None:
        self.full = full
        self.done: list[str] = []

    def renew(self) -> None:
        self.do("probes")

    def do(self, what: str) -> None:
        if what in self.full:
            raise CannotWriteState("cannot write: No space left on device")
        self.done.append(what)


async def beat(*full: str) -> list[str]:
    parts = Parts(*full)
    steps = {f"{name} are not noted": partial(parts.do, name) for name in ("backups", "gauges")}
    await Pulse(steps, cast("Any", parts)).beat()
    return parts.done


async def test_a_full_disk_stops_nothing_but_what_writes() -> None:
    assert await beat() == ["backups", "gauges", "probes"]
    assert await beat("backups") == ["gauges", "probes"], "the gauge of the disk above all"
    assert await beat("backups", "gauges") == ["probes"]
