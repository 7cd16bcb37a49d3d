"""The daemon's side of epochs and backups: what it tells sites of its history, and what it hears of theirs.

A site that has seen more than this state knows proves that the state directory was put back by hand, or that its journal
lost its end: the site is refused in words, and so is an operator told (condition `history` of `histofed status`). Nothing
is dropped on either side meanwhile, nor taken: a site takes part in rounds, and is heard about its tasks, only after its
hello to this process was welcome. A restore begins the next epoch, and sites follow. What a site claims concerns that site
alone: one that lies about epochs shuts out nobody else. Its claim is journalled, also after the restore, so that an auditor
reads what the sites had seen; each once, and `CLAIMS_LIMIT` of a site in one life of the daemon.

Backups are made by another process beside this one (`aggregator/backup.py`), which may not write the journal: it leaves a
row, and the daemon journals it. Rows also say which private tensors sites should keep (`backed_up`), from before the file is
written: those of the last complete backup too, until the new one is. The row of a backup that was killed before its
file was written is dropped (`aggregator/claims.py`).
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from aggregator import schema
from aggregator.database import Database
from histofed.audit.history import CLAIMED, EPOCH_KEY, History, believable, claimed, repair
from histofed.audit.journal import Journal
from histofed.audit.record import SYSTEM, Who
from histofed.audit.verify import Head
from histofed.backup import snapshot
from histofed.base.clock import Clock, iso
from histofed.base.errors import AlreadyThere, BadData, NotFound, TryLater, WentBack
from histofed.base.health import Health
from histofed.base.ids import ExperimentId, RoundKey, SiteId
from histofed.telemetry.logs import fields

log = logging.getLogger(__name__)

CLAIMS_LIMIT: Final = 8
"""Different heads of one site that are journalled before the next start: an honest site claims one, a liar fills no disk."""

_AGE: Final[sa.ColumnElement[int]] = sa.literal_column("backups.rowid", sa.Integer)
"""Grows from each claim to the next, and to the row that a restore adds last; `made_at` is what the clock said."""


def refuse_emptied(head: Head, sites: int, experiments: int, epoch: int) -> None:
    """A journal that ends at `head`, of a state that knows so much. Raises `WentBack` where all its records are gone."""
    if not head.sequence and (sites or experiments):
        raise WentBack(
            f"the audit journal holds no record, but this state knows {sites} sites and {experiments} experiments: its "
            f"files were removed or emptied; put them back, or, {repair(epoch, epoch)}"
        )


@dataclass(frozen=True)
class BackedUp:
    """The newest committed round of an experiment in a backup: 0 where it holds none, None where it does not hold the
    experiment."""

    newest: int | None
    """In the newest backup, also from before it is written."""
    complete: int | None
    """In the newest one that is complete, while another is being written, which may fail; None at other times."""


class Chronicle:
    """The epoch that this state is in, its journal's head, and its backups."""

    def __init__(self, database: Database, journal: Journal, clock: Clock, health: Health) -> None:
        self._database = database
        self._journal = journal
        self._clock = clock
        self._health = health
        self._ahead: dict[SiteId, History] = {}
        self._claims: dict[SiteId, set[History]] = {}
        self._met: set[SiteId] = set()
        """Sites whose hello was welcome since the start: their last word of us is in this history."""
        with database.reading() as connection:
            self.epoch: int = connection.execute(sa.select(sa.func.max(schema.epochs.c.number))).scalar_one() or 1

    def check_begun(self) -> None:
        """A state that was used has a journal. Raises `WentBack` where all its records are gone.

        Without a record there is no head that a site could miss one behind: the first thing to be written would be the start
        of a chain that proves.
        """
        known = [sa.select(sa.func.count()).select_from(table) for table in (schema.sites, schema.experiments)]
        with self._database.reading() as connection:
            sites, experiments = (connection.execute(query).scalar_one() for query in known)
        refuse_emptied(self._journal.head, sites, experiments, self.epoch)

    def now(self) -> History:
        """What sites are told."""
        return History(self.epoch, self._journal.head)

    def meet(self, site: SiteId, seen: History | None, who: Who = SYSTEM) -> None:
        """A site says hello and what it has seen; `welcome` it when nothing else is against it.

        Raises `WentBack` when that is not in this history. What it saw of an epoch before this one may be lost and shuts it
        out no more, but is journalled all the same. Raises `CannotWriteState` where it cannot be, and `BadData` for an epoch
        that nobody can have seen.
        """
        self._met.discard(site)
        if seen is not None and not believable(seen.epoch, self.epoch):
            log.error(
                "a site claims what nobody can have seen", extra=fields(site=site, seen=str(seen), own=str(self.now()))
            )
            raise BadData(
                f"site {site} says that it saw epoch {seen.epoch} of this aggregator, which is in epoch {self.epoch}, and "
                "no restore leads so far; look at that site"
            )
        held = seen is None or self._holds(seen)
        if seen is not None and not held:
            self._journal_claim(site, seen, who)
        if seen is not None and not held and seen.epoch >= self.epoch:
            self._ahead[site] = seen
            self._tell()
            log.error("this state is not what a site has seen", extra=fields(site=site, seen=str(seen), own=str(self.now())))
            raise WentBack(
                f"this aggregator's history ({self.now()}) does not contain what site {site} has seen of it ({seen}): its "
                "state directory was put back from a copy without `histofed-aggregator restore`, or restored twice from one "
                f"backup, or records were removed from its journal; {repair(self.epoch, seen.epoch)}"
            )
        if self._ahead.pop(site, None) is not None:
            self._tell()

    def welcome(self, site: SiteId) -> None:
        """The site's hello is answered: from here on it takes part."""
        self._met.add(site)

    def check_met(self, site: SiteId) -> None:
        """The site has said hello to this process, and was welcome. Raises `TryLater`: its agent says it by itself."""
        if site not in self._met:
            raise TryLater(
                f"this aggregator has not heard yet what site {site} has seen of its history; the agent says it with its "
                "next hello and calls again"
            )

    def check(self, site: SiteId, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """A call about a task was made in this epoch, by a site that was met. Raises `TryLater`: it is to say hello.

        A call that names no epoch is let through: what it asks for is checked against the rounds all the same.
        """
        self.check_met(site)
        told = next((value for key, value in metadata if key == EPOCH_KEY), None)
        if told is None or str(told) == str(self.epoch):
            return
        raise TryLater(
            f"the aggregator was restored from a backup: it is in epoch {self.epoch}, the call is of epoch "
            f"{str(told)[:12]}; say hello again, tasks that are still wanted are offered again"
        )

    @contextlib.contextmanager
    def forgotten(self, key: RoundKey) -> Iterator[None]:
        """A round that is not known here may be one that a restore lost: then `NotFound` says so."""
        try:
            yield
        except NotFound as error:
            if self.epoch == 1:
                raise
            raise NotFound(
                f"round {key} is not known here: this aggregator was restored from a backup that is older than the round "
                f"(epoch {self.epoch}); what was made for it is to be cleared away"
            ) from error

    def backed_up(self, experiment: ExperimentId) -> BackedUp:
        """What the newest backups hold of the experiment."""
        table = schema.backups
        newest = sa.select(table).order_by(_AGE.desc()).limit(1)
        with self._database.reading() as connection:
            last = connection.execute(newest).first()
            unfinished = last is not None and last.digest is None
            before = connection.execute(newest.where(table.c.digest.is_not(None))).first() if unfinished else None
        return BackedUp(_round_in(last, experiment), _round_in(before, experiment))

    def note_backups(self) -> None:
        """Journal the backups that were made beside this process, and drop the rows of those that were killed.

        Raises `CannotWriteState`; a later call notes them.
        """
        self._drop_claims()
        table = schema.backups
        query = sa.select(table).where(table.c.digest.is_not(None), table.c.noted_at.is_(None)).order_by(_AGE)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            self._journal.append("backup.made", subject={"backup": row.digest, "made_at": row.made_at})
            with self._database.writing() as connection:
                connection.execute(sa.update(table).where(table.c.id == row.id).values(noted_at=iso(self._clock.now())))
            log.info("a backup was made", extra=fields(made_at=row.made_at, sha256=row.digest))

    def _drop_claims(self) -> None:
        """Forget backups that nobody makes any more and that have no file."""
        table = schema.backups
        unfinished = (table.c.digest.is_(None), table.c.target.is_(None))
        with self._database.reading() as connection:
            if connection.execute(sa.select(table.c.id).where(*unfinished)).first() is None:
                return
        with contextlib.suppress(AlreadyThere), snapshot.alone(self._database.folder):
            with self._database.writing() as connection:
                connection.execute(sa.delete(table).where(*unfinished))
            log.warning("a backup was killed before it was complete; what sites keep for it is forgotten")

    def _holds(self, seen: History) -> bool:
        """Whether the site's last word of us is in our past."""
        if seen.epoch > self.epoch:
            return False
        try:
            return self._journal.contains(seen.head)
        except OSError as error:
            raise TryLater(f"the audit journal cannot be read ({error.strerror}); its disk may be failing") from error

    def _journal_claim(self, site: SiteId, seen: History, who: Who) -> None:
        """Write down what the site claims, unless it is written already or the site has claimed too much."""
        told = self._claims.setdefault(site, set())
        if seen in told or len(told) >= CLAIMS_LIMIT:
            return
        self._journal.append(
            CLAIMED,
            who=who,
            subject=claimed(site, seen),
            outcome="refused" if seen.epoch >= self.epoch else "success",
            reason="the record that the site was told last is not in this journal",
        )
        told.add(seen)

    def _tell(self) -> None:
        """Say in `status` which sites have seen more."""
        if not self._ahead:
            self._health.set("history", True, "every site's last word of this aggregator is in its journal")
            return
        epoch = max(seen.epoch for seen in self._ahead.values())
        self._health.set(
            "history",
            False,
            f"{', '.join(sorted(self._ahead))} saw a history that this state does not hold: it was put back from a copy "
            f"without `restore`, or records were removed from its journal; {repair(self.epoch, epoch)}",
        )


def _round_in(backup: sa.Row[Any] | None, experiment: ExperimentId) -> int | None:
    found = None if backup is None else json.loads(backup.rounds).get(experiment)
    return None if found is None else int(found)
