"""The checker of every fault run: a history goes in, violations come out. Pure: no disk, no clock, no network.

A *history* has two halves, and every check compares them with each other or with the model of the round (`model.py`):

- `told`: what sites and operators were told, in the order in which they were told it. A driver appends a fact whenever
  an answer of the aggregator arrives (`Offered`, `BytesKept`, `ResumedFrom`, `BytesRefused`, `Verdict`, `Steered`,
  `ModelSeen`), and whenever the world interferes (`Stopped`: a life of the aggregator ended without warning; `Refused`: it
  said that it cannot write; `Restored`: an older backup took its state's place). Answers that were lost on the way are no
  facts. Simulated sites note them as they hear them; for real processes they come from the agents' journals and logs. Every
  kind may be left out: then what it would prove is not checked.
- `disk`: what the aggregator's state holds at the end (`Disk`; `observation.py` reads it): the rows of experiments, rounds,
  models, updates and events, the audit journal, and the names of complete blobs.

`over` says that the driver gave everything time to end: sites back, link whole, disk empty, clock past every deadline, no
experiment left paused. Only then is an open round stuck.

What is checked, by the `law` of a violation:

| law | meaning |
|---|---|
| `impossible` | an event is on disk that the model of the round does not allow at this place |
| `rows` | the rows of a round are not what its events make of it |
| `journal` | an event has no record, or in another order; more records stand for nothing than crashes and refusals explain |
| `twice` | an update is in an aggregate twice, or in two aggregates |
| `missing` | an admitted update is not in its round's aggregate, or with other bytes; or another one is in it |
| `chain` | round numbers, bases and models do not form one line from the first model on |
| `limits` | too few updates in a commit, a sample of sites that were not eligible, too many attempts, a wrong end or pause |
| `stuck` | nothing can happen any more, and a round or an experiment is still open |
| `byte-lost` | bytes that were acknowledged had to be sent again, or a file that rows refer to is gone |
| `word-broken` | what a site or an operator was told is not what the disk says |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from datetime import datetime
from typing import Any

from tests.faults.facts import History, Violation
from tests.faults.outcome import (
    aggregates_are_whole,
    files_are_there,
    limits_were_kept,
    nothing_is_stuck,
    nothing_twice,
    one_line_of_rounds,
    rests_were_due,
)
from tests.faults.promises import bytes_were_kept, standing, unfinished, words_were_kept
from tests.faults.story import events_follow_the_model, journal_covers_events


def check(history: History) -> tuple[Violation, ...]:
    """Every violation in the history; none when all is well."""
    disk, promises = history.disk, standing(history.told)
    found = (
        *events_follow_the_model(disk),
        *journal_covers_events(disk, spare=unfinished(history.told)),
        *nothing_twice(disk),
        *aggregates_are_whole(disk),
        *one_line_of_rounds(disk),
        *limits_were_kept(disk),
        *rests_were_due(disk),
        *files_are_there(disk),
        *bytes_were_kept(history.told),
        *words_were_kept(disk, promises),
    )
    return (*found, *nothing_is_stuck(disk)) if history.over else found


def fingerprint(history: History) -> str:
    """SHA-256 of the history: the same for two runs of one seed. Certificate serials and trace ids are left out."""
    journal = [(record.recorded, record.action, record.subject, record.outcome) for record in history.disk.journal]
    disk = history.disk
    document = [history.told, disk.trials, disk.rounds, disk.models, disk.updates, disk.events, journal, disk.blobs]
    return hashlib.sha256(json.dumps(_plain(document), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """As JSON knows it; sets sorted, dataclasses with their class."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"": type(value).__name__} | {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, frozenset | set):
        return sorted((_plain(item) for item in value), key=str)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, datetime) else value
