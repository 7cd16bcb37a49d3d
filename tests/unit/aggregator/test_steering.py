"""Pause, resume and cancel at any moment, repeated, and over a crash between any two of their steps."""

from __future__ import annotations

import pytest

from aggregator import events
from aggregator.engine import Engine
from aggregator.fleet import WithdrawTask
from aggregator.lifecycle import Order
from aggregator.rounds import RoundState
from aggregator.scheduler import Scheduler
from aggregator.tasks import TaskState
from histofed.audit.record import Who
from histofed.base import failpoints
from histofed.base.errors import BadData, CannotWriteState, NotFound, Stale
from histofed.base.ids import RoundKey
from tests.support.engine_bench import (
    ADMIN,
    EXPERIMENT,
    KEY,
    NORTH,
    SOUTH,
    Bench,
    deliver,
    opened,
    received,
    running,
    settle,
)

NAME = EXPERIMENT.name
SECOND = RoundKey(NAME, 2)


def steer(engine: Engine, order: Order, reason: str = "") -> None:
    engine.steer("demo", order, ADMIN, "admin", reason)


def state_of(engine: Engine) -> tuple[str, str]:
    row = engine.store.experiment("demo")
    return row.state, row.reason


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
        engine.submit(EXPERIMENT, ADMIN)
        steer(engine, Order.PAUSE)
        await settle(engine)
        assert state_of(engine)[0] == "paused"
        assert engine.store.latest_model(NAME) is not None
        steer(engine, Order.RESUME)
        assert state_of(engine)[0] == "running"


async def test_a_draft_that_is_resumed_before_its_first_model_waits_for_it(bench: Bench) -> None:
    async with bench.engine() as engine:
        engine.submit(EXPERIMENT, ADMIN)
        steer(engine, Order.PAUSE)
        steer(engine, Order.RESUME)
        assert state_of(engine)[0] == "draft"
        await settle(engine)
        assert state_of(engine)[0] == "running"


async def test_a_paused_draft_gets_its_first_model_after_a_crash(bench: Bench) -> None:
    async with bench.engine() as engine:
        engine.submit(EXPERIMENT, ADMIN)
        steer(engine, Order.PAUSE)
    async with bench.engine() as engine:
        engine.recover()
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


async def test_rounds_that_failed_before_a_resume_are_forgiven(bench: Bench) -> None:
    limit = EXPERIMENT.file.round.abandoned_limit
    async with bench.engine() as engine:
        await running(engine)
        for site in (NORTH, SOUTH):
            engine.fleet.connect(site, site)
        plan = bench.scheduler(engine)
        steer(engine, Order.PAUSE, "the network is being repaired")
        base = engine.store.latest_model(NAME)
        assert base is not None
        for number in range(1, limit + 1):
            engine.plan(EXPERIMENT, number, base.digest, (NORTH,), (NORTH,))
            engine.dispatch(RoundKey(NAME, number), events.Declined(NORTH, 1, "no network"))
        plan.tick()
        assert state_of(engine)[0] == "paused", "it goes on when the operator is back"
        steer(engine, Order.RESUME)
        plan.tick()
        assert [state.key.number for state in engine.open_rounds] == [limit + 1]


async def kept_failing(bench: Bench, engine: Engine, rounds: int) -> Scheduler:
    """Every site has declined so many rounds; the scheduler has not looked since."""
    await running(engine)
    for site in (NORTH, SOUTH):
        engine.fleet.connect(site, site)
    plan = bench.scheduler(engine)
    for number in range(1, rounds + 1):
        plan.tick()
        for site in (NORTH, SOUTH):
            engine.dispatch(RoundKey(NAME, number), events.Declined(site, 1, "consent was withdrawn"))
    return plan


async def test_rounds_that_keep_failing_pause_it_until_an_operator_resumes(bench: Bench) -> None:
    limit = EXPERIMENT.file.round.abandoned_limit
    async with bench.engine() as engine:
        plan = await kept_failing(bench, engine, limit)
        plan.tick()
        now, reason = state_of(engine)
        assert now == "paused"
        assert reason.startswith(f"{limit} rounds in a row were abandoned; the last: ")
        plan.tick()
        assert list(engine.open_rounds) == [], "nothing begins by itself"
        steer(engine, Order.RESUME)
        plan.tick()
        assert [each.key.number for each in engine.open_rounds] == [limit + 1]
    last = [record for record in bench.audit() if record.action == "experiment.paused"][-1]
    assert (last.who.name, last.subject["from"], last.reason) == ("system", "running", reason)


