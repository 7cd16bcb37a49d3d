"""One entry of the audit journal: who did what to which things, when, where, why, and how it ended.

The fields follow HL7 FHIR R5 AuditEvent, which a hospital's audit repository (IHE ATNA) already reads:

| here                  | AuditEvent                                |
|-----------------------|-------------------------------------------|
| `action`              | `code`                                    |
| `recorded`            | `recorded`                                |
| `outcome`, `reason`   | `outcome.code`, `outcome.detail`          |
| `who`                 | `agent.who` (certificate's URI and serial) |
| `where`               | `source.observer`                         |
| `subject`             | `entity` (identifiers and digests)        |
| `trace`               | an extension: W3C trace and span id       |

A record never holds a patient, a slide, a file name or a path: `subject` carries names from `histofed.base.ids`, digests
and counts. Written by `journal.py`, read by `verify.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from histofed.base.errors import BadData
from histofed.base.ids import Json, canonical
from histofed.telemetry.context import TraceContext

VERSION: Final = 1
"""Format of a line. A reader refuses versions that it does not know."""
GENESIS: Final = "0" * 64
"""What the first record names as its predecessor."""
MAXIMUM_BYTES: Final = 65536
"""A longer line is refused: a journal entry is a sentence, not a document."""

Outcome: TypeAlias = Literal["success", "refused", "failed"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
_CHANGED: Final = "its content was changed after it was written"


@dataclass(frozen=True)
class Who:
    """The acting party: a certificate's URI SAN and serial number, or `system` for what a daemon does by itself."""

    name: str
    serial: str | None = None


SYSTEM: Final = Who("system")


@dataclass(frozen=True)
class AuditRecord:
    """One entry; `sequence` counts from 1 without gaps."""

    sequence: int
    recorded: str
    """UTC, as `clock.iso` writes it."""
    monotonic: int
    """Microseconds of the monotonic clock: shows a wall clock that was set back."""
    where: str
    """The instance that wrote it, stable over restarts."""
    action: str
    """A word with dots, for example `update.admitted`."""
    who: Who
    subject: Mapping[str, Json]
    outcome: Outcome
    reason: str
    """Words for a person; empty where nothing needs explaining."""
    trace: TraceContext | None

    def line(self, previous: str) -> tuple[bytes, str]:
        """The journal's line (canonical JSON, no newline) behind the record whose hash is `previous`, and its own hash.

        hash = SHA-256(previous hash, 32 bytes, followed by the canonical record without its hash).
        Raises `BadData` for numbers that are not finite and for more than `MAXIMUM_BYTES`.
        """
        document = self.document(previous)
        own = chain_hash(previous, document)
        line = canonical({**document, "hash": own})
        if len(line) > MAXIMUM_BYTES:
            raise BadData(
                f"an audit record of {len(line)} bytes is too long (at most {MAXIMUM_BYTES}); "
                "name digests instead of content"
            )
        return line, own

    def document(self, previous: str) -> dict[str, Json]:
        """What is hashed: every field, the predecessor's hash, and the format's version."""
        return {
            "version": VERSION,
            "sequence": self.sequence,
            "recorded": self.recorded,
            "monotonic": self.monotonic,
            "where": self.where,
            "action": self.action,
            "who": {"name": self.who.name, "serial": self.who.serial},
            "subject": dict(self.subject),
            "outcome": self.outcome,
            "reason": self.reason,
            "trace": None if self.trace is None else {"trace": self.trace.trace_id, "span": self.trace.span_id},
            "previous": previous,
        }


@dataclass(frozen=True)
class Sealed:
    """A record as it stands in the journal, with its place in the chain."""

    record: AuditRecord
    previous: str
    hash: str


def chain_hash(previous: str, document: Mapping[str, Json]) -> str:
    """The hash of a record (a document without `hash`) that follows the record whose hash is `previous`."""
    return hashlib.sha256(bytes.fromhex(previous) + canonical(document)).hexdigest()


def parse_line(line: bytes) -> Sealed:
    """A journal line, whose own hash is right. Raises `BadData` with what is wrong with it, in words."""
    document = _parse_json(line)
    own = document.pop("hash", None)
    previous = document.get("previous")
    # nothing is believed of a line before its hash is right, its version least of all
    if not isinstance(own, str) or not isinstance(previous, str) or not _whole(line, document, previous, own):
        raise BadData(_CHANGED)
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:
        raise BadData("it is of a format that this version of histofed does not know: use a newer one")
    try:
        sealed = Sealed(_record(document), previous, own)
    except (KeyError, TypeError, ValueError, BadData) as error:
        raise BadData(_CHANGED) from error
    if sealed.record.document(previous) != document:
        raise BadData(_CHANGED)
    return sealed


def _whole(line: bytes, document: Mapping[str, Json], previous: str, own: str) -> bool:
    """Whether the line is this document behind `previous`, to the byte."""
    try:
        return len(previous) == 64 and chain_hash(previous, document) == own and canonical({**document, "hash": own}) == line
    except (TypeError, ValueError, RecursionError, BadData):
        return False


def _parse_json(line: bytes) -> dict[str, Json]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadData(f"it is not a record ({_CHANGED})") from error
    if not isinstance(document, dict):
        raise BadData(f"it is not a record ({_CHANGED})")
    return document


def _record(document: Mapping[str, Json]) -> AuditRecord:
    """The typed record; KeyError, TypeError or BadData where a field is not what it must be."""
    who, trace = document["who"], document["trace"]
    outcome = _text(document["outcome"])
    if not isinstance(who, dict) or not (trace is None or isinstance(trace, dict)) or outcome not in OUTCOMES:
        raise TypeError
    subject = document["subject"]
    if not isinstance(subject, dict):
        raise TypeError
    return AuditRecord(
        sequence=_number(document["sequence"]),
        recorded=_text(document["recorded"]),
        monotonic=_number(document["monotonic"]),
        where=_text(document["where"]),
        action=_text(document["action"]),
        who=Who(_text(who["name"]), None if who["serial"] is None else _text(who["serial"])),
        subject=subject,
        outcome=outcome,
        reason=_text(document["reason"]),
        trace=None if trace is None else TraceContext(_text(trace["trace"]), _text(trace["span"])),
    )


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError
    return value
