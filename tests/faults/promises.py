"""What sites and operators were told stays true: acknowledged bytes, verdicts, offers, orders, models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from aggregator.rounds import Round, RoundState
from aggregator.tasks import TaskState
from histofed.base.ids import RoundKey, TaskKey
from tests.faults.facts import (
    BytesKept,
    BytesRefused,
    Disk,
    Fact,
    ModelSeen,
    Offered,
    Refused,
    Restored,
    ResumedFrom,
    Steered,
    Stopped,
    Verdict,
    Violation,
)


def bytes_were_kept(told: Sequence[Fact]) -> Iterator[Violation]:
    """An offset that was acknowledged is never taken back."""
    kept: dict[tuple[TaskKey | None, str], int] = {}
    for fact in told:
        match fact:
            case BytesKept(task, blob, offset):
                kept[task, blob] = max(offset, kept.get((task, blob), 0))
            case ResumedFrom(task, blob, offset):
                if offset < kept.get((task, blob), 0):
                    sent = kept[task, blob]
                    whose = task or f"the download of {blob[:12]}"
                    yield Violation("byte-lost", f"{whose}: {sent} bytes were acknowledged, it was to go on from {offset}")
                kept[task, blob] = offset
            case BytesRefused(task, blob):
                kept.pop((task, blob), None)
            case Restored():
                kept.clear()


def words_were_kept(disk: Disk, promises: Sequence[Fact]) -> Iterator[Violation]:
    states = {state.key: state for state in disk.rounds}
    trials = {trial.name: trial for trial in disk.trials}
    shared = {model.digest: model.shared for model in disk.models}
    for fact in promises:
        match fact:
            case Verdict(task, manifest, admitted):
                mine = next((each for each in states[task.round].tasks if each.site == task.site), None)
                due = TaskState.ADMITTED if admitted else TaskState.REJECTED
                if mine is None or mine.state is not due or (admitted and mine.manifest != manifest):
                    yield Violation("word-broken", f"{task} was told {due}; on disk is {mine}")
            case Offered():
                yield from _offer_was_true(states, shared, fact)
            case Steered(name, state):
                if state == "cancelled" and trials[name].state != "cancelled":
                    yield Violation("word-broken", f"{name} was cancelled, and is {trials[name].state}")
            case ModelSeen(key, model):
                if states[key].model != model:
                    yield Violation("word-broken", f"round {key} had the model {model[:12]}, now it has {states[key].model}")


def _offer_was_true(states: Mapping[RoundKey, Round], shared: Mapping[str, str], offer: Offered) -> Iterator[Violation]:
    """An offer names the round's base, and the newest earlier round that was committed with the site's update in it."""
    key, site = offer.task.round, offer.task.site
    if key not in states or site not in states[key].sampled:
        yield Violation("word-broken", f"{offer.task} was offered, and no row knows of it")
        return
    if shared.get(states[key].base) != offer.base:
        yield Violation("word-broken", f"{offer.task} was offered with another base than its round has")
    settled = max(
        (
            state.key.number
            for state in states.values()
            if state.key.experiment == key.experiment
            and state.key.number < key.number
            and state.state is RoundState.COMMITTED
            and site in state.admitted
        ),
        default=0,
    )
    if offer.settled_round != settled:
        yield Violation("word-broken", f"{offer.task}: round {offer.settled_round} was called settled; it is {settled}")
    mine = states[key].task(site)
    if offer.attempt > mine.attempt:
        yield Violation("word-broken", f"attempt {offer.attempt} of {offer.task} was offered; on disk is {mine.attempt}")


def standing(told: Sequence[Fact]) -> list[Fact]:
    """The facts whose promises still count: a restored backup knows nothing of what was told after it was made."""
    standing: list[tuple[int, Fact]] = []
    for number, fact in enumerate(told):
        if isinstance(fact, Restored):
            standing = [(each, old) for each, old in standing if each < fact.as_of]
        standing.append((number, fact))
    return [fact for _, fact in standing]


def unfinished(told: Sequence[Fact]) -> int:
    """How many records may stand for something that did not happen: one for each sudden end and each refusal.

    A backup's journal is taken after its rows and may know more than they: what was written meanwhile counts as well.
    """
    while_backed_up = 20 * any(isinstance(fact, Restored) for fact in told)
    return sum(isinstance(fact, Stopped | Refused) for fact in told) + while_backed_up
