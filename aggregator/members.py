"""Who belongs to the federation: sites, their certificates, and the tokens with which they join."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from aggregator import schema
from aggregator.database import Database
from aggregator.rows import moment
from aggregator.tasks import TaskState
from histofed.base.clock import Clock, from_iso, iso
from histofed.base.errors import AlreadyThere, NotFound
from histofed.base.ids import SiteId


@dataclass(frozen=True)
class SiteRow:
    """A site that enrolled."""

    name: SiteId
    enrolled_at: datetime
    """The last time."""
    last_seen_at: datetime | None
    left_at: datetime | None
    version: str
    certificate_expires_at: datetime | None
    updates_admitted: int


class Members:
    """The tables `sites`, `certificates` and `tokens`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._revoked = self._revoked_serials()
        """In memory, for every call and every message of a stream asks."""

    def create_token(self, digest: str, site: SiteId, expires_at: datetime) -> None:
        """Remember a token's HMAC."""
        row = {"digest": digest, "site": site, "created_at": iso(self._clock.now()), "expires_at": iso(expires_at)}
        with self._database.writing() as connection:
            connection.execute(sa.insert(schema.tokens).values(row))

    def token_site(self, digest: str) -> SiteId | None:
        """The site that a valid token stands for; None when it is unknown, used or expired."""
        query = sa.select(schema.tokens.c.site).where(
            schema.tokens.c.digest == digest,
            schema.tokens.c.used_at.is_(None),
            schema.tokens.c.expires_at > iso(self._clock.now()),
        )
        with self._database.reading() as connection:
            site = connection.execute(query).scalar_one_or_none()
        return None if site is None else SiteId(site)

    def tokens_valid_until(self) -> datetime | None:
        """When the last usable token expires; None when there is none."""
        query = sa.select(sa.func.max(schema.tokens.c.expires_at)).where(
            schema.tokens.c.used_at.is_(None), schema.tokens.c.expires_at > iso(self._clock.now())
        )
        with self._database.reading() as connection:
            latest = connection.execute(query).scalar_one()
        return None if latest is None else from_iso(latest)

    def enrol(self, token: str, site: SiteId, identity: str, serial: str, expires_at: datetime) -> None:
        """Use up a token, revoke all certificates of `identity` and remember the one that it became, in one transaction.

        So whoever has a copy of an older key is out. The site's other tokens are used up too: one for a site that is here
        was made after it enrolled. Raises `AlreadyThere` when the token was used in between.
        """
        now = iso(self._clock.now())
        with self._database.writing() as connection:
            used = connection.execute(
                sa.update(schema.tokens)
                .where(schema.tokens.c.digest == token, schema.tokens.c.used_at.is_(None))
                .values(used_at=now)
            )
            if used.rowcount != 1:
                raise AlreadyThere("the join token was used already; ask the operator for a new one")
            others = (schema.tokens.c.site == site, schema.tokens.c.used_at.is_(None))
            connection.execute(sa.update(schema.tokens).where(*others).values(used_at=now))
            certificates, sites = schema.certificates, schema.sites
            connection.execute(
                sa.update(certificates)
                # those that have ended too: a clock that is ahead may be set back
                .where(certificates.c.identity == identity, certificates.c.revoked_at.is_(None))
                .values(revoked_at=now)
            )
            _insert_certificate(connection, identity, serial, now, iso(expires_at))
            known = connection.execute(sa.update(sites).where(sites.c.name == site).values(enrolled_at=now))
            if not known.rowcount:
                # absent until its agent calls for the first time
                connection.execute(sa.insert(sites).values(name=site, enrolled_at=now, left_at=now))
        self._revoked = self._revoked_serials()

    def enrolled_at(self, site: SiteId) -> datetime | None:
        """When the site enrolled, the last time; None for one that never did."""
        query = sa.select(schema.sites.c.enrolled_at).where(schema.sites.c.name == site)
        with self._database.reading() as connection:
            return moment(connection.execute(query).scalar_one_or_none())

    def add_certificate(self, identity: str, serial: str, expires_at: datetime) -> None:
        """Remember a certificate that was issued or renewed."""
        with self._database.writing() as connection:
            _insert_certificate(connection, identity, serial, iso(self._clock.now()), iso(expires_at))

    def issued_at(self, identity: str, nth: int) -> datetime | None:
        """When the `nth` newest certificate of the identity was issued, of those not revoked; None where there are fewer."""
        table = schema.certificates.c
        query = (
            # of a clock that was ahead nothing is learnt
            sa.select(table.issued_at)
            .where(table.identity == identity, table.revoked_at.is_(None), table.issued_at <= iso(self._clock.now()))
            .order_by(table.issued_at.desc())
            .offset(nth - 1)
            .limit(1)
        )
        with self._database.reading() as connection:
            return moment(connection.execute(query).scalar_one_or_none())

    def revoked(self, serial: str) -> bool:
        """Whether the certificate must be refused although it is valid."""
        return serial in self._revoked

    def valid(self, identity: str) -> int:
        """How many certificates of the identity are neither revoked nor over: those that enrolling again would revoke."""
        table = schema.certificates.c
        query = sa.select(sa.func.count()).where(
            table.identity == identity, table.revoked_at.is_(None), table.expires_at > iso(self._clock.now())
        )
        with self._database.reading() as connection:
            return int(connection.execute(query).scalar_one())

    def outlived(self, site: SiteId, serial: str, issued_at: datetime) -> bool:
        """Whether a certificate that is not written down here is older than the site's newest enrolment.

        It was issued after a backup that is the state now, so that enrolling again could not revoke it.
        """
        known = sa.select(schema.certificates.c.serial).where(schema.certificates.c.serial == serial)
        query = sa.select(schema.sites.c.enrolled_at).where(schema.sites.c.name == site, ~known.exists())
        with self._database.reading() as connection:
            enrolled_at = moment(connection.execute(query).scalar_one_or_none())
        return enrolled_at is not None and issued_at < enrolled_at

    def _revoked_serials(self) -> frozenset[str]:
        query = sa.select(schema.certificates.c.serial).where(schema.certificates.c.revoked_at.is_not(None))
        with self._database.reading() as connection:
            return frozenset(connection.execute(query).scalars())

    def site_seen(self, site: SiteId, version: str, instance: str) -> None:
        """The site's agent introduced itself: it is present from now on. Raises `NotFound` for an unknown site."""
        values = {"last_seen_at": iso(self._clock.now()), "left_at": None, "version": version, "instance": instance}
        with self._database.writing() as connection:
            changed = connection.execute(sa.update(schema.sites).where(schema.sites.c.name == site).values(values))
            if changed.rowcount != 1:
                raise NotFound(f"site {site} is not enrolled here; enrol it with a join token from this aggregator")

    def sites_stayed(self, seen: Mapping[SiteId, datetime]) -> None:
        """These sites were there at these moments, in one transaction. Raises `CannotWriteState`."""
        if not seen:
            return
        table = schema.sites
        update = sa.update(table).where(table.c.name == sa.bindparam("site")).values(last_seen_at=sa.bindparam("seen_at"))
        with self._database.writing() as connection:
            connection.execute(update, [{"site": site, "seen_at": iso(at)} for site, at in seen.items()])

    def site_left(self, site: SiteId, seen_at: datetime | None) -> None:
        """The site, there last at `seen_at` (None: not in this process's life), has been away too long to be sampled."""
        values = {"left_at": iso(self._clock.now())} | ({"last_seen_at": iso(seen_at)} if seen_at else {})
        with self._database.writing() as connection:
            connection.execute(sa.update(schema.sites).where(schema.sites.c.name == site).values(values))

    def sites(self) -> tuple[SiteRow, ...]:
        """Every site that ever enrolled, by name."""
        counts = (
            sa.select(schema.tasks.c.site, sa.func.count().label("admitted"))
            .where(schema.tasks.c.state == TaskState.ADMITTED)
            .group_by(schema.tasks.c.site)
        )
        expiries = self.certificate_expiries()
        with self._database.reading() as connection:
            admitted = {row.site: row.admitted for row in connection.execute(counts)}
            return tuple(
                SiteRow(
                    SiteId(row.name),
                    from_iso(row.enrolled_at),
                    moment(row.last_seen_at),
                    moment(row.left_at),
                    row.version,
                    expiries.get(SiteId(row.name)),
                    admitted.get(row.name, 0),
                )
                for row in connection.execute(sa.select(schema.sites).order_by(schema.sites.c.name))
            )

    def certificate_expiries(self) -> dict[SiteId, datetime]:
        """When the newest certificate of each site ends. One pass, however many sites: it is asked for all the time."""
        table = schema.certificates.c
        query = sa.select(table.identity, sa.func.max(table.expires_at).label("expiry")).group_by(table.identity)
        with self._database.reading() as connection:
            rows = connection.execute(query.where(table.identity.contains("/site/"))).all()
        return {SiteId(row.identity.rpartition("/site/")[2]): from_iso(row.expiry) for row in rows}

    def present(self) -> tuple[SiteId, ...]:
        """Sites that were not given up as absent."""
        query = sa.select(schema.sites.c.name).where(schema.sites.c.left_at.is_(None))
        with self._database.reading() as connection:
            return tuple(map(SiteId, connection.execute(query).scalars()))


def _insert_certificate(connection: sa.Connection, identity: str, serial: str, now: str, expires_at: str) -> None:
    row = {"serial": serial, "identity": identity, "issued_at": now, "expires_at": expires_at}
    connection.execute(sa.insert(schema.certificates).values(row))
