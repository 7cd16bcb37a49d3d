"""When rounds begin, and with whom; when none begins any more."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator import events, rounds
from aggregator.engine import Engine
from aggregator.lifecycle import Order
from aggregator.members import Members
from aggregator.rounds import Round, RoundState
from aggregator.scheduler import Finish, Plan, Rest, Scheduler, Wait, next_move
from aggregator.tasks import TaskState
from histofed.base.errors import BadData, CannotWriteState
from histofed.base.experiment import Experiment, parse_experiment
from histofed.base.ids import Digest, RoundKey, SiteId
from tests.support.engine_bench import (
    EXPERIMENT,
    KEY,
    NORTH,
    SOUTH,
    Bench,
    Crash,
    deliver,
    dies,
    opened,
    recover,
    running,
    settle,
    state_of,
    steer,
    submit,
)

NAME = EXPERIMENT.name
SECOND = RoundKey(NAME, 2)
SITES = frozenset(map(SiteId, ("east", "north", "south", "west")))


def experiment(**sampling: object) -> Experiment:
    table = "\n".join(f"{key} = {value}" for key, value in sampling.items()).replace("'", '"')
    return parse_experiment(
        f'name = "demo"\nrecipe = "mean"\nrounds = 3\n[round]\nabandoned_limit = 2\n[sampling]\n{table}\n'
    )


def past(number: int, state: RoundState, declined: tuple[str, ...] = ()) -> Round:
    key = RoundKey(experiment().name, number)
    round_ = rounds.plan(key, Digest("a" * 64), tuple(SITES), tuple(SITES), 1, 1, 60)
    tasks = tuple(replace(task, state=TaskState.DECLINED) if task.site in declined else task for task in round_.tasks)
    return replace(round_, state=state, tasks=tasks, reason="nobody came")


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 2), (0.5, 2), (0.51, 3), (0.75, 3), (1.0, 4)])
def test_the_sample_is_the_fraction_rounded_up_and_never_below_the_minimum(fraction: float, count: int) -> None:
    move = next_move(experiment(fraction=fraction), 0, (), SITES)
    assert isinstance(move, Plan)
    assert (len(move.sample), move.eligible, move.number) == (count, tuple(sorted(SITES)), 1)


@pytest.mark.parametrize(
    ("fraction", "oversample", "sampled", "enough"), [(0.5, 1.0, 2, 2), (0.5, 1.5, 3, 2), (0.5, 1.1, 3, 2), (1.0, 2.0, 4, 4)]
)
def test_over_sampling_asks_more_sites_than_the_round_waits_for(
    fraction: float, oversample: float, sampled: int, enough: int
) -> None:
    move = next_move(experiment(fraction=fraction, oversample=oversample), 0, (), SITES)
    assert isinstance(move, Plan)
    assert (len(move.sample), move.enough) == (sampled, enough)


def test_the_sample_depends_on_experiment_round_and_eligible_sites_alone() -> None:
    again = [next_move(experiment(fraction=0.5), 1, (past(1, RoundState.COMMITTED),), frozenset(SITES)) for _ in range(3)]
    assert again[0] == again[1] == again[2]


def test_over_many_rounds_every_site_takes_its_turn() -> None:
    turns: dict[SiteId, int] = dict.fromkeys(SITES, 0)
    for number in range(200):
        move = next_move(experiment(fraction=0.5), 0, (past(number + 1, RoundState.COMMITTED),), SITES)
        assert isinstance(move, Plan)
        for site in move.sample:
            turns[site] += 1
    assert all(70 < count < 130 for count in turns.values()), turns


def test_too_few_sites_are_waited_for_in_words() -> None:
    assert next_move(experiment(minimum=3), 0, (), frozenset({SiteId("east")})) == Wait(
        "waiting for sites: 1 of 3 needed are present"
    )


def test_a_named_site_that_nobody_has_seen_is_told() -> None:
    assert next_move(experiment(sites=["nroth", "west"]), 0, (), SITES) == Wait(
        "waiting for sites: 1 of 2 needed are present; of those that the file names, nroth not"
    )
    many = [f"site-{number}" for number in range(8)]
    move = next_move(experiment(sites=many), 0, (), SITES)
    assert isinstance(move, Wait)
    assert move.reason.endswith("site-0, site-1, site-2, site-3, site-4 and 3 more not")


def test_only_the_named_sites_are_eligible() -> None:
    move = next_move(experiment(sites=["east", "west"]), 0, (), SITES)
    assert isinstance(move, Plan)
    assert move.eligible == ("east", "west")


def test_a_site_that_declined_sits_out_one_round_where_others_are_enough() -> None:
    declined = past(1, RoundState.COMMITTED, declined=("north",))
    move = next_move(experiment(minimum=2), 1, (declined,), SITES)
    assert isinstance(move, Plan)
    assert move.eligible == ("east", "south", "west")
    move = next_move(experiment(minimum=4), 1, (declined,), SITES)
    assert isinstance(move, Plan)
    assert move.eligible == tuple(sorted(SITES))


def test_numbers_go_on_after_an_abandoned_round() -> None:
    move = next_move(experiment(), 0, (past(1, RoundState.ABANDONED),), SITES)
    assert isinstance(move, Plan)
    assert move.number == 2


def test_an_experiment_whose_rounds_keep_failing_rests_with_the_reason() -> None:
    recent = (past(1, RoundState.ABANDONED), past(2, RoundState.ABANDONED))
    assert next_move(experiment(), 0, recent, SITES) == Rest("2 rounds in a row were abandoned; the last: nobody came")


def test_failures_before_a_resume_do_not_count() -> None:
    recent = (past(1, RoundState.ABANDONED), past(2, RoundState.ABANDONED))
    assert isinstance(next_move(experiment(), 0, recent, SITES, forgiven=1), Plan)
    assert isinstance(next_move(experiment(), 0, recent, SITES, forgiven=0), Rest)


def test_an_experiment_ends_when_its_rounds_are_committed() -> None:
    assert next_move(experiment(), 3, (), frozenset()) == Finish()


@given(st.sets(st.sampled_from(sorted(SITES)), min_size=2), st.floats(0.01, 1.0), st.integers(1, 50))
def test_a_sample_is_always_a_part_of_the_eligible(present: set[SiteId], fraction: float, number: int) -> None:
    move = next_move(experiment(fraction=fraction), 0, (past(number, RoundState.COMMITTED),), frozenset(present))
    assert isinstance(move, Plan)
    assert set(move.sample) <= set(move.eligible) == present
    assert len(move.sample) == len(set(move.sample)) >= 2


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


async def test_a_site_whose_leaving_the_disk_refuses_leaves_at_the_next_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start after that would wait for it."""

    def full(*_: object) -> None:
        raise CannotWriteState("the disk is full")

    async with bench.engine() as engine:
        members, clock = Members(engine.store._database, bench.clock), bench.clock
        for site in (NORTH, SOUTH):
            members.create_token(site, site, clock.now() + timedelta(minutes=30))
            members.enrol(site, site, f"spiffe://test/site/{site}", site, clock.now() + timedelta(days=7))
            members.site_seen(site, "0.1.0", "instance")
            engine.fleet.disconnect(engine.fleet.connect(site, site))
        plan, left = bench.scheduler(engine), clock.now()
        clock.advance(121)
        with monkeypatch.context() as disk, pytest.raises(CannotWriteState):
            disk.setattr(Members, "site_left", full)
            plan.tick()
        plan.tick()
        assert members.present() == ()
        assert [row.last_seen_at for row in members.sites()] == [left, left]
        assert engine.fleet.present() == frozenset()


