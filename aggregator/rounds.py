"""A round as a pure state machine: `(state, event) -> (state, effects)`. No time, no disk, no network in here.

    planned -> open -> aggregating -> committed | abandoned

Its tasks, one per sampled site, have a machine of their own, `aggregator/tasks.py`; the round expires them, and closes over
what they came to.

Invariants, held by `tests/unit/aggregator/test_rounds.py` (a hypothesis state machine):

- the eligible set, the sample and the base never change once the round is planned;
- an event that already happened changes nothing and has no effects (every message may come twice);
- an event that comes too late, or from nobody in the sample, raises `Stale` and changes nothing;
- a round always ends: when every task is settled, when enough updates are admitted, or at its deadline; in each case
  once what was received is judged;
- an ended round never changes, but for the words that tell that an expired task's update came after all;
- the updates in the aggregate are exactly the admitted ones, sorted by site.

`aggregator/engine.py` journals and persists each new state before it carries out the effects. After a restart
`pending_effects` derives what is still to be done from the state alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from aggregator.events import (
    Abandoned,
    Aggregate,
    Aggregated,
    DeadlinePassed,
    Effect,
    Ended,
    Event,
    Inspect,
    Late,
    Offer,
    Open,
    Opened,
    Withdraw,
)
from aggregator.tasks import LIVE, WITH_SITE, Task, TaskEvent, TaskState, step_task
from histofed.base.errors import Stale
from histofed.base.ids import Digest, RoundKey, SiteId, TaskKey
from histofed.base.words import one_line

DEADLINE: Final = "the round's deadline passed"
ENOUGH: Final = "the round had enough updates without it"
CAME_LATE: Final = "; its update came too late"
REASON_LETTERS: Final = 2000
"""Of a round's reason, in which those of its tasks stand in a row."""


class RoundState(StrEnum):
    """Where a round is."""

    PLANNED = "planned"
    OPEN = "open"
    AGGREGATING = "aggregating"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


@dataclass(frozen=True)
class Round:
    """A round. Everything a restart needs is in here."""

    key: RoundKey
    base: Digest
    """The model it starts from."""
    eligible: tuple[SiteId, ...]
    tasks: tuple[Task, ...]
    """One per sampled site, sorted by site."""
    quorum: int
    attempts: int
    """How often a failing task is offered."""
    deadline_s: int
    enough: int
    """Admitted updates that close it before its deadline: fewer than were sampled where it is over-sampled."""
    kind: str = "train"
    state: RoundState = RoundState.PLANNED
    reason: str = ""
    opened_at: datetime | None = None
    deadline: datetime | None = None
    """A wall-clock instant, so that it means the same after a restart."""
    committed_at: datetime | None = None
    model: Digest | None = None
    """The model it made."""

    def task(self, site: SiteId) -> Task:
        """The site's task. Raises `Stale` when the site is not in the sample."""
        for task in self.tasks:
            if task.site == site:
                return task
        raise Stale(f"site {site} has no task in round {self.key}")

    def task_key(self, site: SiteId) -> TaskKey:
        """The name under which the site's task travels."""
        return TaskKey(self.key, self.kind, site)

    @property
    def ended(self) -> bool:
        """No event will change it any more."""
        return self.state in {RoundState.COMMITTED, RoundState.ABANDONED}

    @property
    def sampled(self) -> tuple[SiteId, ...]:
        """Sites that were asked."""
        return tuple(task.site for task in self.tasks)

    @property
    def admitted(self) -> tuple[SiteId, ...]:
        """Sites whose update is, or will be, in the model."""
        return tuple(task.site for task in self.tasks if task.state is TaskState.ADMITTED)


def plan(
    key: RoundKey,
    base: Digest,
    eligible: tuple[SiteId, ...],
    sampled: tuple[SiteId, ...],
    quorum: int,
    attempts: int,
    deadline_s: int,
    enough: int | None = None,
) -> Round:
    """A round that nobody knows of yet; without `enough` it waits for every sampled site."""
    assert set(sampled) <= set(eligible) and len(set(sampled)) == len(sampled) > 0, (
        "the sample comes from the eligible sites"
    )
    # a sample may be smaller than the quorum only when fewer sites were eligible than the experiment's minimum
    quorum = min(quorum, len(sampled))
    return Round(
        key=key,
        base=base,
        eligible=tuple(sorted(eligible)),
        tasks=tuple(Task(site) for site in sorted(sampled)),
        quorum=quorum,
        attempts=attempts,
        deadline_s=deadline_s,
        enough=len(sampled) if enough is None else max(quorum, min(enough, len(sampled))),
    )


def step(state: Round, event: Event) -> tuple[Round, tuple[Effect, ...]]:
    """The round after the event, and what is to be done. Raises `Stale` for an event that cannot happen any more."""
    match event:
        case Opened(now):
            return _open(state, now)
        case DeadlinePassed(now):
            return _deadline(state, now)
        case Aggregated(model, now):
            return _commit(state, model, now)
        case Abandoned(reason):
            return _abandon(state, reason)
        case Late(site):
            return _tell_late(state, site), ()
        case _:
            return _task_event(state, event)


