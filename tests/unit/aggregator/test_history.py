"""What the aggregator says of its history, and what it hears: sites that have seen more, calls of another epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from aggregator import schema
from aggregator.amendments import next_epoch
from aggregator.database import Database
from aggregator.history import CLAIMS_LIMIT, BackedUp, Chronicle
from histofed.audit.history import EPOCH_KEY, FARTHEST, History
from histofed.audit.journal import Journal
from histofed.audit.record import Who
from histofed.audit.verify import Head, records, verify
from histofed.backup import snapshot
from histofed.base.clock import FakeClock
from histofed.base.errors import BadData, NotFound, TryLater, WentBack
from histofed.base.health import Health
from histofed.base.ids import ExperimentId, RoundKey, SiteId, sha256

NORTH, SOUTH = SiteId("north"), SiteId("south")


@dataclass
class Desk:
    folder: Path
    journal: Journal
    database: Database
    health: Health

    def chronicle(self) -> Chronicle:
        return Chronicle(self.database, self.journal, FakeClock(), self.health)

    def condition(self) -> tuple[bool, str]:
        return next((each.ok, each.words) for each in self.health.conditions() if each.name == "history")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    clock = FakeClock()
    journal = Journal(tmp_path / "journal", clock, "test")
    for number in range(5):
        journal.append("test.done", subject={"number": number})
    database = Database(tmp_path / "state.db")
    yield Desk(tmp_path, journal, database, Health(clock, required=()))
    database.close()
    journal.close()


def begin_epoch(desk: Desk, number: int) -> None:
    with desk.database.writing() as connection:
        connection.execute(sa.insert(schema.epochs).values(number=number, began_at="2026"))


def test_a_state_that_was_never_restored_is_in_epoch_one(desk: Desk) -> None:
    assert desk.chronicle().now() == History(1, desk.journal.head)
    begin_epoch(desk, 4)
    assert desk.chronicle().epoch == 4


def test_a_site_whose_last_word_is_in_the_journal_is_welcome(desk: Desk) -> None:
    chronicle, seen = desk.chronicle(), desk.chronicle().now()
    desk.journal.append("test.done", subject={})
    chronicle.meet(NORTH, seen)
    chronicle.meet(SOUTH, None)


@pytest.mark.parametrize(("epoch", "records"), [(1, 6), (1, 3), (2, 1), (7, 0)])
def test_a_site_that_has_seen_more_is_refused_and_told_of(desk: Desk, epoch: int, records: int) -> None:
    chronicle = desk.chronicle()
    with pytest.raises(WentBack, match="put back from a copy") as refused:
        chronicle.meet(NORTH, History(epoch, Head(records, "a" * 64)))
    assert ("--epoch" in str(refused.value)) == (epoch > 1)
    ok, words = desk.condition()
    assert not ok
    assert "north" in words
    # others are not shut out by what one says, and one that was repaired is forgotten
    chronicle.meet(SOUTH, chronicle.now())
    assert not desk.condition()[0]
    chronicle.meet(NORTH, chronicle.now())
    assert desk.condition()[0]


@pytest.mark.parametrize("own", [1, 7, 20261122])
def test_no_site_leads_a_restore_to_the_end_of_the_numbers(desk: Desk, own: int, caplog: pytest.LogCaptureFixture) -> None:
    """An operator who did what the sentence says would have no epoch left for the next restore."""
    begin_epoch(desk, own)
    chronicle = desk.chronicle()
    chronicle.welcome(NORTH)
    for epoch in (own + FARTHEST, 2**31 - 1):
        with pytest.raises(BadData, match="no restore leads so far; look at that site") as refused:
            chronicle.meet(NORTH, History(epoch, Head(1, "a" * 64)))
        assert "--epoch" not in str(refused.value)
        assert "a site claims what nobody can have seen" in caplog.text
    assert (claims(desk), desk.health.conditions()) == ([], ())
    with pytest.raises(TryLater):
        chronicle.check_met(NORTH)
    with pytest.raises(WentBack, match=f"--epoch {own + FARTHEST}`"):
        chronicle.meet(NORTH, History(own + FARTHEST - 1, Head(1, "a" * 64)))
    assert next_epoch(own, own + FARTHEST) == own + FARTHEST, "what it says can be done"


def test_after_a_restore_an_older_epoch_is_welcome_whatever_it_saw(desk: Desk) -> None:
    begin_epoch(desk, 2)
    desk.chronicle().meet(NORTH, History(1, Head(9999, "a" * 64)))


def claims(desk: Desk) -> list[tuple[object, ...]]:
    """The claims in the journal: site, epoch, head."""
    found = verify(desk.folder / "journal").claims
    return [tuple(record.subject[key] for key in ("site", "epoch", "head")) for record in found]


def test_words_and_journal_leave_open_whether_records_were_removed(desk: Desk) -> None:
    """A cut at the end of the journal and a copy put back look alike from here: neither is to be hidden by the advice."""
    chronicle, head = desk.chronicle(), "a" * 64
    who = Who("spiffe://test/site/north", "1f")
    for _ in range(3):
        with pytest.raises(WentBack, match="or records were removed from its journal") as refused:
            chronicle.meet(NORTH, History(1, Head(34, head)), who)
        assert "have the journal looked at" in str(refused.value)
    words = desk.condition()[1]
    assert "records were removed" in words
    assert words.index("looked at") < words.index("restore --in-place")
    assert claims(desk) == [("north", 1, f"34:{head}")], "once, however often it is said"
    (record,) = verify(desk.folder / "journal").claims
    assert (record.who, record.outcome) == (who, "refused")


def test_a_site_that_claims_ever_new_heads_fills_no_disk(desk: Desk) -> None:
    chronicle = desk.chronicle()
    for number in range(CLAIMS_LIMIT * 3):
        with pytest.raises(WentBack):
            chronicle.meet(NORTH, History(1, Head(100 + number, "a" * 64)))
    with pytest.raises(WentBack):
        chronicle.meet(SOUTH, History(1, Head(9, "b" * 64)))
    assert len(claims(desk)) == CLAIMS_LIMIT + 1
    assert claims(desk)[-1][0] == "south", "one that lies silences nobody else"


def test_what_was_lost_before_a_restore_is_journalled_when_a_site_comes_back(desk: Desk) -> None:
    known = desk.chronicle().now()
    begin_epoch(desk, 2)
    chronicle = desk.chronicle()
    chronicle.meet(SOUTH, known)
    assert claims(desk) == [], "what it saw is still there"
    chronicle.meet(NORTH, History(1, Head(34, "a" * 64)))
    assert claims(desk) == [("north", 1, f"34:{'a' * 64}")]
    assert desk.journal.head.sequence == 6


def test_a_call_of_another_epoch_has_to_say_hello_first(desk: Desk) -> None:
    begin_epoch(desk, 2)
    chronicle = desk.chronicle()
    chronicle.welcome(NORTH)
    chronicle.check(NORTH, [(EPOCH_KEY, "2"), ("traceparent", "x")])
    chronicle.check(NORTH, [("traceparent", "x")])
    for told in ("1", "3", "two", ""):
        with pytest.raises(TryLater, match="say hello again"):
            chronicle.check(NORTH, [(EPOCH_KEY, told)])


def test_nothing_is_heard_of_a_sites_tasks_before_it_was_met(desk: Desk) -> None:
    """The epoch of a state that was put back by hand is the right one; only a hello shows what is missing."""
    chronicle = desk.chronicle()
    call = [(EPOCH_KEY, "1")]
    with pytest.raises(TryLater, match="what site north has seen"):
        chronicle.check(NORTH, call)
    with pytest.raises(WentBack):
        chronicle.meet(NORTH, History(1, Head(9, "a" * 64)))
    with pytest.raises(TryLater):
        chronicle.check(NORTH, call)
    chronicle.meet(NORTH, chronicle.now())
    with pytest.raises(TryLater):
        chronicle.check(NORTH, call)
    chronicle.welcome(NORTH)
    chronicle.check(NORTH, call)
    with pytest.raises(TryLater):
        chronicle.check(SOUTH, call)
    with pytest.raises(WentBack):
        chronicle.meet(NORTH, History(1, Head(9, "a" * 64)))
    with pytest.raises(TryLater):
        chronicle.check(NORTH, call)


def test_a_round_that_a_restore_lost_is_explained(desk: Desk) -> None:
    key = RoundKey(ExperimentId("demo"), 7)
    with pytest.raises(NotFound, match=r"^unknown$"), desk.chronicle().forgotten(key):
        raise NotFound("unknown")
    begin_epoch(desk, 2)
    with pytest.raises(NotFound, match="restored from a backup that is older"), desk.chronicle().forgotten(key):
        raise NotFound("unknown")


def add_backups(desk: Desk, *digests: str | None, years: Sequence[int] = range(2021, 2030)) -> None:
    """One a year, in `years` by the clock; the n-th has the experiment's round n."""
    with desk.database.writing() as connection:
        for number, (digest, year) in enumerate(zip(digests, years, strict=False), 1):
            # random names, as they are in truth: no order
            row = {"id": sha256(b"%d" % number), "made_at": str(year), "rounds": f'{{"demo": {number}}}', "digest": digest}
            connection.execute(sa.insert(schema.backups).values(row))


