"""One hospital in this process: every part of the agent, built as the daemon builds them, on a temporary folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Final, Self

from agent.bases import Bases
from agent.config import AgentConfig, TrainerConfig
from agent.desk import Desk
from agent.layout import Layout
from agent.link import Link
from agent.outbox import Entry, Outbox
from agent.private import PrivateTensors
from agent.sessions import Sessions
from agent.state import State
from agent.work import Work
from histofed.audit.journal import Journal
from histofed.audit.record import AuditRecord
from histofed.audit.verify import records
from histofed.base.clock import SystemClock
from histofed.base.errors import TryLater
from histofed.base.ids import ExperimentId, RoundKey, SiteId, TaskKey
from histofed.pki.credentials import Credentials
from histofed.telemetry.tracing import Tracing
from tests.support.fake_aggregator import FakeAggregator
from tests.support.federation import CONSENT

SITE: Final = "north-clinic"
LONG: Final = "steps = 400\ndelay_s = 0.02"
"""Of a task's config: eight seconds of training, which a test interrupts."""


def task(number: int = 1, experiment: str = "pilot", site: str = SITE) -> TaskKey:
    """A task of the site's."""
    return TaskKey(RoundKey(ExperimentId(experiment), number), "train", SiteId(site))


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Look until it is so: for what no call announces."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # files and the journal have no event to wait for
            await asyncio.sleep(0.02)


async def training(aggregator: FakeAggregator, after: int = 0) -> None:
    """The trainer has reported a step, in a report that comes after so many."""
    count = after + 1
    while (await aggregator.wait_for("ReportProgress", count)).request.phase != "train":
        count += 1


class AgentSite:
    """An async context manager; inside, `start` begins the conversation with the aggregator."""

    def __init__(self, folder: Path, credentials: Credentials, address: str, *, consent: str | None = CONSENT) -> None:
        folder.mkdir(exist_ok=True)
        self.layout = Layout(folder / "state")
        self.layout.identity.parent.mkdir(parents=True, exist_ok=True)
        credentials.save(self.layout.identity)
        self.consent = folder / "consent.toml"
        if consent is not None:
            self.consent.write_text(consent)
        self.config = AgentConfig(
            state_dir=self.layout.root,
            consent=self.consent,
            trainer=TrainerConfig(device="cpu", threads=1, nice=0, stop_seconds=20),
        )
        self._credentials = credentials
        self._address = address
        self._talking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        clock, random, layout = SystemClock(), Random(1), self.layout
        site = SiteId(self._credentials.identity.name)
        self.state = State(layout.state, clock)
        self.journal = Journal(layout.journal, clock, f"agent-{site}")
        tracing = Tracing.off()
        self.link = Link(self._address, layout.identity, clock, random, tracing)
        self.outbox = Outbox(layout.outbox)
        self.private = PrivateTensors(layout.private, self.state)
        self.bases = Bases(layout.bases)
        desk = Desk(clock, random, self.link, self.state, self.outbox, self.private, self.bases, self.journal, tracing)
        self.work = Work(desk, layout.work, self.config)
        self.sessions = Sessions(self.link, self.work, self.journal, site, self.state.instance, clock, random)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        await self.link.close()
        self.journal.close()
        self.state.close()

    def start(self) -> None:
        """Connect and go on."""
        self._talking = asyncio.create_task(self.sessions.run())

    async def stop(self) -> None:
        """As at SIGTERM: checkpoint and end."""
        if self._talking is not None:
            self._talking.cancel()
            await asyncio.wait({self._talking})
            if not self._talking.cancelled():
                self._talking.result()
            self._talking = None

    def audit(self) -> list[AuditRecord]:
        """The journal so far."""
        return list(records(self.layout.journal))

    def actions(self) -> list[str]:
        """The journal's actions, in order."""
        return [record.action for record in self.audit()]


async def leave_update(folder: Path, credentials: Credentials, aggregator: FakeAggregator) -> Entry:
    """A site's life that ends with a finished update in its outbox, which the aggregator did not take yet."""
    aggregator.answers["may_upload"] = [TryLater("busy")] * 100
    aggregator.offer(aggregator.make_offer(task()))
    async with AgentSite(folder, credentials, aggregator.address) as site:
        site.start()
        await until(lambda: len(site.outbox.entries()) == 1)
        await site.stop()
        (entry,) = site.outbox.entries()
    aggregator.answers.clear()
    return entry


def ends(site: AgentSite) -> list[tuple[str, str]]:
    """How tasks and updates ended, by the journal."""
    found = {"update.verdict", "update.dropped", "task.dropped"}
    return [(record.action, record.outcome) for record in site.audit() if record.action in found]
