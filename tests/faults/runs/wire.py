"""One direction of a link: delay, jitter, loss, a bandwidth, a cut. Pure: packets are bytes, the time is handed in."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from random import Random
from typing import Final

QUEUE_S: Final = 0.5
"""A router's buffer: what would wait longer for its turn is dropped, and TCP hears of it that way."""


@dataclass(frozen=True)
class Rules:
    """How one direction treats its packets."""

    cut: bool = False
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bits_per_s: float = 0.0
    """0 is no limit."""


class Wire:
    """Packets on their way. Without jitter none overtakes another, also when the delay becomes shorter."""

    def __init__(self, random: Random) -> None:
        self.rules = Rules()
        self._random = random
        self._waiting: list[tuple[float, int, bytes]] = []
        self._count = 0
        self._free_at = 0.0
        self._last = 0.0

    def send(self, packet: bytes, now: float) -> None:
        """A packet enters, or is lost."""
        rules = self.rules
        if rules.cut or self._random.random() < rules.loss:
            return
        begins = now
        if rules.bits_per_s:
            begins = max(now, self._free_at)
            if begins - now > QUEUE_S:
                return
            begins += len(packet) * 8 / rules.bits_per_s
            self._free_at = begins
        due = begins + rules.delay_s
        if rules.jitter_s:
            due = max(now, due + self._random.uniform(-rules.jitter_s, rules.jitter_s))
        else:
            due = self._last = max(due, self._last)
        self._count += 1
        heapq.heappush(self._waiting, (due, self._count, packet))

    def arrived(self, now: float) -> list[bytes]:
        """Packets that come out by `now`, in their order; a cut loses those under way too."""
        out = []
        while self._waiting and self._waiting[0][0] <= now:
            packet = heapq.heappop(self._waiting)[2]
            if not self.rules.cut:
                out.append(packet)
        return out

    @property
    def next_due(self) -> float | None:
        """When the next packet comes out."""
        return self._waiting[0][0] if self._waiting else None