def test_backups_are_journalled_once_and_the_newest_says_what_sites_keep(desk: Desk) -> None:
    chronicle = desk.chronicle()
    assert chronicle.backed_up(ExperimentId("demo")) == BackedUp(None, None)
    add_backups(desk, "d" * 64, "e" * 64)
    assert chronicle.backed_up(ExperimentId("demo")) == BackedUp(2, None)
    assert chronicle.backed_up(ExperimentId("other")) == BackedUp(None, None)
    chronicle.note_backups()
    chronicle.note_backups()
    made = [record for record in records(desk.folder / "journal") if record.action == "backup.made"]
    assert [record.subject["backup"] for record in made] == ["d" * 64, "e" * 64]


@pytest.mark.parametrize("digests", [("c" * 64, "d" * 64, "e" * 64), ("c" * 64, "d" * 64, None)])
def test_the_newest_backup_is_the_last_one_whatever_the_clock_said(desk: Desk, digests: tuple[str | None, ...]) -> None:
    """It was ahead at the first and is right again: sites would drop what the later ones need until it is reached."""
    chronicle = desk.chronicle()
    add_backups(desk, *digests, years=(2029, 2026, 2025))
    complete = None if digests[-1] else 2
    assert chronicle.backed_up(ExperimentId("demo")) == BackedUp(newest=3, complete=complete)
    chronicle.note_backups()
    made = [record.subject["backup"] for record in records(desk.folder / "journal") if record.action == "backup.made"]
    assert made == [digest for digest in digests if digest], "in the order in which they were made"


