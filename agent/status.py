"""`status.json`: what the running daemon says about itself, and how `histofed-agent status` reads it.

The daemon replaces the file when something changed, and touches it every `BEAT_S` seconds, so that its age says whether the
loop turns: `status --live`, the liveness probe of a pod. Nobody else writes it. It is a view: nothing is decided by it.

The file outlives a daemon that was killed, and the number of its process may be another's by now (in a pod it is always 1).
So the daemon runs as long as that process holds the lock of the state, or the file is fresh.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from agent.layout import Layout
from histofed.base import checkup, durable
from histofed.base.clock import Clock
from histofed.base.doctor import Doubt
from histofed.base.errors import AggregatorUnavailable, BadData, NotFound
from histofed.base.ids import Json

BEAT_S: Final = 20.0
LIVE_S: Final = 60.0
"""Three beats: a disk may be slow once."""

REFUSED: Final = "not connected"
"""How the words of a daemon begin that tried and failed; one that still tries has others."""


@checked(frozen=True, config=ConfigDict(extra="ignore", strict=True))
class Status:
    """One moment of one daemon."""

    version: str
    site: str
    aggregator: str
    connected: bool
    words: str
    """What it does, in one line."""
    task: str | None
    updates_waiting: int
    """Finished updates without a verdict."""
    certificate_expires_at: str
    process: int
    faults: tuple[str, ...] = ()
    """What is wrong with consent file or data root, one sentence each; none are told by earlier releases."""


@dataclass(frozen=True)
class Seen:
    """A status as its reader finds it."""

    status: Status
    running: bool
    """The daemon that wrote it is alive."""

    @property
    def connected(self) -> bool:
        """It is alive and said that it was connected."""
        return self.running and self.status.connected

    @property
    def faults(self) -> tuple[str, ...]:
        """What it found wrong at this site; nobody looks while it does not run."""
        return self.status.faults if self.running else ()

    def document(self) -> dict[str, Json]:
        """For machines: what `lines` says."""
        status = self.status
        return {
            "site": status.site,
            "version": status.version,
            "running": self.running,
            "process": status.process if self.running else None,
            "aggregator": status.aggregator,
            "connected": self.connected,
            "now": status.words if self.running else "nothing",
            "task": status.task,
            "updates_waiting": status.updates_waiting,
            "certificate_expires_at": status.certificate_expires_at,
            "faults": list(self.faults),
        }

    def lines(self) -> tuple[str, ...]:
        """For a terminal."""
        status = self.status
        return (
            f"site          {status.site} (histofed {status.version})",
            f"agent         {f'runs, process {status.process}' if self.running else 'does not run'}",
            f"aggregator    {status.aggregator}, {'connected' if self.connected else 'not connected'}",
            f"now           {status.words if self.running else 'nothing'}",
            f"task          {status.task or 'none'}",
            f"outbox        {status.updates_waiting} updates wait for a verdict",
            f"certificate   valid until {status.certificate_expires_at}",
            *(f"to repair     {fault}" for fault in self.faults),
        )


def write_status(layout: Layout, status: Status) -> None:
    """Replace the file. Raises `CannotWriteState`."""
    durable.replace(layout.status, TypeAdapter(Status).dump_json(status))


def turns(layout: Layout, clock: Clock) -> bool:
    """Whether the daemon's loop turned lately. Raises what `read_status` raises."""
    return read_status(layout, clock).running and _fresh(layout, clock)


def _fresh(layout: Layout, clock: Clock) -> bool:
    return clock.now().timestamp() - layout.status.stat().st_mtime <= LIVE_S


def read_status(layout: Layout, clock: Clock) -> Seen:
    """What the daemon last said. Raises `NotFound` when none ran here, or none since a restore, `BadData` for damage."""
    try:
        found: Any = TypeAdapter(Status).validate_json(layout.status.read_bytes())
    except FileNotFoundError as error:
        none = "no agent has run since the state was restored" if layout.state.exists() else "no agent ever ran"
        raise NotFound(f"{none} with the state directory {layout.root}; start histofed-agent run") from error
    except ValidationError as error:
        raise BadData(f"{layout.status} cannot be read; it is written again when the agent runs") from error
    process = found.process
    return Seen(found, _alive(process) and (checkup.holder(layout.lock) == process or _fresh(layout, clock)))


def examine(layout: Layout, clock: Clock, start: str) -> str | Doubt:
    """For `doctor`: the daemon runs and is let work. Raises `AggregatorUnavailable` with what it says of itself.

    `start` is how to start it.
    """
    runs = checkup.running(layout.lock, start)
    if isinstance(runs, Doubt) or not layout.status.exists():
        return runs
    seen = read_status(layout, clock)
    if seen.connected or not seen.running:  # the file of a daemon before this one says nothing
        return runs
    words = f"{runs}, and says: {seen.status.words}"
    if seen.status.words.startswith(REFUSED):
        raise AggregatorUnavailable(words)
    return Doubt(words)


def _alive(process: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody waits for (a container without init) is none."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
