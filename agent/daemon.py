"""Wires the agent: the only place that constructs its parts. `histofed-agent run` is the caller.

Ready means: this site is enrolled, its state is open and the loop runs. An aggregator that cannot be reached does not make
an agent fail; it says so in STATUS and keeps trying. One process per state directory, held by a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

from agent.backup import note_made
from agent.bases import Bases
from agent.collector import tracing_of
from agent.config import AgentConfig, proxy_setting
from agent.desk import Desk
from agent.enrolment import own_site
from agent.layout import Layout, aggregator_address
from agent.link import Link
from agent.outbox import Outbox
from agent.premises import Premises
from agent.private import PrivateTensors
from agent.sessions import Sessions
from agent.state import State, lost
from agent.status import BEAT_S, Status, write_status
from agent.training import Trainers
from agent.work import Work
from histofed import __version__
from histofed.audit.history import History
from histofed.audit.journal import Journal
from histofed.backup import snapshot, swap
from histofed.base import durable
from histofed.base.clock import Clock, SystemClock, iso
from histofed.base.config import Loaded
from histofed.base.daemon import Daemon
from histofed.base.errors import CannotWriteState
from histofed.base.ids import SiteId
from histofed.base.reload import Reloads
from histofed.pki.credentials import Credentials
from histofed.telemetry.logs import fields

log = logging.getLogger(__name__)

STATUS_SECONDS: Final = 2.0
RELOADABLE: Final = ("consent", "data.", "log_level", "minimum_patients", "trainer.", "transfer.")
"""Settings that a reload changes, by the beginning of their keys; the others need a restart."""


@dataclass(frozen=True)
class _Parts:
    """What `start` built."""

    site: SiteId
    link: Link
    state: State
    outbox: Outbox
    work: Work
    sessions: Sessions
    journal: Journal
    trainers: Trainers


class AgentService:
    """The agent inside `histofed.base.daemon.Daemon`."""

    def __init__(
        self,
        loaded: Loaded[AgentConfig],
        read_again: Callable[[], Loaded[AgentConfig]],
        clock: Clock,
        random: Random,
    ) -> None:
        self._loaded = loaded
        self._read_again = read_again
        self._reloads = Reloads(loaded, RELOADABLE)
        self._clock = clock
        self._random = random
        self._layout = Layout(loaded.config.state_dir)
        self._premises = Premises()
        self._closing = contextlib.AsyncExitStack()
        self._parts: _Parts | None = None
        self._talking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open everything. Raises `NotEnrolled`, `AlreadyThere`, `CannotWriteState`, `ConfigError`, `VersionMismatch`."""
        config, layout, closing = self._loaded.config, self._layout, self._closing
        _finish_restore(layout)
        address = aggregator_address(config.aggregator, layout)
        site = own_site(Credentials.load(layout.identity))
        durable.make_directory(layout.root)
        closing.enter_context(durable.lock(layout.lock, f"histofed-agent of {site}"))
        swap.settle(layout.root)
        snapshot.clear_away(layout.root)
        durable.sweep(layout.identity.parent)  # a key, perhaps
        journal = Journal(layout.journal, self._clock, f"agent-{site}")
        closing.callback(journal.close)
        note_lost_state(journal, layout.state, site)
        state = State(layout.state, self._clock)
        closing.callback(state.close)
        tracing = tracing_of(site, config.telemetry)
        closing.push_async_callback(asyncio.to_thread, tracing.close)
        link = Link(address, layout.identity, self._clock, self._random, tracing, proxy_setting(config))
        closing.push_async_callback(link.close)
        _cap(link, config)
        outbox, trainers = Outbox(layout.outbox), Trainers()
        closing.push_async_callback(trainers.close)
        desk = Desk(
            clock=self._clock,
            random=self._random,
            link=link,
            state=state,
            outbox=outbox,
            private=PrivateTensors(layout.private, state),
            bases=Bases(layout.bases),
            journal=journal,
            tracing=tracing,
            trainers=trainers,
        )
        work = Work(desk, layout.work, config)
        sessions = Sessions(link, work, journal, site, state.instance, self._clock, self._random)
        note_lost_journal(journal, state.history(link.credentials.ca_sha256), site)
        journal.append("agent.started", subject={"site": site, "version": __version__, "instance": state.instance})
        self._parts = _Parts(site, link, state, outbox, work, sessions, journal, trainers)

    async def serve(self, drain: asyncio.Event) -> None:
        """Talk to the aggregator until drained; then the trainer writes its checkpoint and stops.

        Raises `WorkerLost` beside a trainer that does not end.
        """
        assert self._parts is not None, "serve comes after start"
        work = self._parts.work
        self._talking = asyncio.create_task(self._parts.sessions.run())
        waiting = asyncio.create_task(drain.wait())
        others = {
            asyncio.create_task(self._publish()),
            asyncio.create_task(self._premises.watch(lambda: work.config)),
            asyncio.create_task(self._parts.trainers.lost()),
        }
        try:
            done, _ = await asyncio.wait({self._talking, waiting, *others}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {waiting}:
                await task
        finally:
            for task in (*others, waiting, self._talking):
                task.cancel()
            await asyncio.wait({*others, waiting, self._talking})
            self._hang_up()

    async def reload(self) -> str:
        """Read the configuration again. Raises `ConfigError`; then the old one stays."""
        found = self._read_again()
        if self._parts is not None:
            self._parts.work.config = _live(self._loaded.config, found.config)
            _cap(self._parts.link, found.config)
            self._premises.look_again()
        logging.getLogger().setLevel(found.config.log_level)
        return self._reloads.take(found)

    async def stop(self) -> None:
        """Close everything, in the reverse order."""
        await self._closing.aclose()

    def status(self) -> str:
        """One line for `systemctl status`."""
        return self._parts.sessions.words if self._parts else "starts"

    def turning(self) -> bool:
        """The conversation goes on; an aggregator that is away does not stop it."""
        return self._talking is None or not self._talking.done()

    async def _publish(self) -> None:
        """Keep `status.json` current for `histofed-agent status`; a full disk is said once and harms nothing."""
        told: Status | None = None
        beat = 0.0
        failed = False
        while True:
            self._note_backups()
            beating = self._clock.monotonic() - beat >= BEAT_S
            try:
                if beating:
                    durable.touch(self._layout.status)  # first: a full disk takes it when it takes nothing else
                    beat = self._clock.monotonic()
                if (status := self._status()) != told:
                    write_status(self._layout, status)
                told, failed = status, False
            except CannotWriteState as error:
                if not failed:
                    log.error("%s", error)
                failed = True
            await self._clock.sleep(STATUS_SECONDS)

    def _hang_up(self) -> None:
        """`status.json` outlives the daemon and must not say that it is connected; a full disk may keep that from it."""
        with contextlib.suppress(CannotWriteState):
            write_status(self._layout, replace(self._status(), connected=False))

    def _note_backups(self) -> None:
        """Journal the backups that were made beside this process; a full disk delays that."""
        assert self._parts is not None, "backups are noted after start"
        try:
            note_made(self._layout, self._parts.journal)
        except CannotWriteState as error:
            log.error("a backup is not in the journal yet: %s", error)

    def _status(self) -> Status:
        assert self._parts is not None, "there is a status after start"
        parts, held = self._parts, self._parts.state.task_in_hand()
        return Status(
            version=__version__,
            site=parts.site,
            aggregator=parts.link.address,
            connected=parts.sessions.connected,
            words=parts.sessions.words,
            task=None if held is None else str(held.task),
            updates_waiting=len(parts.outbox),
            certificate_expires_at=iso(parts.link.credentials.not_after),
            process=os.getpid(),
            faults=self._premises.faults,
        )


def _finish_restore(layout: Layout) -> None:
    """Carry out a restore that was interrupted, before anything is read: the certificate may not be in its place yet."""
    if (layout.root / swap.PLAN).exists():
        with durable.lock(layout.lock, "histofed-agent"):
            swap.settle(layout.root)


def run(loaded: Loaded[AgentConfig], read_again: Callable[[], Loaded[AgentConfig]]) -> int:
    """The daemon from start to end; its exit code."""
    clock = SystemClock()
    service = AgentService(loaded, read_again, clock, Random())
    return Daemon("histofed-agent", service, clock=clock).main()


def note_lost_journal(journal: Journal, heard: History | None, site: SiteId) -> None:
    """A journal without a record at a site that has `heard` its aggregator: its files are gone, as its first record says.

    The site works on: only its own administrator could put them back, who reads this.
    """
    if journal.head.sequence or heard is None:
        return
    reason = "the journal held no record, though this site has talked to its aggregator: its files were removed or emptied"
    journal.append("journal.begun_again", subject={"site": site, "heard": str(heard)}, outcome="failed", reason=reason)
    log.error("%s", reason, extra=fields(event="journal.begun_again"))


def note_lost_state(journal: Journal, path: Path, site: SiteId) -> None:
    """A site whose journal tells of its work, and whose state file is gone or empty: it begins anew, and says so before.

    It works on, as without its journal; but nothing else shows that it would follow an aggregator which went back.
    """
    if not journal.head.sequence or lost(path) is None:
        return
    reason = "the state file was removed or emptied: what this site had seen of its aggregator's history is forgotten"
    journal.append("state.begun_again", subject={"site": site}, outcome="failed", reason=reason)
    log.warning("%s; a backup of this site knows it", reason, extra=fields(event="state.begun_again"))


def _live(started: AgentConfig, found: AgentConfig) -> AgentConfig:
    """The configuration that holds after a reload: what waits for a restart is as it was at the start."""
    names = [key.removesuffix(".") for key in RELOADABLE]
    return started.model_copy(update={name: getattr(found, name) for name in names})


def _cap(link: Link, config: AgentConfig) -> None:
    link.cap(config.transfer.max_upload_bytes_per_second, config.transfer.max_download_bytes_per_second)
