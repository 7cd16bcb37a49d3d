"""Which agents are connected, what is to be told to them, and how far their tasks are. In memory only.

Everything here can be lost: after a restart agents reconnect, offers are derived from the rounds, progress is reported
again. What must survive is in `aggregator/store.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from histofed.base.clock import Clock
from histofed.base.errors import AlreadyThere
from histofed.base.ids import SiteId, TaskKey

QUEUE_LIMIT: Final = 64
"""Messages that wait for one agent. One that does not keep up comes again, and then hears of all its tasks at once."""


@dataclass(frozen=True)
class OfferTask:
    """Send the offer of this task; its content is read when it is sent."""

    task: TaskKey


@dataclass(frozen=True)
class WithdrawTask:
    """The task is not wanted any more."""

    task: TaskKey
    reason: str


@dataclass(frozen=True)
class Replaced:
    """A newer connection of the same agent took over; this one ends."""


@dataclass(frozen=True)
class Closing:
    """The aggregator stops, or has refused the agent's later hello: it comes back to the next process, or with another."""


Message: TypeAlias = OfferTask | WithdrawTask | Replaced | Closing


@dataclass(frozen=True)
class TaskProgress:
    """The latest word of a site about a task."""

    phase: str
    done: int
    total: int
    losses: Mapping[str, float] = field(default_factory=dict)
    rate: float = 0.0


@dataclass(eq=False)
class Connection:
    """One open `WaitForWork` stream."""

    site: SiteId
    instance: str
    messages: asyncio.Queue[Message] = field(default_factory=lambda: asyncio.Queue(QUEUE_LIMIT))

    def send(self, message: Message) -> None:
        """Queue a message; an agent that does not read is disconnected by its full queue."""
        try:
            self.messages.put_nowait(message)
        except asyncio.QueueFull:
            while not self.messages.empty():
                self.messages.get_nowait()
            self.messages.put_nowait(Replaced())


class Changes:
    """Tells waiting watchers that something they may show has changed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.closed = False
        """Nothing more will change in this process; watchers end."""

    def close(self) -> None:
        """The aggregator stops."""
        self.closed = True
        self.notify()

    def notify(self) -> None:
        """Wake every watcher."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Return at the next change, or after `seconds`."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return


class Fleet:
    """The connected agents."""

    def __init__(self, clock: Clock, changes: Changes) -> None:
        self._clock = clock
        self._changes = changes
        self._connections: dict[SiteId, Connection] = {}
        self._gone: dict[SiteId, float] = {}
        self._ended: dict[SiteId, float] = {}
        """When the last stream of a site that is away ended."""
        self._progress: dict[TaskKey, TaskProgress] = {}

    def expect(self, sites: tuple[SiteId, ...]) -> None:
        """These sites were present when the process ended; they get time to come back."""
        for site in sites:
            self._gone[site] = self._clock.monotonic()

    def connect(self, site: SiteId, instance: str) -> Connection:
        """A new stream. Raises `AlreadyThere` while another agent holds the identity."""
        current = self._connections.get(site)
        if current is not None and current.instance != instance:
            raise AlreadyThere(
                f"another agent is connected as site {site}; two agents with one identity would spoil each other's work: "
                "stop one of them, or enrol it under a name of its own"
            )
        if current is not None:
            current.send(Replaced())
        connection = Connection(site, instance)
        self._connections[site] = connection
        self._gone.pop(site, None)
        self._ended.pop(site, None)
        self._changes.notify()
        return connection

    def disconnect(self, connection: Connection) -> None:
        """The stream ended; a newer one of the same agent is not touched."""
        if self._connections.get(connection.site) is connection:
            del self._connections[connection.site]
            self._gone[connection.site] = self._ended[connection.site] = self._clock.monotonic()
            self._changes.notify()

    def turn_away(self, site: SiteId) -> None:
        """The site's hello was refused: its stream ends, and it is given up now, not waited for."""
        connection = self._connections.get(site)
        if connection is not None:
            self.disconnect(connection)
            connection.send(Closing())
        if site in self._gone:
            self._gone[site] = -math.inf

    def close(self) -> None:
        """End every stream in good order: the aggregator stops, and nobody should wait for that."""
        for connection in self._connections.values():
            connection.send(Closing())

    def send(self, site: SiteId, message: Message) -> None:
        """Tell the site when it is connected; otherwise it learns at its next connection."""
        connection = self._connections.get(site)
        if connection is not None:
            connection.send(message)

    @property
    def connected(self) -> frozenset[SiteId]:
        """Sites with an open stream."""
        return frozenset(self._connections)

    def seen_at(self, site: SiteId) -> datetime | None:
        """When the site was there last: now while it is connected; None when this process has not seen it."""
        if site in self._connections:
            return self._clock.now()
        ended = self._ended.get(site)
        return None if ended is None else self._clock.now() - timedelta(seconds=self._clock.monotonic() - ended)

    def present(self) -> frozenset[SiteId]:
        """Sites that are connected or may come back: a restart must not change who can be sampled."""
        return self.connected | frozenset(self._gone)

    def last_seen(self) -> Mapping[SiteId, datetime]:
        """When the present sites were there last, those that this process has seen."""
        return {site: at for site in sorted(self.present()) if (at := self.seen_at(site)) is not None}

    def given_up(self, grace_s: float) -> Iterator[SiteId]:
        """Sites that have been away longer than `grace_s`; each is named until whoever asked has done with it."""
        now = self._clock.monotonic()
        for site, since in tuple(self._gone.items()):
            if now - since > grace_s:
                yield site
                del self._gone[site]  # not where the disk refused to keep that it left

    def report(self, task: TaskKey, progress: TaskProgress) -> None:
        """The site's latest word about a task."""
        self._progress[task] = progress
        self._changes.notify()

    def progress(self, task: TaskKey) -> TaskProgress | None:
        """The latest word about a task, if any came since the start."""
        return self._progress.get(task)

    def forget(self, tasks: tuple[TaskKey, ...]) -> None:
        """The round ended."""
        for task in tasks:
            self._progress.pop(task, None)
