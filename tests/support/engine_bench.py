"""An engine over a real journal and a real database, with a stand-in for the arithmetic."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aggregator import events
from aggregator.config import RetentionRules
from aggregator.database import Database
from aggregator.engine import Engine
from aggregator.experiments import Experiments
from aggregator.fleet import Changes, Fleet
from aggregator.history import Chronicle
from aggregator.lifecycle import Order
from aggregator.members import Members
from aggregator.models import Made
from aggregator.past import Past
from aggregator.retention import Retention
from aggregator.rounds import Round
from aggregator.rows import ModelRow
from aggregator.scheduler import Scheduler
from aggregator.space import Space
from aggregator.store import Store
from histofed.audit.journal import Journal
from histofed.audit.record import AuditRecord, Who
from histofed.audit.verify import records
from histofed.base.clock import FakeClock
from histofed.base.durable import make_directory
from histofed.base.errors import HistofedError
from histofed.base.experiment import Experiment, parse_experiment
from histofed.base.health import Health
from histofed.base.ids import Digest, ExperimentId, RoundKey, SiteId, sha256
from histofed.pki.signing import Envelope
from histofed.statements import MODEL_TYPE, UPDATE_TYPE, File, ModelStatement, encode
from histofed.telemetry.metrics import NoMetrics
from histofed.telemetry.tracing import Tracing
from histofed.transport.store import BlobStore

NORTH, SOUTH = SiteId("north"), SiteId("south")
EXPERIMENT = parse_experiment('name = "demo"\nrecipe = "mean"\nrounds = 2\n')
KEY = RoundKey(EXPERIMENT.name, 1)
ADMIN = Who("spiffe://test/operator/admin")


@dataclass
class StandInForge:
    """The arithmetic's results, or the faults that a test wants from it."""

    clock: FakeClock
    faults: list[Exception] = field(default_factory=list)
    at: str = "inspect"
    """The step that the faults strike."""
    size: int = 1
    """Bytes of its models' shared tensors, as their statements say."""
    forgotten: list[RoundKey] = field(default_factory=list)
    shared: File | None = None
    """Each model's shared tensors, where they are to be on a disk."""

    def _work(self, step: str) -> None:
        if self.faults and step == self.at:
            raise self.faults.pop(0)

    async def first(self, experiment: Experiment) -> ModelRow:
        self._work("first")
        return self._model(0, experiment.name)

    def forget_first(self) -> None:
        """Nobody brought any."""

    async def inspect(self, experiment: Experiment, state: Round, site: SiteId) -> float:
        self._work("inspect")
        return 1.0

    async def next(self, experiment: Experiment, state: Round) -> Made:
        self._work("next")
        return Made(self._model(state.key.number), {"loss": 0.5})

    def forget_updates(self, state: Round) -> None:
        self._work("forget")
        self.forgotten.append(state.key)

    def forget_strangers(self, open_rounds: Sequence[Round]) -> None:
        self.kept = tuple(state.key for state in open_rounds)

    def _model(self, number: int, name: ExperimentId = EXPERIMENT.name) -> ModelRow:
        parts = {"shared": self.shared or File(sha256(str(number).encode()), self.size)}
        statement = ModelStatement("test", name, "1" * 64, "mean", number, "", parts, "shared", "fedavg", [])
        payload = encode(statement)
        envelope = Envelope(MODEL_TYPE, payload, b"s", b"c")
        return ModelRow(sha256(payload), name, number, "candidate", envelope, self.clock.now())


