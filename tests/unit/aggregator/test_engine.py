"""Journal, then persist, then act: in that order, and again after a restart."""

from __future__ import annotations

import pytest

from aggregator import events, rounds
from aggregator.background import DISK_ATTEMPTS, OWN_TROUBLE
from aggregator.engine import UNSEEN
from aggregator.fleet import OfferTask
from aggregator.rounds import RoundState
from aggregator.store import Store
from aggregator.tasks import TaskState
from histofed.audit.journal import Journal
from histofed.audit.record import Who
from histofed.base.errors import BadData, CannotWriteState, DeadlineExceeded, HistofedError
from histofed.base.ids import Digest, SiteId, sha256
from histofed.base.words import LETTERS
from tests.support.engine_bench import (
    EXPERIMENT,
    KEY,
    NORTH,
    SOUTH,
    Bench,
    deliver,
    opened,
    received,
    recover,
    settle,
)

assert OWN_TROUBLE.attempts is not None
TRIES = OWN_TROUBLE.attempts + 1


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
        recover(engine)
        if step in {"offered", "accepted"}:
            assert engine.tasks_of(NORTH) == (rounds.plan(KEY, Digest("0"), (NORTH,), (NORTH,), 1, 1, 60).task_key(NORTH),)
            await deliver(engine, NORTH)
        await settle(engine)
        assert engine.store.model("demo").digest == bench.forge._model(1).digest
        assert engine.store.round(KEY).state is RoundState.COMMITTED


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
        recover(engine)
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED


async def test_what_a_full_disk_keeps_of_an_ended_round_is_removed_by_the_schedulers_next_turn(bench: Bench) -> None:
    bench.forge.at, bench.forge.faults = "forget", [CannotWriteState("full")]
    async with bench.engine() as engine:
        await opened(engine)
        await deliver(engine, NORTH)
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED, "the round ends all the same"
        assert bench.forge.forgotten == []
        bench.scheduler(engine).tick()
        assert bench.forge.forgotten == [KEY]


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


async def test_trouble_of_our_own_is_no_verdict_on_an_update(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.faults = [HistofedError("the inspect process failed"), DeadlineExceeded("it did not end")]
        await deliver(engine, NORTH)
        await settle(engine)
        assert engine.store.round(KEY).state is RoundState.COMMITTED
    assert bench.fatal == []


async def test_trouble_of_our_own_that_lasts_ends_in_a_rejection_that_says_whose_it_is(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.faults = [HistofedError("the inspect process failed")] * TRIES
        await deliver(engine, NORTH)
        await settle(engine)
        assert engine.store.round(KEY).task(NORTH).reason == UNSEEN
    assert bench.fatal == []


async def test_a_rejection_in_a_hundred_thousand_letters_is_kept_in_few_words(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.faults = [BadData("tensor '" + "\x1b[2J" * 25_000 + "' leaves a hole")]
        await deliver(engine, NORTH)
        await settle(engine)
        reason = engine.store.round(KEY).task(NORTH).reason
        assert reason.isprintable() and len(reason) == LETTERS
    assert bench.fatal == []


async def test_a_sample_of_any_size_can_be_journalled(bench: Bench) -> None:
    sites = tuple(SiteId(f"{'x' * 30}-{number:05}") for number in range(3000))
    async with bench.engine() as engine:
        await opened(engine, sites)
        assert engine.store.round(KEY).sampled == sites
    (planned,) = (record for record in bench.audit() if record.action == "round.planned")
    assert planned.subject["sampled"] == planned.subject["eligible"] == 3000
    assert planned.subject["sample"] == sha256("\n".join(sites).encode())


async def test_an_average_that_cannot_be_computed_abandons_the_round_in_words(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        await deliver(engine, NORTH)
        bench.forge.at, bench.forge.faults = "next", [HistofedError("the child failed")] * TRIES
        await settle(engine)
        state = engine.store.round(KEY)
        assert (state.state, state.reason) == (
            RoundState.ABANDONED,
            "the updates cannot be averaged: the child failed",
        )
    assert bench.fatal == []


async def test_a_mistake_of_our_own_ends_the_daemon_rather_than_hiding(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        bench.forge.faults = [RuntimeError("a bug")]
        await deliver(engine, NORTH)
        await settle(engine)
        assert [str(error) for error in bench.fatal] == ["inspect demo/1/train/north: RuntimeError"]
        assert engine.store.round(KEY).task(NORTH).state is TaskState.RECEIVED


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
