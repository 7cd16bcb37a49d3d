"""The checker finds what it is there to find: a good history has no violation, and each way to spoil it has its law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest

from aggregator import events
from aggregator.rounds import Round, RoundState, plan, step
from aggregator.tasks import TaskState
from histofed.audit.record import SYSTEM, AuditRecord
from histofed.base.ids import Digest, ExperimentId, Json, RoundKey, SiteId, sha256
from tests.faults.facts import (
    BytesKept,
    Disk,
    EventRow,
    Fact,
    History,
    ModelFact,
    ModelSeen,
    Offered,
    Restored,
    ResumedFrom,
    Steered,
    Stopped,
    Trial,
    Verdict,
)
from tests.faults.history import check, fingerprint

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAME = ExperimentId("demo")
A, B = SiteId("a"), SiteId("b")
FIRST, SECOND = RoundKey(NAME, 1), RoundKey(NAME, 2)


def digest(*words: object) -> Digest:
    return sha256(repr(words).encode())


def weights(key: RoundKey, site: SiteId) -> Digest:
    return digest("weights", key, site)


def manifest(key: RoundKey, site: SiteId) -> Digest:
    return digest("manifest", key, site)


def model(number: int, *contributions: tuple[str, str]) -> ModelFact:
    base = digest("model", number - 1) if number else ""
    shared = digest("shared", number)
    return ModelFact(digest("model", number), NAME, number, base, shared, frozenset({shared}), contributions)


def deliver(key: RoundKey, site: SiteId) -> tuple[events.Event, ...]:
    received = events.Received(site, 1, manifest(key, site), weights(key, site), 10)
    return events.Accepted(site, 1), events.Announced(site, weights(key, site), 10), received, events.Admitted(site)


PAUSED = AuditRecord(0, "", 0, "x", "experiment.paused", SYSTEM, {"experiment": NAME}, "success", "", None)
"""By the aggregator itself."""


class Writer:
    """Writes rounds, events and journal as the engine does."""

    def __init__(self) -> None:
        self.journal: list[AuditRecord] = []
        self.events: list[EventRow] = []

    def record(self, action: str, subject: dict[str, Json]) -> None:
        number = len(self.journal) + 1
        self.journal.append(AuditRecord(number, "", 0, "x", action, SYSTEM, subject, "success", "", None))

    def round(self, key: RoundKey, *happened: events.Event) -> Round:
        state = plan(key, digest("model", key.number - 1), (A, B), (A, B), 1, 2, 60)
        self.record("round.planned", {"round": str(key), "base": state.base, "eligible": [A, B], "sample": [A, B]})
        self.events.append(EventRow(key, "Planned", {}))
        for event in (events.Opened(NOW), *happened):
            state, _ = step(state, event)
            facts = {name: str(value) if name == "now" else value for name, value in asdict(event).items()}
            self.events.append(EventRow(key, type(event).__name__, facts))
            told: dict[str, Json] = {name: value for name, value in facts.items() if name not in {"now", "reason"}}
            self.record(f"round.{type(event).__name__.lower()}", {"round": str(key), "state": state.state, **told})
        return state


def good() -> History:
    """Two rounds: in the first both sites take part, in the second one comes too late."""
    writer = Writer()
    late = datetime(2026, 1, 1, 0, 2, tzinfo=UTC)
    first = writer.round(FIRST, *deliver(FIRST, A), *deliver(FIRST, B), events.Aggregated(digest("model", 1), NOW))
    second = writer.round(
        SECOND,
        *deliver(SECOND, A),
        events.DeadlinePassed(late),
        events.Late(B),
        events.Aggregated(digest("model", 2), late),
    )
    writer.record("experiment.finished", {"experiment": NAME})
    models = (
        model(0),
        model(1, *((site, weights(FIRST, site)) for site in (A, B))),
        model(2, (A, weights(SECOND, A))),
    )
    disk = Disk(
        trials=(Trial(NAME, "finished", 2),),
        rounds=(first, second),
        models=models,
        updates={
            manifest(key, site): state.task_key(site)
            for key, state in ((FIRST, first), (SECOND, second))
            for site in state.admitted
        },
        events=tuple(writer.events),
        journal=tuple(writer.journal),
        blobs=frozenset(part for each in models for part in each.parts),
    )
    task = first.task_key(A)
    told = (
        Offered(task, 1, digest("shared", 0), 0),
        BytesKept(task, weights(FIRST, A), 5),
        Stopped(),
        ResumedFrom(task, weights(FIRST, A), 5),
        Verdict(task, manifest(FIRST, A), True),
        ModelSeen(FIRST, digest("model", 1)),
        Offered(second.task_key(A), 1, digest("shared", 1), 1),
    )
    return History(told, disk)


def test_a_good_history_has_no_violation() -> None:
    assert check(good()) == ()


def spoil_round(history: History, number: int, **changes: object) -> History:
    rounds = list(history.disk.rounds)
    rounds[number - 1] = replace(rounds[number - 1], **changes)  # type: ignore[arg-type]  # by name
    return replace(history, disk=replace(history.disk, rounds=tuple(rounds)))


def spoil_task(history: History, number: int, site: SiteId, **changes: object) -> History:
    state = history.disk.rounds[number - 1]
    tasks = tuple(replace(task, **changes) if task.site == site else task for task in state.tasks)  # type: ignore[arg-type]  # by name
    return spoil_round(history, number, tasks=tasks)


def spoil_disk(history: History, **changes: object) -> History:
    return replace(history, disk=replace(history.disk, **changes))  # type: ignore[arg-type]  # by name


def without_event(history: History, name: str) -> History:
    return spoil_disk(history, events=tuple(row for row in history.disk.events if row.name != name))


def without_record(history: History, action: str) -> History:
    left = (record for record in history.disk.journal if record.action != action)
    return spoil_disk(history, journal=tuple(replace(record, sequence=n) for n, record in enumerate(left, 1)))


def spoil_model(history: History, number: int, **changes: object) -> History:
    models = list(history.disk.models)
    models[number] = replace(models[number], **changes)  # type: ignore[arg-type]  # by name
    return spoil_disk(history, models=tuple(models))


def told(history: History, *facts: Fact) -> History:
    return replace(history, told=(*history.told, *facts))


TASK = good().disk.rounds[0].task_key(A)


@pytest.mark.parametrize(
    ("law", "spoil"),
    [
        ("impossible", lambda good: without_event(good, "Accepted")),
        ("impossible", lambda good: without_event(good, "Opened")),
        ("impossible", lambda good: without_event(good, "Planned")),
        ("impossible", lambda good: spoil_disk(good, events=(*good.disk.events, EventRow(SECOND, "Admitted", {"site": B})))),
        ("rows", lambda good: spoil_task(good, 1, A, state=TaskState.REJECTED)),
        ("rows", lambda good: spoil_task(good, 1, A, attempt=2)),
        ("rows", lambda good: spoil_task(good, 1, A, weights=digest("other"))),
        ("rows", lambda good: spoil_disk(good, events=(*good.disk.events, EventRow(RoundKey(NAME, 3), "Planned", {})))),
        ("journal", lambda good: without_record(good, "round.received")),
        ("journal", lambda good: without_record(good, "experiment.finished")),
        ("journal", lambda good: spoil_disk(good, journal=good.disk.journal[1:])),
        ("journal", lambda good: spoil_disk(good, events=(), journal=good.disk.journal[:-2])),
        ("journal", lambda good: replace(without_event(good, "Late"), told=())),
        ("twice", lambda good: spoil_model(good, 2, contributions=((A, weights(SECOND, A)),) * 2)),
        ("twice", lambda good: spoil_task(good, 2, A, manifest=manifest(FIRST, A))),
        ("twice", lambda good: spoil_disk(good, models=(*good.disk.models, good.disk.models[1]))),
        ("missing", lambda good: spoil_model(good, 1, contributions=((A, weights(FIRST, A)),))),
        ("missing", lambda good: spoil_model(good, 1, contributions=((A, weights(FIRST, A)), (B, digest("other"))))),
        ("missing", lambda good: spoil_model(good, 2, contributions=((A, weights(SECOND, A)), (B, digest("x"))))),
        ("missing", lambda good: spoil_disk(good, models=good.disk.models[:2])),
        ("chain", lambda good: spoil_round(good, 2, base=digest("model", 0))),
        ("chain", lambda good: spoil_round(good, 2, key=RoundKey(NAME, 3))),
        ("chain", lambda good: spoil_disk(good, models=good.disk.models[1:])),
        ("chain", lambda good: spoil_disk(good, models=(*good.disk.models, model(3)))),
        ("limits", lambda good: spoil_round(good, 2, quorum=2)),
        ("limits", lambda good: spoil_round(good, 1, eligible=(A,))),
        ("limits", lambda good: spoil_round(good, 1, eligible=(A, B, SiteId("c")))),
        ("limits", lambda good: spoil_task(good, 2, A, attempt=3)),
        ("limits", lambda good: spoil_disk(good, trials=(Trial(NAME, "finished", 3),))),
        ("limits", lambda good: spoil_disk(good, trials=(Trial(NAME, "failed", 2),))),
        ("limits", lambda good: spoil_disk(good, journal=(*good.disk.journal, PAUSED))),
        (
            "limits",
            lambda good: spoil_disk(
                spoil_round(good, 1, state=RoundState.ABANDONED), trials=(Trial(NAME, "running", 2, 1),)
            ),
        ),
        ("stuck", lambda good: spoil_disk(good, trials=(Trial(NAME, "running", 3),))),
        ("stuck", lambda good: spoil_round(good, 2, state=RoundState.OPEN)),
        ("byte-lost", lambda good: spoil_disk(good, blobs=frozenset())),
        ("byte-lost", lambda good: spoil_disk(good, updates={})),
        ("byte-lost", lambda good: spoil_round(good, 2, state=RoundState.AGGREGATING)),
        ("byte-lost", lambda good: told(good, ResumedFrom(TASK, weights(FIRST, A), 4))),
        ("word-broken", lambda good: told(good, Verdict(TASK, manifest(FIRST, A), False))),
        ("word-broken", lambda good: told(good, Verdict(TASK, manifest(SECOND, A), True))),
        ("word-broken", lambda good: told(good, Steered(NAME, "cancelled"))),
        ("word-broken", lambda good: told(good, ModelSeen(SECOND, digest("model", 1)))),
        ("word-broken", lambda good: told(good, Offered(TASK, 1, digest("shared", 1), 0))),
        ("word-broken", lambda good: told(good, Offered(TASK, 1, digest("shared", 0), 1))),
        ("word-broken", lambda good: told(good, Offered(TASK, 2, digest("shared", 0), 0))),
    ],
)
def test_a_spoilt_history_breaks_its_law(law: str, spoil: Callable[[History], History]) -> None:
    spoilt = spoil(good())
    assert law in {violation.law for violation in check(spoilt)}
    assert fingerprint(spoilt) != fingerprint(good())


def test_a_crash_explains_one_record_that_stands_for_nothing() -> None:
    spoilt = without_event(good(), "Late")
    assert check(spoilt) == (), "the aggregator stopped once: after the record and before the event, perhaps"


def test_an_older_backup_takes_back_what_was_told_after_it() -> None:
    spoilt = told(good(), ModelSeen(SECOND, digest("model", 9)))
    assert check(told(spoilt, Restored(len(good().told)))) == ()
    assert check(told(spoilt, Restored(len(spoilt.told)))) != ()