@dataclass
class Bench:
    """An engine over a real journal and a real database."""

    folder: Path
    clock: FakeClock
    forge: StandInForge
    fatal: list[HistofedError] = field(default_factory=list)

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[Engine]:
        database = Database(self.folder / "state.db")
        journal = Journal(self.folder, self.clock, "test")
        changes = Changes()
        engine = Engine(
            store=Store(database, self.clock),
            journal=journal,
            clock=self.clock,
            fleet=Fleet(self.clock, changes),
            forge=self.forge,  # type: ignore[arg-type]  # the faults cannot be had from the real one
            changes=changes,
            tracing=Tracing.off(),
            metrics=NoMetrics(),
            entropy=random.Random(1),
            fatal=self.fatal.append,
        )
        try:
            yield engine
        finally:
            await engine.close()
            journal.close()
            database.close()

    def scheduler(self, engine: Engine, rules: RetentionRules | None = None, free: int = 2**40) -> Scheduler:
        """A scheduler on a disk with `free` bytes."""
        rules, health = rules or RetentionRules(), Health(self.clock, required=())
        members = Members(engine.store._database, self.clock)
        space = Space(self.folder, rules.reserve_bytes, lambda _: free)
        return Scheduler(
            engine, Experiments(engine), members, self.clock, health, space, self.retention(engine, rules, health)
        )

    def retention(self, engine: Engine, rules: RetentionRules, health: Health) -> Retention:
        """What removes the past, by these rules."""
        return Retention(
            engine=engine,
            past=Past(engine.store._database, self.clock),
            blobs=self.blobs,
            scratch=self.scratch,
            rules=rules,
            clock=self.clock,
            health=health,
        )

    def chronicle(self, engine: Engine, met: Sequence[SiteId] = (NORTH, SOUTH)) -> Chronicle:
        """The engine's epoch and backups; these sites have said hello."""
        chronicle = Chronicle(engine.store._database, engine._journal, self.clock, Health(self.clock, required=()))
        for site in met:
            chronicle.welcome(site)
        return chronicle

    @property
    def blobs(self) -> BlobStore:
        """The folder of model files; empty, because the stand-in makes none."""
        return BlobStore(self.folder / "blobs")

    @property
    def scratch(self) -> Path:
        """Where files are made."""
        return make_directory(self.folder / "scratch")

    def audit(self) -> list[AuditRecord]:
        """The journal so far."""
        return list(records(self.folder))

    def actions(self) -> list[str]:
        """The journal's actions, in order."""
        return [record.action for record in self.audit()]


async def settle(engine: Engine) -> None:
    """Let the background jobs finish."""
    while jobs := engine.background._jobs:
        # a job whose result nobody wants any more is cancelled; every other end is the engine's own to handle
        await asyncio.gather(*jobs.values(), return_exceptions=True)


def submit(engine: Engine, experiment: Experiment = EXPERIMENT) -> None:
    """`demo`, or another experiment, is submitted; its first model is still to be made."""
    Experiments(engine).submit(experiment, ADMIN)


def recover(engine: Engine) -> None:
    """Take up what was open, as the daemon does at its start."""
    Experiments(engine).recover()
    engine.recover()


def steer(engine: Engine, order: Order, reason: str = "") -> None:
    """The operator's order for `demo`."""
    Experiments(engine).steer("demo", order, ADMIN, "admin", reason)


def state_of(engine: Engine) -> tuple[str, str]:
    """Where `demo` is, and why."""
    row = engine.store.experiment("demo")
    return row.state, row.reason


async def running(engine: Engine) -> None:
    """`demo` is submitted, and its first model is made."""
    submit(engine)
    await settle(engine)


async def opened(engine: Engine, sites: tuple[SiteId, ...] = (NORTH, SOUTH)) -> None:
    """Round 1 is open, with `north`, or all of `sites` where others are given, in its sample."""
    await running(engine)
    base = engine.store.latest_model(EXPERIMENT.name)
    assert base is not None
    engine.plan(EXPERIMENT, 1, base.digest, sites, (NORTH,) if NORTH in sites else sites)


def received(site: SiteId) -> tuple[events.Received, Envelope]:
    """The site's update is here."""
    envelope = Envelope(UPDATE_TYPE, b"payload", b"s", b"c")
    return events.Received(site, 1, sha256(b"payload"), Digest("e" * 64), 10), envelope


async def deliver(engine: Engine, site: SiteId) -> None:
    """The site accepts, trains and hands over."""
    engine.dispatch(KEY, events.Accepted(site, 1))
    event, envelope = received(site)
    engine.dispatch(KEY, event, update=envelope)


class Crash(BaseException):
    """The end of a process, as far as the code above it can tell."""


def dies(*_: object, **__: object) -> None:
    """In the place of a step that a crash comes before."""
    raise Crash
