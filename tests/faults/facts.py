"""The words of a history: what was told, what is on disk, and what is wrong with it. `history.py` says how they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from aggregator.rounds import Round
from histofed.audit.record import AuditRecord
from histofed.base.ids import RoundKey, TaskKey

# --- what was told ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offered:
    """A site was offered its task: from which model's shared tensors, and which of its rounds is settled."""

    task: TaskKey
    attempt: int
    base: str
    """SHA-256 of the shared tensors to start from."""
    settled_round: int


@dataclass(frozen=True)
class BytesKept:
    """A site was told that the first `offset` bytes of its upload are durable, or told so of a download itself."""

    task: TaskKey | None
    """None: a download, which is of no task alone."""
    blob: str
    offset: int


@dataclass(frozen=True)
class ResumedFrom:
    """A site asked from where to go on with its upload, and was told this; or went on with a download from here."""

    task: TaskKey | None
    blob: str
    offset: int


@dataclass(frozen=True)
class BytesRefused:
    """A site was told that the bytes are not the blob's; the next try begins at 0."""

    task: TaskKey
    blob: str


@dataclass(frozen=True)
class Verdict:
    """A site was told what became of its update."""

    task: TaskKey
    manifest: str
    """SHA-256 of the signed manifest's payload."""
    admitted: bool


@dataclass(frozen=True)
class Steered:
    """An operator's order was acknowledged: the experiment was then in this state."""

    experiment: str
    state: str


@dataclass(frozen=True)
class ModelSeen:
    """Somebody was shown that a round was committed with this model."""

    round: RoundKey
    model: str


@dataclass(frozen=True)
class Stopped:
    """A life of the aggregator ended without warning."""


@dataclass(frozen=True)
class Refused:
    """The aggregator said that it cannot write now."""


@dataclass(frozen=True)
class Restored:
    """The aggregator's state was replaced by a backup made when `as_of` facts had been told: later promises are void."""

    as_of: int


Fact: TypeAlias = (
    Offered | BytesKept | ResumedFrom | BytesRefused | Verdict | Steered | ModelSeen | Stopped | Refused | Restored
)

# --- what is on disk -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """An experiment: what was ordered, and where it is."""

    name: str
    state: str
    rounds: int
    """Rounds to commit."""
    abandoned_limit: int = 3
    chooses: bool = False
    """Its strategy may leave admitted updates out (Krum and its kind)."""


@dataclass(frozen=True)
class ModelFact:
    """A model's signed statement, as far as it matters here."""

    digest: str
    experiment: str
    round: int
    base: str
    """Digest of the model before; empty for the first."""
    shared: str
    """SHA-256 of the shared tensors."""
    parts: frozenset[str]
    """SHA-256 of every file that it needs; empty where retention removed them."""
    contributions: tuple[tuple[str, str], ...]
    """Site, and SHA-256 of its update's weights."""


@dataclass(frozen=True)
class EventRow:
    """A row of the table `events`; times among the facts are text."""

    round: RoundKey
    name: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Disk:
    """The aggregator's durable state."""

    trials: tuple[Trial, ...]
    rounds: tuple[Round, ...]
    """Oldest first within each experiment."""
    models: tuple[ModelFact, ...]
    updates: Mapping[str, TaskKey]
    """Whose update each signed manifest (by the SHA-256 of its payload) is."""
    events: tuple[EventRow, ...]
    """In their order. Rounds whose events retention removed have none."""
    journal: tuple[AuditRecord, ...]
    """Proven (`histofed.audit.verify.records`)."""
    blobs: frozenset[str]
    """Complete ones."""
    receipts: frozenset[tuple[str, TaskKey]] | None = None
    """Who sent which blob; None where nobody looked."""


@dataclass(frozen=True)
class History:
    """One fault run."""

    told: Sequence[Fact]
    disk: Disk
    over: bool = True


@dataclass(frozen=True)
class Violation:
    """A law that was broken, and where."""

    law: str
    what: str

    def __str__(self) -> str:
        return f"{self.law}: {self.what}"
