"""What an administrator may want to be told of, by name: the journal's HISTOFED_EVENT, and MESSAGE_ID derived from it.

    journalctl HISTOFED_EVENT=task.failed          journalctl MESSAGE_ID=...          journalctl HISTOFED_ROUND=12

A name stays what it is once it was released, because alerts are made of it. Where the audit journal records the same thing,
it has the same name there. `logs.fields(event=...)` takes only names of this table.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Final

_NAMESPACE: Final = uuid.UUID("6f1d3f0e-5f3e-4c43-9d3a-0c5b0e8a7c11")

EVENTS: Final[Mapping[str, str]] = {
    "daemon.ready": "The daemon is started: its state is open and its loop runs.",
    "daemon.drains": "The daemon was told to stop; it finishes or checkpoints what runs.",
    "daemon.failed": "The daemon ends because of an error; its exit code says of which kind.",
    "configuration.changed": "The configuration was read again and holds; the line names the keys.",
    "configuration.refused": "The configuration was read again and is wrong; the old one stays.",
    "aggregator.connected": "This site is connected to its aggregator.",
    "aggregator.lost": "This site is not connected to its aggregator, and tries again.",
    "identity.renewed": "This daemon's certificate was renewed.",
    "journal.begun_again": "This site's audit journal was removed or emptied, and begins with a record that says so.",
    "state.begun_again": "This site's state file was removed or emptied: what it saw of its aggregator is forgotten.",
    "task.accepted": "This site's consent allows a task, and it begins.",
    "task.declined": "This site does not do a task; the line says why.",
    "task.failed": "A task failed at this site; the line says why.",
    "task.dropped": "Nobody wants a task of this site any more.",
    "update.admitted": "An update entered the round's average.",
    "update.rejected": "An update did not enter the round's average; the line says why.",
    "site.connected": "A site says hello to the aggregator.",
    "site.away": "A site is away.",
    "site.enrolled": "A site was enrolled.",
    "round.opened": "A round is open: its sites were asked.",
    "round.ended": "A round was committed or abandoned; the line says which, and why.",
    "experiment.paused": "Rounds of an experiment keep failing; none begins until an operator resumes it.",
    "experiment.ended": "An experiment is finished, or was cancelled, or has failed.",
}
"""Every event and the sentence that explains it."""


def message_id(event: str) -> str:
    """The journal's MESSAGE_ID of an event: 32 hexadecimal digits that never change."""
    return uuid.uuid5(_NAMESPACE, event).hex
