"""Work beside the daemon's loop whose child process is killed, or hangs when it is."""

from __future__ import annotations

import pytest

from aggregator.background import KILLED, UNBORN
from aggregator.engine import UNSEEN
from aggregator.rounds import RoundState
from histofed.base.errors import NoWorker, WorkerKilled, WorkerLost
from histofed.base.experiment import parse_experiment
from tests.support.engine_bench import KEY, NORTH, Bench, deliver, opened, recover, settle, submit

assert KILLED.attempts is not None
KILLS = KILLED.attempts + 1
assert UNBORN.attempts is not None
UNSTARTED = UNBORN.attempts + 1
NO_PROCESS = NoWorker("the aggregate process cannot be started now: [Errno 11] Resource temporarily unavailable")
OUT_OF_MEMORY = WorkerKilled("the child was killed by SIGKILL 3 times in a row")


async def test_an_average_whose_child_is_killed_while_memory_is_short_is_made_all_the_same(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.at, bench.forge.faults = "next", [OUT_OF_MEMORY] * (KILLS - 1)
        await deliver(engine, NORTH)
        before = bench.clock.monotonic()
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED
        assert bench.clock.monotonic() - before > 600, "what uses the memory up may need long"
    assert bench.fatal == []


async def test_an_average_whose_child_is_killed_each_time_abandons_its_round_and_no_other_experiment(bench: Bench) -> None:
    other = parse_experiment('name = "small"\nrecipe = "mean"\nrounds = 1\n')
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.at, bench.forge.faults = "next", [OUT_OF_MEMORY] * KILLS
        await deliver(engine, NORTH)
        submit(engine, other)
        await settle(engine)
        state = engine.store.round(KEY)
        assert (state.state, state.reason) == (
            RoundState.ABANDONED,
            f"the updates cannot be averaged: {OUT_OF_MEMORY}",
        )
        assert engine.store.experiment(other.name).state == "running"
    assert bench.fatal == []


@pytest.mark.parametrize("step", ["first", "inspect", "next"])
async def test_what_needs_a_child_waits_half_an_hour_for_a_machine_that_starts_none(bench: Bench, step: str) -> None:
    async with bench.engine() as engine:
        bench.forge.at, bench.forge.faults = step, [NO_PROCESS] * (UNSTARTED - 1)
        before = bench.clock.monotonic()
        await opened(engine)
        await deliver(engine, NORTH)
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED
        assert bench.clock.monotonic() - before > 600
    assert bench.fatal == []


async def test_a_machine_that_starts_no_child_for_a_moment_is_asked_again_soon(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.at, bench.forge.faults = "next", [NO_PROCESS]
        await deliver(engine, NORTH)
        before = bench.clock.monotonic()
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED
        assert bench.clock.monotonic() - before < 5


async def test_an_average_whose_child_is_never_started_abandons_its_round(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.at, bench.forge.faults = "next", [NO_PROCESS] * UNSTARTED
        await deliver(engine, NORTH)
        await settle(engine)
        assert engine.store.round(KEY).reason == f"the updates cannot be averaged: {NO_PROCESS}"
    assert bench.fatal == []


async def test_a_look_whose_child_is_killed_each_time_says_whose_doing_it_is(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.faults = [OUT_OF_MEMORY] * KILLS
        await deliver(engine, NORTH)
        await settle(engine)
        assert engine.store.round(KEY).task(NORTH).reason == UNSEEN
    assert bench.fatal == []


async def test_a_child_that_sigkill_does_not_end_ends_the_daemon_and_loses_nothing(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.at, bench.forge.faults = "next", [WorkerLost("process 7 did not end within 30 s of SIGKILL")]
        await deliver(engine, NORTH)
        await settle(engine)
        assert [str(error) for error in bench.fatal] == ["process 7 did not end within 30 s of SIGKILL"]
        assert engine.store.round(KEY).state is RoundState.AGGREGATING
    async with bench.engine() as engine:
        recover(engine)
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED
