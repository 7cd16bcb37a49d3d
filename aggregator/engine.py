"""Carries out what the round machine decides: journal, then persist, then act.

`dispatch` is the only way a round changes: it asks `rounds.step`, writes the audit journal, writes rows and event in one
transaction, and only then starts the effects. It runs without a break in the daemon's loop, so no two transitions can
interleave; the arithmetic (admission's checks, aggregation) runs in child processes and comes back as an event.

After a restart `recover` reads what is open and starts the effects that the states imply. Effects may therefore happen
twice; each is harmless then: an offer is a message, a check reads, an aggregation makes the same bytes.

What happens to whole experiments, `aggregator/experiments.py` carries out in the same order, through this engine.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from aggregator import events, lifecycle, rounds, told
from aggregator.background import Background
from aggregator.events import Effect, Event
from aggregator.fleet import Changes, Fleet, OfferTask, WithdrawTask
from aggregator.models import ModelForge
from aggregator.rounds import Round
from aggregator.rows import ModelRow
from aggregator.store import Store
from aggregator.tasks import WITH_SITE, TaskState
from histofed.audit.journal import Journal
from histofed.audit.record import SYSTEM, Who
from histofed.base.clock import Clock
from histofed.base.errors import BadData, CannotWriteState, HistofedError, NotFound, Stale, WorkerLost
from histofed.base.experiment import Experiment, parse_experiment
from histofed.base.failpoints import failpoint
from histofed.base.ids import Digest, ExperimentId, Json, RoundKey, SiteId, TaskKey
from histofed.pki.signing import Envelope
from histofed.telemetry import attributes as names
from histofed.telemetry.context import TraceContext, round_parent
from histofed.telemetry.logs import fields
from histofed.telemetry.metrics import Metrics
from histofed.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

UNSEEN: Final = (
    "the aggregator could not look at the update, and that is not the site's doing: the aggregator's log says why"
)


class Engine:
    """The rounds that are open, and what is being done about them."""

    def __init__(
        self,
        *,
        store: Store,
        journal: Journal,
        clock: Clock,
        fleet: Fleet,
        forge: ModelForge,
        changes: Changes,
        tracing: Tracing,
        metrics: Metrics,
        entropy: random.Random,
        fatal: Callable[[HistofedError], None],
    ) -> None:
        self.store = store
        self.fleet = fleet
        self.forge = forge
        self.changes = changes
        self.background = Background(clock, entropy, fatal)
        self._journal = journal
        self._clock = clock
        self._tracing = tracing
        self._metrics = metrics
        self._fatal = fatal
        self._rounds: dict[RoundKey, Round] = {}
        self._experiments: dict[ExperimentId, Experiment] = {}
        self._ended_with_updates: list[Round] = []
        """Rounds that have ended, and whose updates are still on the disk."""
        self._ended = asyncio.Event()
        """Set whenever the scheduler may have something to plan."""
        self.rounds_ended = 0
        """Since the start of this process."""

    # --- life --------------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Take up the rounds that were open when the last process ended."""
        goes_on = {row.name for row in self.store.experiments(only_open=True)}
        self.forge.forget_strangers(self.store.rounds(only_open=True))
        for state in self.store.rounds(only_open=True):
            self._rounds[state.key] = state
            log.info("taking up an open round", extra=fields(state.key, state=state.state))
            if state.key.experiment in goes_on:
                self._carry_out(state, rounds.pending_effects(state))
            # the others were cancelled just before the end: the scheduler's first turn abandons them

    async def close(self) -> None:
        """Stop the child processes; what they did is repeated after the next start."""
        await self.background.close()

    async def idle(self, seconds: float) -> None:
        """Wait until something may have to be planned, at most `seconds`."""
        try:
            await asyncio.wait_for(self._ended.wait(), seconds)
        except TimeoutError:
            return
        self._ended.clear()

    def disk_delays(self) -> Iterator[float]:
        """Seconds between tries while a disk refuses; when they are used up, `give_up`."""
        return self.background.disk_delays()

    def give_up(self, error: HistofedError) -> None:
        """The daemon cannot go on: end it with the error's exit code."""
        self._fatal(error)

    def wake(self) -> None:
        """Something happened that may allow the next round."""
        self._ended.set()
        self.changes.notify()

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def open_rounds(self) -> tuple[Round, ...]:
        """Rounds that are not ended, by key."""
        return tuple(self._rounds[key] for key in sorted(self._rounds))

    def open_round(self, experiment: ExperimentId) -> Round | None:
        """The experiment's round that is not ended; there is at most one."""
        return next((state for key, state in self._rounds.items() if key.experiment == experiment), None)

    @property
    def makes_models(self) -> bool:
        """A model is being made at this moment: its files come before the rows that name them."""
        return any(name.startswith(("aggregate ", "initialise ")) for name in self.background.at_work)

    def round_of(self, task: TaskKey) -> Round:
        """The round of a task, open or not. Raises `NotFound`, and `Stale` when the site is not in its sample."""
        state = self._rounds.get(task.round) or self.store.round(task.round)
        if task.kind != state.kind:
            raise NotFound(f"round {task.round} has no task of kind {task.kind}")
        state.task(task.site)
        return state

    def experiment(self, name: ExperimentId) -> Experiment:
        """The experiment as it was submitted. Raises `NotFound`."""
        if name not in self._experiments:
            self._experiments[name] = parse_experiment(self.store.experiment(name).toml)
        return self._experiments[name]

    def tasks_of(self, site: SiteId) -> tuple[TaskKey, ...]:
        """Tasks that the site still has to do."""
        return tuple(
            state.task_key(site)
            for state in self.open_rounds
            for task in state.tasks
            if task.site == site and task.state in WITH_SITE and state.state is rounds.RoundState.OPEN
        )

    # --- changing ----------------------------------------------------------------------------------------------------

    def abandon_ended(self) -> None:
        """Close the rounds of experiments that were cancelled. Raises `CannotWriteState`; then it is to be called again."""
        for state in self.open_rounds:
            row = self.store.experiment(state.key.experiment)
            if row.state not in lifecycle.OPEN:
                self.dispatch(state.key, events.Abandoned(f"the experiment was {row.state} {row.reason}".rstrip()))

    def clear_away(self) -> None:
        """Remove the updates of rounds that have ended. Raises `CannotWriteState`; then it is to be called again."""
        while self._ended_with_updates:
            self.forge.forget_updates(self._ended_with_updates[0])
            del self._ended_with_updates[0]

    def note_late(self, task: TaskKey, who: Who) -> None:
        """The site offers an update for a task; where it has expired, the journal and the round's list say so."""
        mine = self.round_of(task).task(task.site)
        if mine.state is TaskState.EXPIRED and mine.manifest is None:
            self.dispatch(task.round, events.Late(task.site), who=who)

    def plan(
        self,
        experiment: Experiment,
        number: int,
        base: Digest,
        eligible: tuple[SiteId, ...],
        sample: tuple[SiteId, ...],
        enough: int | None = None,
    ) -> None:
        """Plan and open the next round; `enough` admitted updates close it before its deadline."""
        rules = experiment.file.round
        key = RoundKey(experiment.name, number)
        state = rounds.plan(key, base, eligible, sample, rules.quorum, rules.attempts, rules.deadline_s, enough)
        attributes = told.attributes(key) | {names.SITES_ELIGIBLE: len(eligible), names.SITES_SAMPLED: len(sample)}
        with self._tracing.root(names.ROUND_SAMPLE, round_parent(key.experiment, key.number), attributes):
            self.audit("round.planned", SYSTEM, {"round": str(key), "base": base} | told.asked(eligible, sample))
            self.store.add_round(state)
            self._rounds[key] = state
            failpoint("aggregator.sample_planned")
        self._carry_out(state, rounds.pending_effects(state))

    def open_planned(self) -> None:
        """Open the rounds that a full disk kept from opening when they were planned. Raises `CannotWriteState`."""
        for state in self.open_rounds:
            if state.state is rounds.RoundState.PLANNED:
                self._carry_out(state, rounds.pending_effects(state))

    def dispatch(
        self,
        key: RoundKey,
        event: Event,
        *,
        who: Who = SYSTEM,
        update: Envelope | None = None,
        model: ModelRow | None = None,
        trace: TraceContext | None = None,
    ) -> Round:
        """One event of one round. Raises `Stale` (too late) and `CannotWriteState`; then nothing has changed.

        `trace` is the span that led to it, at a site perhaps; without one the event belongs to the round itself.
        """
        before = self._rounds.get(key) or self.store.round(key)
        event = events.plain(event)
        after, effects = rounds.step(before, event)
        if after == before:
            return before
        action = f"round.{type(event).__name__.lower()}"
        subject: dict[str, Json] = {"round": str(key), "state": after.state} | told.facts(event)
        trace = trace or round_parent(key.experiment, key.number)
        self.audit(action, who, subject, reason=getattr(event, "reason", ""), trace=trace)
        self.store.save_round(before, after, event, update, model)
        if not before.ended:
            self._rounds[key] = after
        told.count(self._metrics, before, after)
        self._carry_out(after, effects, trace)
        self.changes.notify()
        return after

    def audit(
        self, action: str, who: Who, subject: dict[str, Json], reason: str = "", trace: TraceContext | None = None
    ) -> None:
        """No audit, no action: raises `CannotWriteState`, and then nothing may be done."""
        self._journal.append(action, who=who, subject=subject, reason=reason, trace=trace)

    # --- effects -----------------------------------------------------------------------------------------------------

    def _carry_out(self, state: Round, effects: tuple[Effect, ...], trace: TraceContext | None = None) -> None:
        for effect in effects:
            match effect:
                case events.Open():
                    self.dispatch(state.key, events.Opened(self._clock.now()))
                    log.info("round opened", extra=fields(state.key, event="round.opened", sites=len(state.sampled)))
                case events.Offer(site):
                    self._offer(state, site)
                case events.Withdraw(site, reason):
                    self.fleet.send(site, WithdrawTask(state.task_key(site), reason))
                case events.Inspect(site):
                    self.background.start(_inspection(state, site), partial(self._inspect, state.key, site, trace))
                case events.Aggregate():
                    self.background.start(f"aggregate {state.key}", partial(self._aggregate, state.key))
                case events.Ended():
                    self._end_round(state)

    def _offer(self, state: Round, site: SiteId) -> None:
        attributes = told.attributes(state.key) | {names.SITE_ID: site, names.ATTEMPT: state.task(site).attempt}
        with self._tracing.span(names.TASK_OFFER, attributes, parent=round_parent(state.key.experiment, state.key.number)):
            failpoint("aggregator.task_offered")
            self.fleet.send(site, OfferTask(state.task_key(site)))

    def _end_round(self, state: Round) -> None:
        self._rounds.pop(state.key, None)
        self.rounds_ended += 1
        for job in (f"aggregate {state.key}", *(_inspection(state, site) for site in state.sampled)):
            self.background.drop(job)
        self.fleet.forget(tuple(state.task_key(site) for site in state.sampled))
        self._ended_with_updates.append(state)
        try:
            self.clear_away()
        except CannotWriteState as error:
            log.warning("updates of an ended round stay for now", extra=fields(state.key, reason=str(error)))
        where = fields(state.key, event="round.ended", state=state.state, reason=state.reason)
        log.info("round ended", extra=where)
        self.wake()

    async def _inspect(self, key: RoundKey, site: SiteId, trace: TraceContext | None) -> None:
        state = self._open(key)
        experiment = self.experiment(key.experiment)
        attributes = told.attributes(key) | {names.SITE_ID: site}
        parent = trace or round_parent(key.experiment, key.number)
        with self._tracing.span(names.TASK_ADMIT, attributes, parent=parent) as span:
            event: Event
            try:
                look = partial(self.forge.inspect, experiment, state, site)
                norm = await self.background.patiently(_inspection(state, site), look)
                span.set({names.UPDATE_NORM: norm})
                span.outcome("ok")
                event = events.Admitted(site)
            except (CannotWriteState, WorkerLost):
                raise
            except HistofedError as error:
                reason = str(error) if isinstance(error, BadData) else UNSEEN
                where = fields(state.task_key(site), event="update.rejected", reason=reason)
                log.warning("update rejected", extra=where)
                span.outcome("rejected")
                event = events.Rejected(site, reason)
            self.dispatch(key, event)
            failpoint("aggregator.update_admitted")

    async def _aggregate(self, key: RoundKey) -> None:
        state = self._open(key)
        experiment = self.experiment(key.experiment)
        parent = round_parent(key.experiment, key.number)
        attributes = told.attributes(key) | {names.UPDATES_ADMITTED: len(state.admitted)}
        try:
            with self._tracing.span(names.ROUND_AGGREGATE, attributes, parent=parent):
                made = await self.background.patiently(f"aggregate {key}", partial(self.forge.next, experiment, state))
        except (CannotWriteState, WorkerLost):
            raise
        except HistofedError as error:
            # an arithmetic that keeps failing must not take the other experiments down with it
            self.dispatch(key, events.Abandoned(f"the updates cannot be averaged: {error}"))
            return
        with self._tracing.span(
            names.ROUND_COMMIT, told.attributes(key) | {names.MODEL_DIGEST: made.model.digest}, parent=parent
        ):
            self.dispatch(key, events.Aggregated(made.model.digest, self._clock.now()), model=made.model)
            # numbers for people, not part of the model: after the commit that they describe
            self.store.set_round_metrics(key, made.metrics)
            failpoint("aggregator.model_committed")

    def _open(self, key: RoundKey) -> Round:
        if key not in self._rounds:
            raise Stale(f"round {key} has ended")
        return self._rounds[key]


def _inspection(state: Round, site: SiteId) -> str:
    """The name of the look at the site's update."""
    return f"inspect {state.task_key(site)}"
