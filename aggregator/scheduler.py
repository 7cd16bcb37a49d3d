"""Decides when the next round begins, and with whom; ends experiments; closes rounds at their deadline.

Planning is a pure function (`next_move`) of the experiment, its past rounds and the sites that are present. A site is
present while it is connected and for a grace time after, so that a restart, here or there, does not change who is sampled.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from aggregator.engine import Engine
from aggregator.events import DeadlinePassed
from aggregator.experiments import Experiments
from aggregator.lifecycle import ExperimentState
from aggregator.members import Members
from aggregator.retention import Retention
from aggregator.rounds import Round, RoundState
from aggregator.rows import ExperimentRow
from aggregator.space import Space
from aggregator.tasks import TaskState
from histofed.base.clock import Clock
from histofed.base.errors import CannotWriteState, HistofedError
from histofed.base.experiment import Experiment
from histofed.base.health import Health
from histofed.base.ids import ExperimentId, SiteId
from histofed.base.seeds import sample_sites
from histofed.telemetry.logs import fields

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
"""Longest sleep: the wall clock may be set while we wait, and the watchdog wants to see the loop turn."""
PAUSE_S: Final = 15.0
"""Longest wait for a disk that refuses."""
NAMES_TOLD: Final = 5
"""Of sites, in a sentence."""
GRACE_S: Final = 120.0
"""A site that is away longer than this is not sampled."""


@dataclass(frozen=True)
class Plan:
    """Open this round."""

    number: int
    eligible: tuple[SiteId, ...]
    sample: tuple[SiteId, ...]
    enough: int
    """Admitted updates that close it early; below the sample where the experiment over-samples."""


@dataclass(frozen=True)
class Wait:
    """Not now; the reason is shown to the operator."""

    reason: str


@dataclass(frozen=True)
class Finish:
    """All rounds are committed."""


@dataclass(frozen=True)
class Rest:
    """Rounds keep failing: none begins until an operator has looked."""

    reason: str


Move: TypeAlias = Plan | Wait | Finish | Rest


def next_move(
    experiment: Experiment, committed: int, recent: Sequence[Round], present: frozenset[SiteId], forgiven: int = 0
) -> Move:
    """What to do for an experiment without an open round.

    `recent` are its newest rounds, oldest first, at least `round.abandoned_limit` of them where there are so many. Rounds
    up to number `forgiven` do not count as failures: an operator resumed the experiment after them.
    """
    rules = experiment.file
    if committed >= rules.rounds:
        return Finish()
    limit = rules.round.abandoned_limit
    tail = recent[-limit:]
    if len(tail) == limit and all(state.state is RoundState.ABANDONED and state.key.number > forgiven for state in tail):
        return Rest(f"{limit} rounds in a row were abandoned; the last: {tail[-1].reason}")
    allowed = present & frozenset(map(SiteId, rules.sampling.sites)) if rules.sampling.sites else present
    eligible = _without_recent_refusals(allowed, recent, rules.sampling.minimum)
    if len(eligible) < rules.sampling.minimum:
        return Wait(_too_few(len(eligible), rules.sampling.minimum, sorted(set(rules.sampling.sites) - present)))
    number = recent[-1].key.number + 1 if recent else 1
    count = min(len(eligible), max(rules.sampling.minimum, _rounded_up(rules.sampling.fraction * len(eligible))))
    sample = sample_sites(experiment.name, number, eligible, _rounded_up(count * rules.sampling.oversample))
    return Plan(number, eligible, sample, enough=count)


def _too_few(here: int, needed: int, absent: Sequence[str]) -> str:
    """Why no round begins. A name that the file misspells is among the absent, so they are told."""
    words = f"waiting for sites: {here} of {needed} needed are present"
    if not absent:
        return words
    more = f" and {len(absent) - NAMES_TOLD} more" if len(absent) > NAMES_TOLD else ""
    return f"{words}; of those that the file names, {', '.join(absent[:NAMES_TOLD])}{more} not"


def _rounded_up(count: float) -> int:
    """The next whole number, not deceived by a product such as 0.1 * 30."""
    return math.ceil(count - 1e-9)


def _without_recent_refusals(allowed: frozenset[SiteId], recent: Sequence[Round], minimum: int) -> tuple[SiteId, ...]:
    """A site that declined the last round is left out of the next one, where enough others are there."""
    declined = {task.site for state in recent[-1:] for task in state.tasks if task.state is TaskState.DECLINED}
    willing = allowed - declined
    return tuple(sorted(willing if len(willing) >= minimum else allowed))


class Scheduler:
    """The loop that plans. It is also the loop whose turning feeds the watchdog."""

    def __init__(
        self,
        engine: Engine,
        experiments: Experiments,
        members: Members,
        clock: Clock,
        health: Health,
        space: Space,
        retention: Retention,
    ) -> None:
        self._engine = engine
        self._experiments = experiments
        self._members = members
        self._clock = clock
        self._health = health
        self._space = space
        self._retention = retention
        self._waiting: dict[ExperimentId, str] = {}

    def waiting_for(self, experiment: ExperimentId) -> str:
        """Why no round is open; empty when there is nothing to wait for."""
        return self._waiting.get(experiment, "")

    async def run(self, drain: asyncio.Event) -> None:
        """Plan until the daemon drains. A disk that refuses delays it; one that refuses for long ends the daemon."""
        delays = self._engine.disk_delays()
        while not drain.is_set():
            pause = TICK_S
            try:
                self.tick()
                delays = self._engine.disk_delays()
                self._health.set("journal", True, "audit records are written")
            except CannotWriteState as error:
                self._health.set("journal", False, str(error))
                delay = next(delays, None)
                if delay is None:
                    self._engine.give_up(error)
                    return
                log.error("cannot write", extra=fields(job="scheduler", again_in_s=delay, reason=str(error)))
                # longer, and the watchdog would take the loop for hung
                pause = min(delay, PAUSE_S)
            self._health.beat()
            await self._engine.idle(pause)

    def tick(self) -> None:
        """One turn: deadlines, absent sites, the next rounds, what is not kept any more. Raises `CannotWriteState`."""
        try:
            self._go_on()
        except CannotWriteState:
            # what is not kept may be the room that this disk lacks
            self._clear_away()
            raise
        self._clear_away()  # after the plans: sites are at work while the past is cleared away

    def _go_on(self) -> None:
        """Close, open and plan rounds, as far as the disk lets us."""
        now = self._clock.now()
        self._engine.abandon_ended()
        self._engine.open_planned()
        for state in self._engine.open_rounds:
            if state.deadline is not None and now >= state.deadline:
                self._engine.dispatch(state.key, DeadlinePassed(now))
        for site in self._engine.fleet.given_up(GRACE_S):
            self._members.site_left(site, self._engine.fleet.seen_at(site))
            log.info("site is away", extra=fields(event="site.away", site=site))
        short = self._short_of_space()
        for row in self._engine.store.experiments(only_open=True):
            if row.state != ExperimentState.DRAFT and self._engine.open_round(row.name) is None:
                self._try_to_advance(row, short)

    def _clear_away(self) -> None:
        """Updates of rounds that have ended, and the past; where the disk keeps the ones, it may let the other go."""
        try:
            self._engine.clear_away()
        finally:
            self._retention.turn()

    def _short_of_space(self) -> str:
        """What is wrong with the disk, in words, for the operator's status; empty when all is well."""
        try:
            self._space.check()
        except CannotWriteState as error:
            self._health.set("disk", False, str(error))
            return str(error)
        self._health.set("disk", True, "there is room")
        return ""

    def _try_to_advance(self, row: ExperimentRow, short: str) -> None:
        """An experiment that cannot go on, for a reason that nobody foresaw, keeps no other from it: its status says why."""
        told = self._waiting.get(row.name)
        try:
            self._advance(row, short)
        except CannotWriteState:
            raise
        except HistofedError as error:
            words = f"it cannot go on: {error}"
            if words != told:
                log.exception("an experiment cannot go on", extra=fields(experiment=row.name))
            self._waiting[row.name] = words

    def _advance(self, row: ExperimentRow, short: str) -> None:
        experiment, name = self._engine.experiment(row.name), row.name
        recent = self._engine.store.rounds(name, last=experiment.file.round.abandoned_limit)
        committed = self._engine.store.rounds_committed(name)
        move = next_move(experiment, committed, recent, self._engine.fleet.present(), row.forgiven)
        if isinstance(move, Plan) and short:
            move = Wait(short)
        self._waiting.pop(name, None)
        if row.state == ExperimentState.PAUSED and not isinstance(move, Finish):
            return
        match move:
            case Plan(number, eligible, sample, enough):
                base = self._engine.store.latest_model(name)
                assert base is not None, "a running experiment has a model"
                self._engine.plan(experiment, number, base.digest, eligible, sample, enough)
            case Wait(reason):
                self._waiting[name] = reason
            case Finish():
                self._experiments.end(name, "finished", "")
            case Rest(reason):
                self._experiments.rest(name, reason)