def test_a_backup_that_was_killed_gives_sites_back_what_they_keep_for_the_one_before(desk: Desk) -> None:
    chronicle = desk.chronicle()
    add_backups(desk, "c" * 64, "d" * 64, None)
    with snapshot.room(desk.folder):
        chronicle.note_backups()
        assert chronicle.backed_up(ExperimentId("demo")) == BackedUp(newest=3, complete=2), "it is being made"
        assert chronicle.backed_up(ExperimentId("other")) == BackedUp(None, None)
    chronicle.note_backups()
    assert chronicle.backed_up(ExperimentId("demo")) == BackedUp(2, None)
    made = [record for record in records(desk.folder / "journal") if record.action == "backup.made"]
    assert [record.subject["backup"] for record in made] == ["c" * 64, "d" * 64], "one that is not complete is none"


def test_a_state_that_was_used_does_not_start_with_an_empty_journal(desk: Desk, tmp_path: Path) -> None:
    desk.chronicle().check_begun()
    emptied = Journal(tmp_path / "another", FakeClock(), "test")
    chronicle = Chronicle(desk.database, emptied, FakeClock(), desk.health)
    chronicle.check_begun()  # a new state, in which nothing has happened
    with desk.database.writing() as connection:
        connection.execute(sa.insert(schema.sites).values(name=NORTH, enrolled_at="2026"))
    desk.chronicle().check_begun()
    with pytest.raises(WentBack, match=r"holds no record, but this state knows 1 sites .*restore --in-place`$"):
        chronicle.check_begun()
    emptied.append("state.restored", subject={})
    chronicle.check_begun()
    emptied.close()
