"""Journal, then persist, then act: in that order, and again after a restart."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aggregator import events, rounds
from aggregator.database import Database
from aggregator.engine import DISK_ATTEMPTS, Engine
from aggregator.fleet import Changes, Fleet, OfferTask
from aggregator.models import Made
from aggregator.rounds import Round, RoundState, TaskState
from aggregator.rows import ModelRow
from aggregator.store import Store
from histofed.audit.journal import Journal
from histofed.audit.record import Who
from histofed.audit.verify import records
from histofed.base.clock import FakeClock
from histofed.base.errors import BadData, CannotWriteState, HistofedError, WorkerLost
from histofed.base.experiment import Experiment, parse_experiment
from histofed.base.ids import Digest, RoundKey, SiteId, sha256
from histofed.pki.signing import Envelope
from histofed.statements import MODEL_TYPE, UPDATE_TYPE, File, ModelStatement, encode
from histofed.telemetry.metrics import NoMetrics
from histofed.telemetry.tracing import Tracing

NORTH, SOUTH = SiteId("north"), SiteId("south")
EXPERIMENT = parse_experiment('name = "demo"\nrecipe = "mean"\nrounds = 2\n')
KEY = RoundKey(EXPERIMENT.name, 1)


@dataclass
class StandInForge:
    """The arithmetic's results, or the faults that a test wants from it."""

    clock: FakeClock
    faults: list[Exception] = field(default_factory=list)
    at: str = "inspect"
    """The step that the faults strike."""
    forgotten: list[RoundKey] = field(default_factory=list)

    def _work(self, step: str) -> None:
        if self.faults and step == self.at:
            raise self.faults.pop(0)

    async def first(self, experiment: Experiment) -> ModelRow:
        self._work("first")
        return self._model(0)

    async def inspect(self, experiment: Experiment, state: Round, site: SiteId) -> float:
        self._work("inspect")
        return 1.0

    async def next(self, experiment: Experiment, state: Round) -> Made:
        self._work("next")
        return Made(self._model(state.key.number), {"loss": 0.5})

    def forget_updates(self, state: Round) -> None:
        self.forgotten.append(state.key)

    def forget_strangers(self, open_rounds: Sequence[Round]) -> None:
        self.kept = tuple(state.key for state in open_rounds)

    def _model(self, number: int) -> ModelRow:
        parts = {"shared": File(sha256(str(number).encode()), 1)}
        statement = ModelStatement("test", "demo", "1" * 64, "mean", number, "", parts, "shared", "fedavg", [])
        payload = encode(statement)
        envelope = Envelope(MODEL_TYPE, payload, b"s", b"c")
        return ModelRow(sha256(payload), EXPERIMENT.name, number, "candidate", envelope, self.clock.now())


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

    def actions(self) -> list[str]:
        return [record.action for record in records(self.folder)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    clock = FakeClock()
    yield Bench(tmp_path, clock, StandInForge(clock))


async def settle(engine: Engine) -> None:
    """Let the background jobs finish."""
    while engine._jobs:
        await asyncio.gather(*engine._jobs.values())


async def running(engine: Engine) -> None:
    engine.submit(EXPERIMENT, Who("spiffe://test/operator/admin"))
    await settle(engine)


async def opened(engine: Engine) -> None:
    await running(engine)
    base = engine.store.latest_model(EXPERIMENT.name)
    assert base is not None
    engine.plan(EXPERIMENT, 1, base.digest, (NORTH, SOUTH), (NORTH,))


def received(site: SiteId) -> tuple[events.Received, Envelope]:
    envelope = Envelope(UPDATE_TYPE, b"payload", b"s", b"c")
    return events.Received(site, 1, sha256(b"payload"), Digest("e" * 64), 10), envelope


async def deliver(engine: Engine, site: SiteId) -> None:
    engine.dispatch(KEY, events.Accepted(site, 1))
    event, envelope = received(site)
    engine.dispatch(KEY, event, update=envelope)


async def test_a_round_runs_through_and_every_step_is_in_the_journal(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        await deliver(engine, NORTH)
        await settle(engine)
        state = engine.store.round(KEY)
        assert (state.state, state.admitted) == (RoundState.COMMITTED, (NORTH,))
        assert engine.store.model("demo").round == 1
        assert engine.store.round_metrics(KEY) == {"loss": 0.5}
        assert (engine.open_rounds, bench.forge.forgotten) == ((), [KEY])
    assert bench.actions() == [
        "experiment.submitted",
        "model.created",
        "round.planned",
        "round.opened",
        "round.accepted",
        "round.received",
        "round.admitted",
        "round.aggregated",
    ]


async def test_offers_reach_a_connected_site_after_the_round_is_on_disk(bench: Bench) -> None:
    async with bench.engine() as engine:
        connection = engine.fleet.connect(NORTH, "one")
        await opened(engine)
        message = connection.messages.get_nowait()
        assert isinstance(message, OfferTask)
        assert engine.store.round(message.task.round).state is RoundState.OPEN
        assert engine.tasks_of(NORTH) == (message.task,)
        assert engine.tasks_of(SOUTH) == ()


async def test_no_audit_no_action(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        before = engine.store.round(KEY)

        def full(*_: object, **__: object) -> int:
            raise CannotWriteState("the disk is full")

        monkeypatch.setattr(Journal, "append", full)
        with pytest.raises(CannotWriteState):
            engine.dispatch(KEY, events.Accepted(NORTH, 1))
        assert engine.store.round(KEY) == before == engine.open_round(EXPERIMENT.name)
        monkeypatch.undo()
        assert engine.dispatch(KEY, events.Accepted(NORTH, 1)).task(NORTH).state is TaskState.ACCEPTED


async def test_what_was_not_persisted_has_not_happened(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.engine() as engine:
        await opened(engine)

        def full(*_: object, **__: object) -> None:
            raise CannotWriteState("the disk is full")

        monkeypatch.setattr(Store, "save_round", full)
        with pytest.raises(CannotWriteState):
            engine.dispatch(KEY, events.Accepted(NORTH, 1))
        monkeypatch.undo()
        assert engine.open_round(EXPERIMENT.name) == engine.store.round(KEY)
        await deliver(engine, NORTH)
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED


@pytest.mark.parametrize("step", ["offered", "accepted", "received", "admitted"])
async def test_a_restart_ends_with_the_same_model(bench: Bench, step: str) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        if step != "offered":
            engine.dispatch(KEY, events.Accepted(NORTH, 1))
        if step in {"received", "admitted"}:
            event, envelope = received(NORTH)
            engine.dispatch(KEY, event, update=envelope)
        if step == "admitted":
            engine.dispatch(KEY, events.Admitted(NORTH))
        # leaving the block cancels the jobs before they can run, as a crash would
    async with bench.engine() as engine:
        engine.recover()
        if step in {"offered", "accepted"}:
            assert engine.tasks_of(NORTH) == (rounds.plan(KEY, Digest("0"), (NORTH,), (NORTH,), 1, 1, 60).task_key(NORTH),)
            await deliver(engine, NORTH)
        await settle(engine)
        assert engine.store.model("demo").digest == bench.forge._model(1).digest
        assert engine.store.round(KEY).state is RoundState.COMMITTED


async def test_a_draft_is_initialised_again_after_a_crash(bench: Bench) -> None:
    async with bench.engine() as engine:
        engine.submit(EXPERIMENT, Who("spiffe://test/operator/admin"))
    async with bench.engine() as engine:
        assert engine.store.experiment("demo").state == "draft"
        engine.recover()
        await settle(engine)
        assert engine.store.experiment("demo").state == "running"


async def test_a_full_disk_is_waited_for(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.faults = [CannotWriteState("the disk is full")] * 3
        await deliver(engine, NORTH)
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED
    assert bench.fatal == []


async def test_a_disk_that_stays_full_ends_the_daemon_and_the_next_start_goes_on(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.faults = [CannotWriteState("the disk is full")] * (DISK_ATTEMPTS + 1)
        await deliver(engine, NORTH)
        await settle(engine)
        assert [type(error) for error in bench.fatal] == [CannotWriteState]
        assert engine.store.round(KEY).task(NORTH).state is TaskState.RECEIVED
    bench.forge.faults = []
    async with bench.engine() as engine:
        engine.recover()
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED


async def test_an_update_that_fails_its_check_is_rejected_with_the_reason(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.faults = [BadData("tensor 'a' is not finite")]
        await deliver(engine, NORTH)
        await settle(engine)
        state = engine.store.round(KEY)
        assert (state.task(NORTH).state, state.task(NORTH).reason) == (TaskState.REJECTED, "tensor 'a' is not finite")
        assert (state.state, state.reason) == (
            RoundState.ABANDONED,
            "0 of 1 needed updates (north: tensor 'a' is not finite)",
        )


async def test_a_first_model_that_cannot_be_made_fails_the_experiment_in_words(bench: Bench) -> None:
    bench.forge.at, bench.forge.faults = "first", [BadData("no such network")]
    async with bench.engine() as engine:
        await running(engine)
        row = engine.store.experiment("demo")
        assert (row.state, row.reason) == ("failed", "the first model cannot be made: no such network")


async def test_an_average_that_cannot_be_computed_abandons_the_round_in_words(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        await deliver(engine, NORTH)
        bench.forge.at, bench.forge.faults = "next", [HistofedError("the child failed")]
        await settle(engine)
        state = engine.store.round(KEY)
        assert (state.state, state.reason) == (
            RoundState.ABANDONED,
            "the updates cannot be averaged: the child failed",
        )
    assert bench.fatal == []


async def test_a_child_that_keeps_being_killed_ends_the_daemon_and_loses_nothing(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.at, bench.forge.faults = "next", [WorkerLost("killed by SIGKILL 3 times")]
        await deliver(engine, NORTH)
        await settle(engine)
        assert [str(error) for error in bench.fatal] == ["killed by SIGKILL 3 times"]
        assert engine.store.round(KEY).state is RoundState.AGGREGATING
    async with bench.engine() as engine:
        engine.recover()
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED


async def test_a_mistake_of_our_own_ends_the_daemon_rather_than_hiding(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.faults = [RuntimeError("a bug")]
        await deliver(engine, NORTH)
        await settle(engine)
        assert [str(error) for error in bench.fatal] == ["inspect demo/1/train/north: RuntimeError"]
        assert engine.store.round(KEY).task(NORTH).state is TaskState.RECEIVED