# --- rounds that keep failing -----------------------------------------------------------------------------------------


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


async def test_a_pause_can_be_journalled_whatever_many_sites_say(bench: Bench) -> None:
    sites = tuple(SiteId(f"hospital-{number:04}") for number in range(150))
    async with bench.engine() as engine:
        await running(engine)
        base = engine.store.latest_model(NAME)
        assert base is not None
        for number in range(1, EXPERIMENT.file.round.abandoned_limit + 1):
            engine.plan(EXPERIMENT, number, base.digest, sites, sites)
            for site in sites:
                engine.dispatch(RoundKey(NAME, number), events.Declined(site, 1, "\N{SNOWMAN}" * 450))
        bench.scheduler(engine).tick()
        assert state_of(engine)[0] == "paused"
        assert len(engine.store.round(KEY).reason) == rounds.REASON_LETTERS


async def test_an_experiment_that_cannot_go_on_keeps_no_other_from_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = parse_experiment('name = "other"\nrecipe = "mean"\nrounds = 2\n')
    plan_round = Engine.plan

    def plan_other(engine: Engine, experiment: Experiment, *rest: Any) -> None:
        if experiment.name == NAME:
            raise BadData("its file is of a release that nobody remembers")
        plan_round(engine, experiment, *rest)

    monkeypatch.setattr(Engine, "plan", plan_other)
    async with bench.engine() as engine:
        await running(engine)
        submit(engine, other)
        await settle(engine)
        for site in (NORTH, SOUTH):
            engine.fleet.connect(site, site)
        scheduler = bench.scheduler(engine)
        scheduler.tick()
        scheduler.tick()
        assert [state.key.experiment for state in engine.open_rounds] == [other.name]
        assert scheduler.waiting_for(NAME) == "it cannot go on: its file is of a release that nobody remembers"
    assert caplog.text.count("an experiment cannot go on") == 1, "told once"


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
        recover(engine)
        assert state_of(engine)[0] == "running"
        bench.scheduler(engine).tick()
        now, reason = state_of(engine)
        assert (now, list(engine.open_rounds)) == ("paused", [])
    pauses = [record for record in bench.audit() if record.action == "experiment.paused"]
    assert [record.reason for record in pauses] == [reason, reason], "announced twice, done once"
