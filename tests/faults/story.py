"""Events, journal and rows of an aggregator's disk tell one story, and it is one that the model of the round allows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from aggregator.rounds import Round
from histofed.audit.record import AuditRecord
from histofed.audit.verify import RESTORED
from histofed.base.ids import RoundKey
from tests.faults.facts import Disk, EventRow, Violation
from tests.faults.model import Impossible, RoundModel


def events_follow_the_model(disk: Disk) -> Iterator[Violation]:
    """Fold each round's events through the model: each must be possible, and the end must be the rows."""
    by_round = _grouped(disk.events)
    for state in disk.rounds:
        rows = by_round.get(state.key, ())
        if not rows:
            continue  # retention removed them; the journal is still checked
        if rows[0].name != "Planned":
            yield Violation("impossible", f"round {state.key} begins with {rows[0].name}")
            continue
        model = RoundModel(state.sampled, state.quorum, state.enough, state.attempts, state.deadline_s)
        try:
            for row in rows[1:]:
                model.apply(row.name, _with_times(row.facts))
        except Impossible as error:
            yield Violation("impossible", f"round {state.key}: {error}")
            continue
        yield from _rows_are(state, model, restored=any(record.action == RESTORED for record in disk.journal))
    known = {state.key for state in disk.rounds}
    for key in by_round.keys() - known:
        yield Violation("rows", f"events of round {key}, which has no row")


def _rows_are(state: Round, model: RoundModel, restored: bool) -> Iterator[Violation]:
    # a restore gives open rounds their whole time again, and no event tells of it
    same_deadline = restored or state.deadline == model.deadline
    if (state.state, state.model) != (model.state, model.model) or not same_deadline:
        yield Violation(
            "rows",
            f"round {state.key} is {state.state} (model {state.model}, deadline {state.deadline}); its events make it "
            f"{model.state} (model {model.model}, deadline {model.deadline})",
        )
    for task in state.tasks:
        other = model.tasks[task.site]
        same_file = other.weights is None or task.weights == other.weights
        if (task.state, task.attempt, task.manifest) != (other.state, other.attempt, other.manifest) or not same_file:
            yield Violation(
                "rows",
                f"task {state.task_key(task.site)} is {task.state}, attempt {task.attempt}, manifest {task.manifest}; "
                f"its events make it {other.state}, attempt {other.attempt}, manifest {other.manifest}",
            )


def journal_covers_events(disk: Disk, spare: int) -> Iterator[Violation]:
    """No event without its record, in the same order; at most `spare` records stand for what did not happen."""
    records: dict[str, list[AuditRecord]] = defaultdict(list)
    lost = _lost(disk.journal)
    for record in disk.journal:
        if record.action.startswith("round.") and record.sequence not in lost:
            records[str(record.subject["round"])].append(record)
    by_round, orphans = _grouped(disk.events), []
    for state in disk.rounds:
        rows, mine = by_round.get(state.key, ()), records.pop(str(state.key), [])
        if rows:
            told, strays = _matched(mine, rows)
            orphans += strays
            if told < len(rows):
                yield Violation("journal", f"round {state.key}: no record for event {told + 1}, {rows[told].name}")
        elif not mine or mine[-1].subject.get("state") != state.state:  # retention removed the events
            yield Violation("journal", f"round {state.key} is {state.state}; the journal's last word is another one")
    orphans += [record for mine in records.values() for record in mine]
    if len(orphans) > spare:
        first = "; ".join(f"{record.sequence} {record.action} {dict(record.subject)}" for record in orphans[:5])
        yield Violation("journal", f"{len(orphans)} records stand for nothing, {spare} are explained: {first}")
    yield from _journal_itself(disk)


def _lost(journal: Sequence[AuditRecord]) -> frozenset[int]:
    """Records of a history that a restore ended: after the backup, before the record that tells of the restore."""
    lost: set[int] = set()
    for record in journal:
        if record.action == RESTORED:
            lost |= set(range(int(str(record.subject["backup_head"]).partition(":")[0]) + 1, record.sequence))
    return frozenset(lost)


def _matched(records: Sequence[AuditRecord], rows: Sequence[EventRow]) -> tuple[int, list[AuditRecord]]:
    """How many of a round's events have their record, in order, and the records that belong to none."""
    told, strays = 0, []
    for record in records:
        if told < len(rows) and _tells(record, rows[told]):
            told += 1
        else:
            strays.append(record)
    return told, strays


def _journal_itself(disk: Disk) -> Iterator[Violation]:
    """It has no gap, and it knows how each experiment came to where it is."""
    sequences = [record.sequence for record in disk.journal]
    if sequences != list(range(1, len(sequences) + 1)):
        yield Violation("journal", "its sequences do not count from 1 without gaps")
    acted = {(record.action, record.subject.get("experiment")) for record in disk.journal}
    for trial in disk.trials:
        if trial.state not in {"draft", "running"} and (f"experiment.{trial.state}", trial.name) not in acted:
            yield Violation("journal", f"experiment {trial.name} is {trial.state}; no record says so")


def _tells(record: AuditRecord, row: EventRow) -> bool:
    """The record announces this event."""
    same = all(record.subject[name] == value for name, value in row.facts.items() if name in record.subject)
    return same and record.action == f"round.{row.name.lower()}"


def _grouped(rows: Iterable[EventRow]) -> dict[RoundKey, list[EventRow]]:
    found: dict[RoundKey, list[EventRow]] = defaultdict(list)
    for row in rows:
        found[row.round].append(row)
    return found


def _with_times(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: datetime.fromisoformat(value) if name == "now" else value for name, value in facts.items()}