def pending_effects(state: Round) -> tuple[Effect, ...]:
    """What a process that just started has to do for this round; it repeats nothing that is settled."""
    match state.state:
        case RoundState.PLANNED:
            return (Open(),)
        case RoundState.OPEN:
            offers = (Offer(task.site) for task in state.tasks if task.state in WITH_SITE)
            checks = (Inspect(task.site) for task in state.tasks if task.state is TaskState.RECEIVED)
            return (*offers, *checks)
        case RoundState.AGGREGATING:
            return (Aggregate(state.admitted),)
        case _:
            return ()


def _open(state: Round, now: datetime) -> tuple[Round, tuple[Effect, ...]]:
    if state.state is not RoundState.PLANNED:
        return state, ()
    opened = replace(state, state=RoundState.OPEN, opened_at=now, deadline=now + timedelta(seconds=state.deadline_s))
    return opened, tuple(Offer(task.site) for task in opened.tasks)


def _task_event(state: Round, event: TaskEvent) -> tuple[Round, tuple[Effect, ...]]:
    task = state.task(event.site)
    changed, effects = step_task(state.task_key(task.site), task, event, state.attempts)
    if changed == task:
        return state, ()
    if state.state is not RoundState.OPEN:
        raise Stale(_late(state))
    tasks = tuple(changed if each.site == task.site else each for each in state.tasks)
    settled, more = _settle(replace(state, tasks=tasks))
    return settled, (*effects, *more)


def _deadline(state: Round, now: datetime) -> tuple[Round, tuple[Effect, ...]]:
    if state.state is not RoundState.OPEN or state.deadline is None or now < state.deadline:
        return state, ()
    expired, withdrawn = _without_stragglers(state, DEADLINE)
    if not withdrawn:
        return state, ()
    settled, effects = _settle(expired)
    return settled, (*withdrawn, *effects)


def _without_stragglers(state: Round, reason: str) -> tuple[Round, tuple[Effect, ...]]:
    """Wait for the sites no longer; what they handed over already is still judged."""
    late = tuple(task.site for task in state.tasks if task.state in WITH_SITE)
    tasks = tuple(
        replace(task, state=TaskState.EXPIRED, reason=reason) if task.site in late else task for task in state.tasks
    )
    return replace(state, tasks=tasks), tuple(Withdraw(site, reason) for site in late)


def _tell_late(state: Round, site: SiteId) -> Round:
    """Its update came after the task had expired: the operator shall read it, and nothing else changes."""
    task = state.task(site)
    if task.state is not TaskState.EXPIRED or task.reason.endswith(CAME_LATE):
        return state
    told = replace(task, reason=task.reason + CAME_LATE)
    return replace(state, tasks=tuple(told if each is task else each for each in state.tasks))


def _settle(state: Round) -> tuple[Round, tuple[Effect, ...]]:
    """Close the round when enough is in, or nothing is outstanding."""
    withdrawn: tuple[Effect, ...] = ()
    if len(state.admitted) >= state.enough:
        state, withdrawn = _without_stragglers(state, ENOUGH)
    if any(task.state in LIVE for task in state.tasks):
        return state, withdrawn
    admitted = state.admitted
    if len(admitted) >= state.quorum:
        return replace(state, state=RoundState.AGGREGATING), (*withdrawn, Aggregate(admitted))
    words = "; ".join(f"{task.site}: {task.reason}" for task in state.tasks if task.reason)
    reason = one_line(f"{len(admitted)} of {state.quorum} needed updates ({words})", REASON_LETTERS)
    return replace(state, state=RoundState.ABANDONED, reason=reason), (Ended(),)


def _commit(state: Round, model: Digest, now: datetime) -> tuple[Round, tuple[Effect, ...]]:
    if state.state is RoundState.COMMITTED and state.model == model:
        return state, ()
    if state.state is not RoundState.AGGREGATING:
        raise Stale(_late(state))
    return replace(state, state=RoundState.COMMITTED, model=model, committed_at=now), (Ended(),)


def _abandon(state: Round, reason: str) -> tuple[Round, tuple[Effect, ...]]:
    if state.ended:
        return state, ()
    tasks = tuple(
        replace(task, state=TaskState.EXPIRED, reason=reason) if task.state in LIVE else task for task in state.tasks
    )
    abandoned = replace(state, state=RoundState.ABANDONED, reason=reason, tasks=tasks)
    withdrawn = (Withdraw(task.site, reason) for task in state.tasks if task.state in WITH_SITE)
    return abandoned, (*withdrawn, Ended())


def _late(state: Round) -> str:
    return (
        f"round {state.key} is {state.state}{f': {state.reason}' if state.reason else ''}; the task is not wanted any more"
    )
