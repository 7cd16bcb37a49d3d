"""The first model; pause, resume and cancel at any moment, repeated, and over a crash between any two of their steps."""

from __future__ import annotations

import pytest

from aggregator import events
from aggregator.background import KILLED
from aggregator.engine import Engine
from aggregator.experiments import Experiments
from aggregator.fleet import WithdrawTask
from aggregator.lifecycle import Order
from aggregator.rounds import RoundState
from aggregator.tasks import TaskState
from histofed.base import failpoints
from histofed.base.errors import BadData, CannotWriteState, HistofedError, NotFound, Stale, WorkerKilled
from histofed.base.ids import RoundKey
from tests.support.engine_bench import (
    ADMIN,
    EXPERIMENT,
    KEY,
    NORTH,
    SOUTH,
    Bench,
    Crash,
    deliver,
    dies,
    opened,
    received,
    recover,
    running,
    settle,
    state_of,
    steer,
    submit,
)

NAME = EXPERIMENT.name
SECOND = RoundKey(NAME, 2)


# --- the first model --------------------------------------------------------------------------------------------------


async def test_a_draft_is_initialised_again_after_a_crash(bench: Bench) -> None:
    async with bench.engine() as engine:
        submit(engine)
    async with bench.engine() as engine:
        assert engine.store.experiment("demo").state == "draft"
        recover(engine)
        await settle(engine)
        assert engine.store.experiment("demo").state == "running"


async def test_a_first_model_that_cannot_be_made_fails_the_experiment_in_words(bench: Bench) -> None:
    bench.forge.at, bench.forge.faults = "first", [BadData("no such network")]
    async with bench.engine() as engine:
        await running(engine)
        row = engine.store.experiment("demo")
        assert (row.state, row.reason) == ("failed", "the first model cannot be made: no such network")


async def test_a_first_model_that_failed_here_for_a_moment_fails_no_experiment(bench: Bench) -> None:
    bench.forge.at, bench.forge.faults = "first", [HistofedError("the initialise process failed")]
    async with bench.engine() as engine:
        await running(engine)
        assert engine.store.experiment("demo").state == "running"


async def test_a_first_model_whose_child_is_killed_each_time_fails_its_experiment_and_not_the_daemon(bench: Bench) -> None:
    assert KILLED.attempts is not None
    killed = WorkerKilled("the initialise process was killed by SIGKILL 3 times in a row")
    bench.forge.at, bench.forge.faults = "first", [killed] * (KILLED.attempts + 1)
    async with bench.engine() as engine:
        await running(engine)
        assert state_of(engine) == ("failed", f"the first model cannot be made: {killed}")
    assert bench.fatal == []


# --- pause ------------------------------------------------------------------------------------------------------------


