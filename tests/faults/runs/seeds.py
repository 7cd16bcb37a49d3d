"""Which seeds are run when. A seed that failed once stays in the fast set for ever, with what it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

FOUND: Final[Mapping[int, str]] = {
    4: "an upload that was refused left its sender waiting for ever",
    8: "gRPC's pause between connections came on top of the agent's own",
    54: "a site dropped the private tensors of a round that a restored aggregator goes on with",
    70: "a site whose clock had fallen back by hours never connected again",
    120: "an admitted update that the disk did not let go of at once left its folder in the outbox",
}
"""Seed → the line of TRACK-RECORD.md that it brought."""
MEETING: Final = (74, 77, 93)
"""Their faults meet transfers on the way: parts with bytes are opened again at both ends."""
FAST: Final = tuple(sorted({*range(1, 13), *MEETING, *FOUND}))
"""Run on every change."""


def parse(text: str) -> list[int]:
    """`fast`, `1-200`, `7`, `1-12,40`. Raises `ValueError`."""
    if text == "fast":
        return list(FAST)
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
