"""What can happen to a round (events), and what is to be done about it (effects): the words of `aggregator/rounds.py`
and `aggregator/tasks.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

from histofed.base.ids import Digest, SiteId
from histofed.base.words import one_line

# --- what can happen -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """The plan is on disk; offer the tasks."""

    now: datetime


@dataclass(frozen=True)
class Accepted:
    """The site's consent allows the task."""

    site: SiteId
    attempt: int


@dataclass(frozen=True)
class Declined:
    """The site will not or cannot do it; final for this round."""

    site: SiteId
    attempt: int
    reason: str


@dataclass(frozen=True)
class Failed:
    """The task failed at the site."""

    site: SiteId
    attempt: int
    reason: str
    retryable: bool


@dataclass(frozen=True)
class Announced:
    """The site begins to upload these bytes."""

    site: SiteId
    weights: Digest
    update_bytes: int


@dataclass(frozen=True)
class Received:
    """Bytes and signed manifest are durable."""

    site: SiteId
    attempt: int
    manifest: Digest
    weights: Digest
    update_bytes: int


@dataclass(frozen=True)
class Admitted:
    """The update passed every check."""

    site: SiteId


@dataclass(frozen=True)
class Rejected:
    """The update failed a check."""

    site: SiteId
    reason: str


@dataclass(frozen=True)
class DeadlinePassed:
    """The wall clock is past the deadline."""

    now: datetime


@dataclass(frozen=True)
class Aggregated:
    """The next model is durable and signed."""

    model: Digest
    now: datetime


@dataclass(frozen=True)
class Abandoned:
    """The round cannot end well: an operator ended it, or aggregation is impossible."""

    reason: str


@dataclass(frozen=True)
class Late:
    """An update was offered after its task had expired; it is refused, and the operator is told."""

    site: SiteId


Event: TypeAlias = (
    Opened
    | Accepted
    | Declined
    | Failed
    | Announced
    | Received
    | Admitted
    | Rejected
    | DeadlinePassed
    | Aggregated
    | Abandoned
    | Late
)


def plain(event: Event) -> Event:
    """The event with its reason made fit to be kept: a site, or a file that it sent, may have chosen the words."""
    if isinstance(event, Declined | Failed | Rejected | Abandoned):
        return replace(event, reason=one_line(event.reason))
    return event


# --- what is to be done about it -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offer:
    """Tell the site about its task."""

    site: SiteId


@dataclass(frozen=True)
class Withdraw:
    """Tell the site that its task is not wanted any more."""

    site: SiteId
    reason: str


@dataclass(frozen=True)
class Inspect:
    """Check the received update's tensors."""

    site: SiteId


@dataclass(frozen=True)
class Aggregate:
    """Average the admitted updates of these sites, in this order."""

    sites: tuple[SiteId, ...]


@dataclass(frozen=True)
class Open:
    """Open the planned round."""


@dataclass(frozen=True)
class Ended:
    """The round ended; plan what comes next."""


Effect: TypeAlias = Offer | Withdraw | Inspect | Aggregate | Open | Ended
