"""The round machine: every path by example, and a state machine that looks for paths nobody thought of."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aggregator import events
from aggregator.rounds import CAME_LATE, ENOUGH, Round, RoundState, pending_effects, plan, step
from aggregator.tasks import LIVE, WITH_SITE, TaskState
from histofed.base.errors import Stale
from histofed.base.ids import Digest, ExperimentId, RoundKey, SiteId
from tests.faults.model import Impossible, RoundModel

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = RoundKey(ExperimentId("demo"), 3)
BASE, MODEL, MANIFEST, WEIGHTS = (Digest(letter * 64) for letter in "abcd")
A, B, C = (SiteId(name) for name in ("a", "b", "c"))


def opened(quorum: int = 2, attempts: int = 2) -> Round:
    state = plan(KEY, BASE, (C, A, B), (B, A), quorum, attempts, deadline_s=60)
    return step(state, events.Opened(NOW))[0]


def received(site: SiteId, attempt: int = 1) -> events.Received:
    return events.Received(site, attempt, MANIFEST, WEIGHTS, 10)


def run(state: Round, *events: events.Event) -> Round:
    for event in events:
        state, _ = step(state, event)
    return state


def admit(state: Round, *sites: SiteId) -> Round:
    for site in sites:
        attempt = state.task(site).attempt
        state = run(state, events.Accepted(site, attempt), received(site, attempt), events.Admitted(site))
    return state


def test_a_round_that_goes_well_is_committed_with_the_model() -> None:
    state = admit(opened(), B, A)
    assert state.state is RoundState.AGGREGATING
    assert pending_effects(state) == (events.Aggregate((A, B)),), "sorted by site, whoever came first"
    state, effects = step(state, events.Aggregated(MODEL, NOW))
    assert (state.state, state.model, state.committed_at, effects) == (RoundState.COMMITTED, MODEL, NOW, (events.Ended(),))


def test_the_deadline_is_an_instant_counted_from_the_opening() -> None:
    assert opened().deadline == NOW + timedelta(seconds=60)


def test_every_message_may_come_twice() -> None:
    state = opened()
    for event in (
        events.Opened(NOW + timedelta(hours=1)),
        events.Accepted(A, 1),
        events.Announced(A, WEIGHTS, 10),
        received(A),
        events.Admitted(A),
        events.Declined(B, 1, "no"),
    ):
        state, _ = step(state, event)
        assert step(state, event) == (state, ()), event


def test_a_failed_task_that_is_offered_again_is_the_rounds_effect() -> None:
    state, effects = step(run(opened(), events.Accepted(A, 1)), events.Failed(A, 1, "killed", retryable=True))
    assert (state.task(A).state, state.task(A).attempt, effects) == (TaskState.OFFERED, 2, (events.Offer(A),))


def test_the_deadline_closes_the_round_without_the_stragglers() -> None:
    state = admit(opened(quorum=1), A)
    late, effects = step(state, events.DeadlinePassed(NOW + timedelta(seconds=60)))
    assert late.state is RoundState.AGGREGATING
    assert (late.task(B).state, late.admitted) == (TaskState.EXPIRED, (A,))
    assert effects == (events.Withdraw(B, "the round's deadline passed"), events.Aggregate((A,)))


def test_the_deadline_waits_for_an_update_that_was_acknowledged() -> None:
    state = run(opened(quorum=1), events.Accepted(A, 1), received(A))
    state = run(state, events.DeadlinePassed(NOW + timedelta(seconds=61)))
    assert (state.state, state.task(A).state) == (RoundState.OPEN, TaskState.RECEIVED)
    assert run(state, events.Admitted(A)).state is RoundState.AGGREGATING


def test_a_deadline_that_has_not_passed_changes_nothing() -> None:
    state = opened()
    assert step(state, events.DeadlinePassed(NOW + timedelta(seconds=59))) == (state, ())


def test_too_few_updates_abandon_the_round_with_the_reasons() -> None:
    state = admit(opened(quorum=2), A)
    state, effects = step(state, events.Declined(B, 1, "not during the day"))
    assert (state.state, effects) == (RoundState.ABANDONED, (events.Ended(),))
    assert state.reason == "1 of 2 needed updates (b: not during the day)"


def test_an_update_after_the_end_is_refused_in_words() -> None:
    state = run(admit(opened(quorum=1), A), events.DeadlinePassed(NOW + timedelta(minutes=2)))
    with pytest.raises(Stale, match=r"expired .*the round's deadline passed"):
        step(state, received(B))


def test_a_site_outside_the_sample_has_no_task() -> None:
    with pytest.raises(Stale, match="site c has no task"):
        step(opened(), events.Accepted(C, 1))


def test_a_round_with_more_sites_than_it_needs_closes_when_enough_are_in() -> None:
    state = plan(KEY, BASE, (A, B, C), (A, B, C), 1, 2, 60, enough=2)
    state = admit(run(state, events.Opened(NOW), events.Accepted(B, 1)), A)
    assert (state.state, state.enough) == (RoundState.OPEN, 2)
    state = run(state, events.Accepted(C, 1), received(C))
    state, effects = step(state, events.Admitted(C))
    assert (state.state, state.admitted) == (RoundState.AGGREGATING, (A, C))
    assert (state.task(B).state, state.task(B).reason) == (TaskState.EXPIRED, ENOUGH)
    assert effects == (events.Withdraw(B, ENOUGH), events.Aggregate((A, C)))
    with pytest.raises(Stale, match=ENOUGH):
        step(state, received(B))


def test_enough_updates_wait_for_one_that_was_acknowledged() -> None:
    state = plan(KEY, BASE, (A, B, C), (A, B, C), 1, 2, 60, enough=1)
    state = run(state, events.Opened(NOW), events.Accepted(B, 1), received(B))
    state = admit(state, A)
    assert (state.state, state.task(C).state) == (RoundState.OPEN, TaskState.EXPIRED)
    state, effects = step(state, events.Admitted(B))
    assert effects == (events.Aggregate((A, B)),), "what was handed over in time is averaged"


def test_a_round_never_closes_below_its_quorum() -> None:
    assert plan(KEY, BASE, (A, B, C), (A, B, C), 3, 2, 60, enough=1).enough == 3
    assert plan(KEY, BASE, (A, B), (A, B), 1, 2, 60, enough=5).enough == 2


def test_a_late_update_changes_the_words_alone() -> None:
    state = run(admit(opened(quorum=1), A), events.DeadlinePassed(NOW + timedelta(minutes=2)))
    for ended in (state, run(state, events.Aggregated(MODEL, NOW))):
        told, effects = step(ended, events.Late(B))
        assert told.task(B).reason == f"the round's deadline passed{CAME_LATE}"
        assert effects == ()
        assert step(told, events.Late(B)) == (told, ())
        assert replace(told, tasks=ended.tasks) == ended
        assert step(ended, events.Late(A)) == (ended, ()), "an admitted update is not late"


def test_abandoning_withdraws_what_is_with_the_sites() -> None:
    state, effects = step(admit(opened(), A), events.Abandoned("cancelled"))
    assert (state.state, state.reason) == (RoundState.ABANDONED, "cancelled")
    assert effects == (events.Withdraw(B, "cancelled"), events.Ended())


def test_a_restart_takes_up_exactly_what_is_open() -> None:
    state = run(opened(), events.Accepted(A, 1), received(A))
    assert pending_effects(state) == (events.Offer(B), events.Inspect(A))
    planned = plan(KEY, BASE, (A, B), (A,), 2, 2, 60)
    assert (pending_effects(planned), planned.quorum) == ((events.Open(),), 1)


class RoundMachine(RuleBasedStateMachine):
    """Any events in any order: the invariants of the module's docstring, and step by step the fault tests' own model."""

    @initialize(quorum=st.integers(1, 3), attempts=st.integers(1, 3), enough=st.integers(1, 3))
    def begin(self, quorum: int, attempts: int, enough: int) -> None:
        self.state = plan(KEY, BASE, (A, B, C), (A, B, C), quorum, attempts, 60, enough)
        self.first = self.state
        self.acknowledged: set[SiteId] = set()
        self.model = RoundModel((A, B, C), self.state.quorum, self.state.enough, attempts, 60)

    def hold_against_the_model(self, event: events.Event, before: Round, after: Round) -> None:
        """What changed the round is possible in the model, and the other way round; both are then in the same state."""
        model = copy.deepcopy(self.model)
        try:
            model.apply(type(event).__name__, vars(event))
        except Impossible:
            assert after == before
            return
        if after == before:
            assert model == self.model
        self.model = model
        assert (model.state, model.model, model.deadline, model.admitted) == (
            after.state,
            after.model,
            after.deadline,
            after.admitted,
        )
        for task in after.tasks:
            mine = model.tasks[task.site]
            assert (mine.state, mine.attempt, mine.manifest) == (task.state, task.attempt, task.manifest)

    def feed(self, event: events.Event) -> None:
        before = self.state
        try:
            after, effects = step(before, event)
        except Stale:
            self.hold_against_the_model(event, before, before)
            return
        self.hold_against_the_model(event, before, after)
        if after == before:
            assert effects == ()
        assert step(after, event)[0] == after, "every message may come twice"
        if before.ended:
            assert after == before, "an ended round never changes"
        self.state = after

    @rule()
    def open(self) -> None:
        self.feed(events.Opened(NOW))

    @rule(site=st.sampled_from([A, B, C]), attempt=st.integers(1, 3))
    def accept(self, site: SiteId, attempt: int) -> None:
        self.feed(events.Accepted(site, attempt))

    @rule(site=st.sampled_from([A, B, C]), attempt=st.integers(1, 3))
    def decline(self, site: SiteId, attempt: int) -> None:
        self.feed(events.Declined(site, attempt, "no"))

    @rule(site=st.sampled_from([A, B, C]), attempt=st.integers(1, 3), retryable=st.booleans())
    def fail(self, site: SiteId, attempt: int, retryable: bool) -> None:
        # a report of one failure is sent once per attempt; hearing it twice is covered by `feed` only while it holds
        before, event = self.state, events.Failed(site, attempt, "killed", retryable)
        with contextlib.suppress(Stale):
            self.state, _ = step(before, event)
        self.hold_against_the_model(event, before, self.state)

    @rule(site=st.sampled_from([A, B, C]))
    def announce(self, site: SiteId) -> None:
        self.feed(events.Announced(site, WEIGHTS, 10))

    @rule(site=st.sampled_from([A, B, C]), attempt=st.integers(1, 3))
    def receive(self, site: SiteId, attempt: int) -> None:
        self.feed(received(site, attempt))
        if self.state.task(site).state is TaskState.RECEIVED:
            self.acknowledged.add(site)

    @rule(site=st.sampled_from([A, B, C]), good=st.booleans())
    def judge(self, site: SiteId, good: bool) -> None:
        # the engine judges received updates only
        if self.state.task(site).state is TaskState.RECEIVED:
            self.feed(events.Admitted(site) if good else events.Rejected(site, "NaN"))

    @rule(seconds=st.sampled_from([0, 59, 60, 3600]))
    def deadline(self, seconds: int) -> None:
        self.feed(events.DeadlinePassed(NOW + timedelta(seconds=seconds)))

    @rule(site=st.sampled_from([A, B, C]))
    def come_late(self, site: SiteId) -> None:
        before = self.state
        self.state, effects = step(before, events.Late(site))
        self.hold_against_the_model(events.Late(site), before, self.state)
        assert effects == ()
        changed = [task for task, old in zip(self.state.tasks, before.tasks, strict=True) if task != old]
        assert all(task.state is TaskState.EXPIRED and task.reason.endswith(CAME_LATE) for task in changed)
        assert replace(self.state, tasks=before.tasks) == before

    @rule(reason=st.just("cancelled"))
    def abandon(self, reason: str) -> None:
        self.feed(events.Abandoned(reason))
        assert self.state.ended
        self.acknowledged.clear()  # whatever was acknowledged is thrown away, as the operator ordered

    @rule()
    def commit(self) -> None:
        if self.state.state is RoundState.AGGREGATING:
            self.feed(events.Aggregated(MODEL, NOW))

    @invariant()
    def the_plan_never_changes(self) -> None:
        same = ("key", "base", "eligible", "quorum", "attempts", "deadline_s", "kind", "sampled", "enough")
        assert all(getattr(self.state, name) == getattr(self.first, name) for name in same)

    @invariant()
    def an_acknowledged_update_is_judged_never_lost(self) -> None:
        judged = {TaskState.RECEIVED, TaskState.ADMITTED, TaskState.REJECTED}
        assert all(self.state.task(site).state in judged for site in self.acknowledged)

    @invariant()
    def a_round_can_always_end(self) -> None:
        state = self.state
        if state.state is RoundState.PLANNED:
            state, _ = step(state, events.Opened(NOW))
        for task in state.tasks:
            if task.state is TaskState.RECEIVED:
                state, _ = step(state, events.Admitted(task.site))
        state, _ = step(state, events.DeadlinePassed(NOW + timedelta(days=1)))
        assert state.state in {RoundState.AGGREGATING, RoundState.ABANDONED, RoundState.COMMITTED}

    @invariant()
    def nobody_works_for_a_round_that_has_enough_or_has_ended(self) -> None:
        states = {task.state for task in self.state.tasks}
        if len(self.state.admitted) >= self.state.enough:
            assert not states & WITH_SITE
        if self.state.ended or self.state.state is RoundState.AGGREGATING:
            assert not states & LIVE

    @invariant()
    def enough_updates_are_in_every_aggregate(self) -> None:
        if self.state.state in {RoundState.AGGREGATING, RoundState.COMMITTED}:
            assert len(self.state.admitted) >= self.state.quorum


TestRoundMachine = RoundMachine.TestCase
TestRoundMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_equality_is_by_value() -> None:
    assert replace(opened()) == opened()
