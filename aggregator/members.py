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
        """Use up a token and remember the certificate it became, in one transaction.

        Raises `AlreadyThere` when the token was used in between.
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
            _insert_certificate(connection, identity, serial, now, iso(expires_at))
            if connection.execute(sa.select(schema.sites.c.name).where(schema.sites.c.name == site)).first() is None:
                # absent until its agent calls for the first time
                connection.execute(sa.insert(schema.sites).values(name=site, enrolled_at=now, left_at=now))

    def add_certificate(self, identity: str, serial: str, expires_at: datetime) -> None:
        """Remember a certificate that was issued or renewed."""
        with self._database.writing() as connection:
            _insert_certificate(connection, identity, serial, iso(self._clock.now()), iso(expires_at))

    def issued_at(self, identity: str, nth: int) -> datetime | None:
        """When the `nth` newest certificate of the identity was issued; None where there are fewer."""
        table = schema.certificates.c
        query = (
            # of a clock that was ahead nothing is learnt
            sa.select(table.issued_at)
            .where(table.identity == identity, table.issued_at <= iso(self._clock.now()))
            .order_by(table.issued_at.desc())
            .offset(nth - 1)
            .limit(1)
        )
        with self._database.reading() as connection:
            return moment(connection.execute(query).scalar_one_or_none())

    def revoked_serials(self) -> frozenset[str]:
        """Serials that must be refused although the certificates are valid."""
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
