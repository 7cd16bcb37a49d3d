"""A disk that fills: no round begins below the reserve, and what may go makes room, also while a model waits for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aggregator.config import RetentionRules
from aggregator.events import Abandoned
from aggregator.members import Members
from aggregator.models import Made
from aggregator.rounds import Round, RoundState
from aggregator.scheduler import GRACE_S
from aggregator.space import Space
from histofed.base.clock import FakeClock
from histofed.base.errors import CannotWriteState
from histofed.base.experiment import Experiment
from histofed.base.health import Health
from histofed.base.ids import sha256
from histofed.statements import File
from tests.support.engine_bench import (
    EXPERIMENT,
    KEY,
    NORTH,
    SOUTH,
    Bench,
    Crash,
    StandInForge,
    deliver,
    dies,
    opened,
    recover,
    running,
    settle,
)
from tests.unit.aggregator.test_retention import SERVER, add_model, retention

MADE = sha256(b"made")


def test_the_reserve_is_refused_in_words(tmp_path: Path) -> None:
    space = Space(tmp_path, 100 * 2**20, lambda _: 150 * 2**20)
    space.check(50 * 2**20)
    with pytest.raises(CannotWriteState, match=r"150 MiB free, 51 MiB more would leave less than its reserve of 100 MiB"):
        space.check(51 * 2**20)
    Space(tmp_path, 1).check()


async def test_below_the_reserve_no_round_begins_until_there_is_room(bench: Bench) -> None:
    async with bench.engine() as engine:
        await running(engine)
        for site in (NORTH, SOUTH):
            engine.fleet.connect(site, site)
        full = bench.scheduler(engine, free=2**20)
        full.tick()
        assert engine.open_rounds == ()
        assert "1 MiB free, less than its reserve of 256 MiB" in full.waiting_for(EXPERIMENT.name)
        bench.scheduler(engine).tick()
        assert engine.store.round(KEY).state is RoundState.OPEN


@dataclass
class Stage:
    """Where a job stands still until the test lets it go on."""

    reached: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    ahead: asyncio.Queue[None] = field(default_factory=asyncio.Queue)

    async def stop(self, where: str) -> None:
        self.reached.put_nowait(where)
        await self.ahead.get()

    async def next(self) -> str:
        """Let it go on; where it stops then."""
        self.ahead.put_nowait(None)
        return await self.reached.get()


@dataclass
class PausingClock(FakeClock):
    """Waits take time, as those of a real clock do."""

    stage: Stage

    def __post_init__(self) -> None:
        super().__init__()

    async def sleep(self, seconds: float) -> None:
        await self.stage.stop("waits")


@dataclass(kw_only=True)
class KeepingForge(StandInForge):
    """Keeps a model's file before the row that names it, as the real one does, and may fail after that."""

    stage: Stage
    blobs: Path

    async def next(self, experiment: Experiment, state: Round) -> Made:
        (self.blobs / MADE).write_bytes(b"made")
        await self.stage.stop("works")
        return await super().next(experiment, state)


async def test_a_model_that_waits_for_room_does_not_keep_what_would_make_it(tmp_path: Path) -> None:
    stage = Stage()
    clock = PausingClock(stage)
    forge = KeepingForge(clock, at="next", stage=stage, blobs=tmp_path / "blobs")
    bench = Bench(tmp_path, clock, forge)
    async with bench.engine() as engine:
        await opened(engine)
        forge.shared, forge.faults = File(MADE, 4), [CannotWriteState("the disk is full")]
        made = [add_model(bench, engine, number) for number in (2, 3, 4)]
        await deliver(engine, NORTH)
        assert await stage.reached.get() == "works"
        retention(bench, engine, RetentionRules(models=1)).turn()
        assert len(bench.blobs.digests()) == 5, "the rows say removed"
    async with bench.engine() as engine:
        recover(engine)
        assert await stage.reached.get() == "works"
        turns = retention(bench, engine, RetentionRules(models=1))
        turns.turn()
        assert len(bench.blobs.digests()) == 5, "the model's file is older than its row"
        assert await stage.next() == "waits"
        turns.turn()
        assert bench.blobs.digests() == {made[2][1], SERVER}, "what the try left goes too: the next makes it anew"
        assert await stage.next() == "works"
        clock.advance(60)
        turns.turn()
        assert bench.blobs.digests() == {made[2][1], SERVER, MADE}
        stage.ahead.put_nowait(None)
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED
        assert bench.fatal == []
        retention(bench, engine, RetentionRules()).turn()
        assert bench.blobs.digests() == {made[2][1], SERVER, MADE}


async def test_what_was_decided_makes_room_for_the_journal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health(bench.clock, required=(), loop_seconds=3600)
    async with bench.engine() as engine:
        await running(engine)
        made = [add_model(bench, engine, number) for number in (1, 2)]
        turns = retention(bench, engine, RetentionRules(models=1), health)
        with monkeypatch.context() as patched, pytest.raises(Crash):
            patched.setattr("aggregator.retention.failpoint", dies)
            turns.apply()
        made.append(add_model(bench, engine, 3))

        def full(*_: object, **__: object) -> None:
            raise CannotWriteState("the disk is full")

        monkeypatch.setattr(engine, "audit", full)
        turns.turn()
        assert health.words() == "retention: the disk is full"
        assert bench.blobs.digests() == {made[1][1], made[2][1], SERVER}


@pytest.mark.parametrize("waits", ["deadline", "absent site"])
async def test_what_may_go_goes_also_where_the_disk_refuses_what_comes_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    """A round that is over, a site that is to be given up: each turn tries that first, what makes room comes last."""

    def full(*_: object, **__: object) -> None:
        raise CannotWriteState("the disk is full")

    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.at, bench.forge.faults = "forget", [CannotWriteState("the disk is full")]
        engine.dispatch(KEY, Abandoned("nobody came"))
        assert bench.forge.forgotten == [], "it could not be removed at once"
        made = [add_model(bench, engine, number) for number in (2, 3)]
        with monkeypatch.context() as patched, pytest.raises(Crash):
            patched.setattr("aggregator.retention.failpoint", dies)
            retention(bench, engine, RetentionRules(models=1)).apply()
        base = engine.store.latest_model(EXPERIMENT.name)
        assert base is not None
        scheduler = bench.scheduler(engine, RetentionRules(models=1))
        if waits == "deadline":
            engine.plan(EXPERIMENT, 4, base.digest, (NORTH,), (NORTH,))
            bench.clock.advance(EXPERIMENT.file.round.deadline_s)
            monkeypatch.setattr(engine, "audit", full)
        else:
            engine.fleet.disconnect(engine.fleet.connect(NORTH, "north"))
            bench.clock.advance(GRACE_S + 1)
            monkeypatch.setattr(Members, "site_left", full)
        with pytest.raises(CannotWriteState):
            scheduler.tick()
        assert bench.blobs.digests() == {made[1][1], SERVER}
        assert bench.forge.forgotten == [KEY]
