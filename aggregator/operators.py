"""Operators' certificates issued beside a running daemon: it alone writes the journal, and no audit means no action.

    command    leaves STATE/issued/SERIAL, which holds the identity, and waits
    daemon     journals `operator.issued`, then removes the file (`aggregator/pulse.py`)
    command    hands the certificate out once the file is gone; takes the file back, and hands out nothing, when nobody came

A daemon that dies between the two journals the issue twice; a certificate that is not in the journal is in nobody's hands.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from histofed.audit.journal import Journal
from histofed.base import durable
from histofed.base.clock import Clock
from histofed.base.errors import TryLater
from histofed.base.words import one_line
from histofed.pki.authority import Issued

FOLDER: Final = "issued"
ACTION: Final = "operator.issued"
NOTED_S: Final = 60.0
"""Seconds that a daemon gets to journal an issue: a dozen of its beats."""
LOOK_S: Final = 0.5


def have_noted(state: Path, clock: Clock, issued: Issued) -> None:
    """Wait until the daemon that holds `state` has journalled the issue. Raises `TryLater`, `CannotWriteState`."""
    waiting = durable.make_directory(state / FOLDER) / issued.serial
    durable.replace(waiting, issued.identity.uri.encode())
    end = clock.monotonic() + NOTED_S
    try:
        while waiting.exists():
            if clock.monotonic() >= end:
                raise TryLater(
                    f"the process that holds {state} did not journal the certificate within {NOTED_S:g} seconds, so none "
                    "was handed out: look at the daemon's log, or restart it, and try again"
                )
            asyncio.run(_pause(clock))
    finally:
        durable.remove(waiting)


async def _pause(clock: Clock) -> None:
    await clock.sleep(LOOK_S)


def note_issued(state: Path, journal: Journal) -> None:
    """The daemon's part: journal what waits. Raises `CannotWriteState`; a later call notes the rest."""
    for path in durable.listing(state / FOLDER, "[0-9a-f]*"):
        with durable.state_errors(str(path)):
            try:
                identity = path.read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                continue  # taken back just now
        journal.append(ACTION, subject={"identity": one_line(identity), "serial": path.name})
        durable.remove(path)