async def test_a_crash_between_the_journal_and_the_pause_leaves_it_to_the_next_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = EXPERIMENT.file.round.abandoned_limit
    async with bench.engine() as engine:
        plan = await kept_failing(bench, engine, limit)
        monkeypatch.setattr(type(engine.store), "set_experiment", dies)
        with pytest.raises(Crash):
            plan.tick()
        monkeypatch.undo()
    async with bench.engine() as engine:
        engine.recover()
        assert state_of(engine)[0] == "running"
        bench.scheduler(engine).tick()
        now, reason = state_of(engine)
        assert (now, list(engine.open_rounds)) == ("paused", [])
    pauses = [record for record in bench.audit() if record.action == "experiment.paused"]
    assert [record.reason for record in pauses] == [reason, reason], "announced twice, done once"


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
        engine.submit(EXPERIMENT, ADMIN)
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
            steer(engine, order, "second")
            assert state_of(engine) == before
    actions = [action for action in bench.actions() if action.startswith("experiment.")]
    assert actions == ["experiment.submitted", "experiment.paused", "experiment.resumed", "experiment.cancelled"]


async def test_what_has_ended_or_never_was_is_refused_in_words(bench: Bench) -> None:
    async with bench.engine() as engine:
        with pytest.raises(NotFound, match="there is no experiment 'demo'"):
            steer(engine, Order.PAUSE)
        await running(engine)
        engine.end_experiment(NAME, "finished", "")
        for order in Order:
            with pytest.raises(Stale, match="demo is finished, so it cannot be"):
                steer(engine, order)
    assert "experiment.cancelled" not in bench.actions()


async def test_a_first_model_that_fails_after_the_end_changes_nothing(bench: Bench) -> None:
    bench.forge.at, bench.forge.faults = "first", [BadData("no such network")]
    async with bench.engine() as engine:
        engine.submit(EXPERIMENT, ADMIN)
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
        engine.recover()
        assert engine.fleet.connect(NORTH, "north").messages.empty(), "nothing is offered for what was cancelled"
        bench.scheduler(engine).tick()
        assert engine.store.round(KEY).state is RoundState.ABANDONED
        assert engine.store.round(KEY).reason == "the experiment was cancelled by admin: wrong data"
        steer(engine, Order.CANCEL, "the operator tries again")
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
        engine.recover()
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


class Crash(BaseException):
    """The end of a process, as far as the code above it can tell."""


def dies(*_: object, **__: object) -> None:
    raise Crash


# --- updates that come too late ---------------------------------------------------------------------------------------


async def test_a_late_update_is_told_to_the_operator_once_and_moves_nothing(bench: Bench) -> None:
    who = Who("spiffe://test/site/north", "01")
    async with bench.engine() as engine:
        await opened(engine)
        task = engine.store.round(KEY).task_key(NORTH)
        engine.note_late(task, who)
        assert engine.store.round(KEY).task(NORTH).state is TaskState.OFFERED, "nothing is late before the deadline"
        bench.clock.advance(EXPERIMENT.file.round.deadline_s)
        bench.scheduler(engine).tick()
        for _ in range(2):
            engine.note_late(task, who)
        after = engine.store.round(KEY)
        assert (after.state, after.task(NORTH).state) == (RoundState.ABANDONED, TaskState.EXPIRED)
        assert after.task(NORTH).reason == "the round's deadline passed; its update came too late"
        assert engine.open_rounds == ()
    late = [record for record in bench.audit() if record.action == "round.late"]
    assert [(record.who, record.subject["site"]) for record in late] == [(who, "north")]


# --- sites that come and go -------------------------------------------------------------------------------------------


async def test_a_site_that_joins_in_the_middle_is_asked_from_the_next_round_on(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        engine.fleet.connect(NORTH, "north")
        plan = bench.scheduler(engine)
        engine.fleet.connect(SOUTH, "south")
        plan.tick()
        assert engine.tasks_of(SOUTH) == ()
        assert engine.store.round(KEY).sampled == (NORTH,)
        await deliver(engine, NORTH)
        await settle(engine)
        plan.tick()
        assert engine.store.round(SECOND).eligible == (NORTH, SOUTH)
        assert engine.tasks_of(SOUTH) == (engine.store.round(SECOND).task_key(SOUTH),)


async def test_a_site_that_left_is_not_asked_until_it_is_back(bench: Bench) -> None:
    async with bench.engine() as engine:
        await running(engine)
        north, _ = engine.fleet.connect(NORTH, "north"), engine.fleet.connect(SOUTH, "south")
        plan = bench.scheduler(engine)
        engine.fleet.disconnect(north)
        bench.clock.advance(121)
        plan.tick()
        assert engine.open_rounds == ()
        assert plan.waiting_for(NAME) == "waiting for sites: 1 of 2 needed are present"
        engine.fleet.connect(NORTH, "north")
        plan.tick()
        assert engine.store.round(KEY).sampled == (NORTH, SOUTH)


async def test_a_site_that_left_an_open_round_finds_its_task_again(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        engine.dispatch(KEY, events.Accepted(NORTH, 1))
        engine.fleet.disconnect(engine.fleet.connect(NORTH, "north"))
        bench.clock.advance(3600)
        bench.scheduler(engine).tick()
        assert engine.tasks_of(NORTH) == (engine.store.round(KEY).task_key(NORTH),), "it has until the deadline"