async def test_a_pause_lets_the_open_round_end_and_begins_no_other(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        for site in (NORTH, SOUTH):
            engine.fleet.connect(site, site)
        steer(engine, Order.PAUSE, "the GPUs are needed")
        assert state_of(engine) == ("paused", "by admin: the GPUs are needed")
        deadline = engine.store.round(KEY).deadline
        await deliver(engine, NORTH)
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED
        assert engine.store.round(KEY).deadline == deadline, "a pause moves no deadline"
        plan = bench.scheduler(engine)
        plan.tick()
        assert list(engine.open_rounds) == []
        steer(engine, Order.RESUME)
        assert state_of(engine) == ("running", "")
        plan.tick()
        (second,) = engine.open_rounds
        assert (second.key, second.sampled) == (SECOND, (NORTH, SOUTH))
    (paused,) = [record for record in bench.audit() if record.action == "experiment.paused"]
    assert (paused.who, paused.reason) == (ADMIN, "the GPUs are needed")
    assert paused.subject == {"experiment": "demo", "from": "running", "state": "paused"}


async def test_an_open_round_ends_at_its_deadline_also_while_paused(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        steer(engine, Order.PAUSE)
        bench.clock.advance(EXPERIMENT.file.round.deadline_s)
        bench.scheduler(engine).tick()
        assert engine.store.round(KEY).state is RoundState.ABANDONED
        assert state_of(engine)[0] == "paused"


async def test_a_draft_may_be_paused_and_its_first_model_is_made_all_the_same(bench: Bench) -> None:
    async with bench.engine() as engine:
        submit(engine)
        steer(engine, Order.PAUSE)
        await settle(engine)
        assert state_of(engine)[0] == "paused"
        assert engine.store.latest_model(NAME) is not None
        steer(engine, Order.RESUME)
        assert state_of(engine)[0] == "running"


async def test_a_draft_that_is_resumed_before_its_first_model_waits_for_it(bench: Bench) -> None:
    async with bench.engine() as engine:
        submit(engine)
        steer(engine, Order.PAUSE)
        steer(engine, Order.RESUME)
        assert state_of(engine)[0] == "draft"
        await settle(engine)
        assert state_of(engine)[0] == "running"


async def test_a_paused_draft_gets_its_first_model_after_a_crash(bench: Bench) -> None:
    async with bench.engine() as engine:
        submit(engine)
        steer(engine, Order.PAUSE)
    async with bench.engine() as engine:
        recover(engine)
        await settle(engine)
        assert (state_of(engine)[0], engine.store.latest_model(NAME) is None) == ("paused", False)


async def test_an_experiment_whose_last_round_ends_while_paused_is_finished(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        await deliver(engine, NORTH)
        await settle(engine)
        base = engine.store.latest_model(NAME)
        assert base is not None
        engine.plan(EXPERIMENT, 2, base.digest, (NORTH,), (NORTH,))
        steer(engine, Order.PAUSE)
        engine.dispatch(SECOND, events.Accepted(NORTH, 1))
        event, envelope = received(NORTH)
        engine.dispatch(SECOND, event, update=envelope)
        await settle(engine)
        bench.scheduler(engine).tick()
        assert state_of(engine)[0] == "finished"


# --- cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["draft", "before a round", "offered", "accepted", "uploading", "received", "admitted"])
async def test_cancelling_ends_it_at_any_moment(bench: Bench, moment: str) -> None:
    async with bench.engine() as engine:
        await bring_to(engine, moment)
        site = engine.fleet.connect(NORTH, "north")
        steer(engine, Order.CANCEL, "wrong data")
        assert state_of(engine) == ("cancelled", "by admin: wrong data")
        assert (engine.open_rounds, engine.tasks_of(NORTH)) == ((), ())
        await settle(engine)
        bench.scheduler(engine).tick()
        assert [state.state for state in engine.store.rounds("demo")] in ([], [RoundState.ABANDONED])
        if moment in {"offered", "accepted", "uploading"}:
            words = "the experiment was cancelled by admin: wrong data"
            task = engine.store.round(KEY).task_key(NORTH)
            assert site.messages.get_nowait() == WithdrawTask(task, words)
            assert engine.store.round(KEY).task(NORTH).state is TaskState.EXPIRED
            assert bench.forge.forgotten == [KEY], "the update's bytes are cleared away"
        assert site.messages.empty()
    assert bench.fatal == []
    assert bench.actions().count("experiment.cancelled") == 1


async def bring_to(engine: Engine, moment: str) -> None:
    """`demo`, cancelled in the middle of something."""
    if moment == "draft":
        submit(engine)
        return
    if moment == "before a round":
        await running(engine)
        return
    await opened(engine)
    if moment == "offered":
        return
    engine.dispatch(KEY, events.Accepted(NORTH, 1))
    event, envelope = received(NORTH)
    if moment == "uploading":
        engine.dispatch(KEY, events.Announced(NORTH, event.weights, 10))
    if moment in {"received", "admitted"}:
        engine.dispatch(KEY, event, update=envelope)
    if moment == "admitted":
        engine.dispatch(KEY, events.Admitted(NORTH))


async def test_orders_may_come_twice_and_are_written_once(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        for order in (Order.PAUSE, Order.RESUME, Order.CANCEL):
            steer(engine, order, "first")
            before = state_of(engine)
            for repeated in ("first", ""):
                steer(engine, order, repeated)
                assert state_of(engine) == before
    actions = [action for action in bench.actions() if action.startswith("experiment.")]
    assert actions == ["experiment.submitted", "experiment.paused", "experiment.resumed", "experiment.cancelled"]


@pytest.mark.parametrize(("order", "state"), [(Order.PAUSE, "paused"), (Order.CANCEL, "cancelled")])
async def test_a_repeated_order_with_another_reason_is_journalled_and_its_words_are_kept(
    bench: Bench, order: Order, state: str
) -> None:
    async with bench.engine() as engine:
        await running(engine)
        steer(engine, order)
        ended_at = engine.store.experiment(NAME).ended_at
        bench.clock.advance(60)
        for reason in ("wrong data", "wrong data, of south alone"):
            steer(engine, order, reason)
            assert state_of(engine) == (state, f"by admin: {reason}")
        assert engine.store.experiment(NAME).ended_at == ended_at, "it ended when it was first ordered"
    told = [record for record in bench.audit() if record.action == f"experiment.{state}"]
    assert [record.reason for record in told] == ["", "wrong data", "wrong data, of south alone"]
    assert told[-1].who == ADMIN
    assert told[-1].subject == {"experiment": "demo", "from": state, "state": state}


async def test_what_has_ended_or_never_was_is_refused_in_words(bench: Bench) -> None:
    async with bench.engine() as engine:
        with pytest.raises(NotFound, match="there is no experiment 'demo'"):
            steer(engine, Order.PAUSE)
        await running(engine)
        Experiments(engine).end(NAME, "finished", "")
        for order in Order:
            with pytest.raises(Stale, match="demo is finished, so it cannot be"):
                steer(engine, order)
    assert "experiment.cancelled" not in bench.actions()


async def test_a_first_model_that_fails_after_the_end_changes_nothing(bench: Bench) -> None:
    bench.forge.at, bench.forge.faults = "first", [BadData("no such network")]
    async with bench.engine() as engine:
        submit(engine)
        steer(engine, Order.CANCEL)
        await settle(engine)
        assert state_of(engine)[0] == "cancelled"
    assert "experiment.failed" not in bench.actions()


# --- crashes ----------------------------------------------------------------------------------------------------------


async def test_a_crash_after_the_order_and_before_the_round_is_closed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        engine.dispatch(KEY, events.Accepted(NORTH, 1))
        monkeypatch.setattr(Engine, "abandon_ended", dies)
        with pytest.raises(Crash):
            steer(engine, Order.CANCEL, "wrong data")
        monkeypatch.undo()
        assert engine.store.round(KEY).state is RoundState.OPEN
    async with bench.engine() as engine:
        recover(engine)
        assert engine.fleet.connect(NORTH, "north").messages.empty(), "nothing is offered for what was cancelled"
        bench.scheduler(engine).tick()
        assert engine.store.round(KEY).state is RoundState.ABANDONED
        assert engine.store.round(KEY).reason == "the experiment was cancelled by admin: wrong data"
        steer(engine, Order.CANCEL)
        assert state_of(engine) == ("cancelled", "by admin: wrong data")


async def test_a_crash_after_the_journal_leaves_the_order_to_be_given_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        monkeypatch.setattr(type(engine.store), "set_experiment", dies)
        with pytest.raises(Crash):
            steer(engine, Order.PAUSE)
        monkeypatch.undo()
    async with bench.engine() as engine:
        recover(engine)
        assert state_of(engine)[0] == "running"
        steer(engine, Order.PAUSE)
        assert state_of(engine)[0] == "paused"


async def test_a_disk_that_is_full_after_the_order_leaves_the_round_to_the_scheduler(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        monkeypatch.setattr(failpoints, "_armed", failpoints._parse("aggregator.experiment_steered=ENOSPC"))
        with pytest.raises(CannotWriteState):
            steer(engine, Order.CANCEL)
        bench.scheduler(engine).tick()
        assert engine.store.round(KEY).state is RoundState.ABANDONED
