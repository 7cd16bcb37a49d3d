"""What an operator sees of a federation: frozen values, free of protobuf, with the field names of `--json`.

`client.py` makes them, every command reads them. A field's name is its JSON key, so renaming one breaks operators' scripts;
`tests/unit/cli/test_views.py` holds the keys.
Times are RFC 3339 text as the aggregator wrote them, None where there is none yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from histofed.base.ids import Json

ENDED = frozenset({"finished", "failed", "cancelled"})
"""States of an experiment after which nothing happens to it."""
CLOSED = frozenset({"committed", "abandoned"})
"""States of a round after which nothing happens to it."""


@dataclass(frozen=True)
class Experiment:
    """An experiment as the aggregator holds it."""

    name: str
    recipe: str
    state: str
    reason: str
    rounds: int
    """Rounds to commit."""
    rounds_committed: int
    sha256: str
    submitted_by: str
    created_at: str | None
    ended_at: str | None
    model_digest: str | None
    open_round: int = 0
    """Number of its round that is not ended; 0 when there is none."""

    @property
    def ended(self) -> bool:
        """Nothing more will happen to it."""
        return self.state in ENDED

    @property
    def rests(self) -> bool:
        """Nothing more will happen to it unless an operator resumes it.

        A pause ends neither the first model that is being made, nor what has committed its last round.
        """
        waits = self.open_round == 0 and self.model_digest is not None and self.rounds_committed < self.rounds
        return self.ended or (self.state == "paused" and waits)


@dataclass(frozen=True)
class Refusal:
    """A site that is not in the round's model, and why."""

    site: str
    reason: str


@dataclass(frozen=True)
class Task:
    """One site's part in a round."""

    site: str
    kind: str
    state: str
    reason: str
    attempt: int
    phase: str
    """`download`, `train` or `upload`; empty when unknown."""
    done: int
    """Steps (train) or bytes done in this phase."""
    total: int
    losses: Mapping[str, float]
    rate: float
    """Images per second (train) or bytes per second."""
    update_bytes: int


@dataclass(frozen=True)
class Round:
    """One round; `tasks` is filled by `rounds show` and `rounds watch` only."""

    experiment: str
    round: int
    state: str
    reason: str
    eligible: tuple[str, ...]
    sampled: tuple[str, ...]
    admitted: tuple[str, ...]
    refused: tuple[Refusal, ...]
    model_digest: str | None
    base_digest: str | None
    opened_at: str | None
    deadline: str | None
    committed_at: str | None
    metrics: Mapping[str, float]
    tasks: tuple[Task, ...] = field(default=())
    quorum: int = 0
    """Admitted updates without which it is abandoned."""
    enough: int = 0
    """Admitted updates that close it before its deadline."""

    @property
    def closed(self) -> bool:
        """Nothing more will happen to it."""
        return self.state in CLOSED


@dataclass(frozen=True)
class Status:
    """The aggregator in one screen."""

    version: str
    federation: str
    now: str
    started_at: str
    sites_connected: int
    sites_enrolled: int
    journal_records: int
    conditions: tuple[str, ...]
    """What is wrong, in words; empty when all is well."""
    experiments: tuple[Experiment, ...]
    """Those that are not ended."""
    journal_head: str | None = None
    """NUMBER:HASH, for `audit verify --head`; None from an aggregator that is too old to tell."""


@dataclass(frozen=True)
class Site:
    """A site that enrolled."""

    name: str
    connected: bool
    enrolled_at: str | None
    last_seen_at: str | None
    version: str
    certificate_expires_at: str | None
    updates_admitted: int


@dataclass(frozen=True)
class Part:
    """One file of a model."""

    name: str
    sha256: str
    bytes: int
    release: bool
    """It is the finished product."""


@dataclass(frozen=True)
class Model:
    """A global model."""

    digest: str
    experiment: str
    round: int
    state: str
    parts: tuple[Part, ...]
    created_at: str | None
    removed_at: str | None = None
    """When the aggregator's retention removed its files; the signed statement stays."""


@dataclass(frozen=True)
class Token:
    """A join token for one site."""

    site: str
    join_line: str
    """A secret until it is used or expired."""
    expires_at: str


@dataclass(frozen=True)
class Sight:
    """One moment of a watched experiment: its newest round with tasks, None before the first."""

    experiment: Experiment
    round: Round | None


def document(view: Status | Experiment | Round | Task | Site | Model | Token | Sight) -> dict[str, Json]:
    """The view as a JSON document, keys as its fields."""
    return asdict(view)


def round_in_list(view: Round) -> dict[str, Json]:
    """A round as `rounds list` shows it: without its tasks."""
    found = document(view)
    del found["tasks"]
    return found
