"""`histofed-agent enroll`: a join line becomes this site's identity; `own_site` tells whose an identity is.

The join line holds a secret, so it comes from a file or from standard input, never from the command line, where every user
of the machine could read it. The key is made here and never leaves. The command line calls `enroll`; the daemon and the
doctor ask for the site.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime

from agent.layout import Layout
from histofed.audit import verify
from histofed.backup import snapshot, swap
from histofed.base import durable
from histofed.base.clock import Clock
from histofed.base.errors import AlreadyThere, BadData, NotEnrolled
from histofed.base.ids import SiteId, site_id
from histofed.base.owner import refuse_root
from histofed.base.proxy import ENVIRONMENT, ProxySetting
from histofed.pki.credentials import Credentials
from histofed.pki.identity import Role
from histofed.pki.tokens import JoinLine
from histofed.transport.enrolment import enrol


@dataclass(frozen=True)
class Enrolled:
    """What enrolment brought."""

    identity: str
    valid_until: datetime
    aggregator: str


def enroll(
    text: str, layout: Layout, aggregator: str | None, clock: Clock, *, again: bool, proxy: ProxySetting = ENVIRONMENT
) -> Enrolled:
    """Trade the join line for an identity and store it.

    Raises, before the line is spent: `ConfigError` for root in another user's folder; `AlreadyThere` when this agent has a
    valid identity (unless `again`), beside a backup or a restore, and where a restore was interrupted; `BadData` for a line
    that is none. After that `BadData` for a line of another site than the state here, `NotAuthorised` for another CA or a
    used or expired token, `AggregatorUnavailable` and `CannotWriteState`.
    """
    refuse_root(layout.root, "histofed-agent enroll")
    line = JoinLine.parse(text.strip())
    # what a restore brings would meet the new identity in its place
    with snapshot.alone(durable.make_directory(layout.root), "histofed-agent enroll"):
        swap.refuse_interrupted(layout.root)
        if not again:
            _refuse_enrolled(layout, clock)
        durable.make_directory(layout.identity.parent)
        joined = asyncio.run(enrol(line, proxy=proxy))
        credentials, address = joined.credentials, aggregator or joined.aggregator
        _refuse_anothers(layout, own_site(credentials))
        durable.replace(layout.aggregator, f"{address}\n".encode())
        credentials.save(layout.identity)
    return Enrolled(str(credentials.identity), credentials.not_after, address)


def own_site(credentials: Credentials) -> SiteId:
    """The site that an identity speaks for. Raises `NotEnrolled` for another role's identity."""
    if credentials.identity.role is not Role.SITE:
        raise NotEnrolled(f"the identity here is {credentials.identity}, not a site's: enrol with a site's join line")
    return site_id(credentials.identity.name)


def _refuse_enrolled(layout: Layout, clock: Clock) -> None:
    """Raises `AlreadyThere` when this agent has a valid identity."""
    if layout.identity.exists() and (held := Credentials.load(layout.identity)).not_after > clock.now():
        raise AlreadyThere(
            f"this agent is {held.identity} until {held.not_after:%Y-%m-%d %H:%M} UTC; to replace that, add --again"
        )


def _refuse_anothers(layout: Layout, site: SiteId) -> None:
    """What a site kept stays its own: its journal, private tensors, what it knows of the aggregator. Raises `BadData`.

    Only the answer says whom a join line is for, so the line is spent by then.
    """
    newest = verify.newest(layout.journal) if layout.journal.is_dir() else None
    if newest is None or newest.where == f"agent-{site}":
        return
    holder = newest.where.removeprefix("agent-")
    raise BadData(
        f"the join line was for {site}, and {layout.root} holds the journal and the private tensors of {holder}: ask for "
        f"another line, for {holder}, or, for {site}, name another --state-dir; the line given is used up"
    )
