"""The database: transactions, recovery, migrations, and what a full disk or a newer release does."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from aggregator import events, schema
from aggregator.database import Database
from aggregator.members import Members
from aggregator.rounds import Round, plan, step
from aggregator.rows import ModelRow
from aggregator.store import Store
from histofed.base.clock import FakeClock
from histofed.base.errors import AlreadyThere, CannotWriteState, NotFound, VersionMismatch
from histofed.base.ids import Digest, ExperimentId, RoundKey, SiteId, sha256
from histofed.pki.signing import Envelope
from histofed.statements import MODEL_TYPE, UPDATE_TYPE, File, ModelStatement, encode

DEMO = ExperimentId("demo")
A, B = SiteId("a"), SiteId("b")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "state.db")
    yield database
    database.close()


@pytest.fixture
def store(database: Database, clock: FakeClock) -> Store:
    return Store(database, clock)


@pytest.fixture
def members(database: Database, clock: FakeClock) -> Members:
    return Members(database, clock)


def model(clock: FakeClock, number: int = 0, shared: str = "5") -> ModelRow:
    statement = ModelStatement(
        federation="test",
        experiment="demo",
        experiment_sha256="1" * 64,
        recipe="mean",
        round=number,
        base="",
        parts={"shared": File(shared * 64, 10), "server": File("6" * 64, 20)},
        release="server",
        strategy="fedavg",
        contributions=[],
    )
    payload = encode(statement)
    return ModelRow(sha256(payload), DEMO, number, "candidate", Envelope(MODEL_TYPE, payload, b"s", b"c"), clock.now())


def planned(store: Store, number: int = 1) -> Round:
    state = plan(RoundKey(DEMO, number), Digest("b" * 64), (A, B), (A, B), 1, 3, 60)
    store.add_round(state)
    return state


def advance(store: Store, state: Round, event: events.Event, **extra: Envelope | ModelRow) -> Round:
    after, _ = step(state, event)
    store.save_round(state, after, event, **extra)  # type: ignore[arg-type]  # one of two optional arguments
    return after


def committed(store: Store, clock: FakeClock, number: int, *sites: SiteId) -> Round:
    """A round with these sites' updates, the others expired."""
    state = advance(store, planned(store, number), events.Opened(clock.now()))
    for site in sites:
        manifest = sha256(f"{number} {site}".encode())
        state = advance(store, state, events.Accepted(site, 1))
        envelope = Envelope(UPDATE_TYPE, b"p", b"s", b"c")
        state = advance(store, state, events.Received(site, 1, manifest, Digest("e" * 64), 10), update=envelope)
        assert store.update(manifest) == envelope
        state = advance(store, state, events.Admitted(site))
    if len(sites) < 2:
        state = advance(store, state, events.DeadlinePassed(clock.now() + timedelta(days=1)))
    made = model(clock, number)
    return advance(store, state, events.Aggregated(made.digest, clock.now()), model=made)


def submit(store: Store) -> None:
    store.check_name_is_free(DEMO)
    store.add_experiment(DEMO, "toml", Digest("1" * 64), "spiffe://test/operator/admin")


def test_a_round_is_read_back_as_it_was_saved(store: Store, clock: FakeClock) -> None:
    submit(store)
    state = committed(store, clock, 1, A, B)
    assert store.round(state.key) == state
    assert store.rounds() == store.rounds("demo") == store.rounds("demo", last=5) == (state,)
    assert store.rounds(only_open=True) == ()


def test_recovery_reads_open_rounds_only(store: Store, clock: FakeClock) -> None:
    submit(store)
    committed(store, clock, 1, A)
    state = advance(store, planned(store, 2), events.Opened(clock.now()))
    assert store.rounds(only_open=True) == (state,)
    assert [each.key.number for each in store.rounds("demo", last=1)] == [2]


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_pages_of_rounds_are_all_rounds_in_their_order(store: Store, clock: FakeClock, most: int) -> None:
    for name in ("late", "early"):  # in the order in which they were submitted
        store.add_experiment(ExperimentId(name), "", Digest("1" * 64), "op")
        clock.advance(1)
        for number in (2, 1, 3):
            store.add_round(plan(RoundKey(ExperimentId(name), number), Digest("2" * 64), (A, B), (A, B), 2, 3, 60))
    store.set_round_metrics(RoundKey(ExperimentId("early"), 2), {"loss": 0.5})
    for experiment in ("", "early"):
        found: list[tuple[Round, Mapping[str, float]]] = []
        after = None
        while page := store.page_of_rounds(experiment, after, most):
            found += page
            after = page[-1][0].key
        assert tuple(state for state, _ in found) == store.rounds(experiment)
        assert [metrics for state, metrics in found if metrics] == [{"loss": 0.5}]


def test_what_was_saved_survives_the_process(database: Database, store: Store, clock: FakeClock, tmp_path: Path) -> None:
    submit(store)
    state = committed(store, clock, 1, A, B)
    database.close()
    again = Database(tmp_path / "state.db")
    assert Store(again, clock).rounds() == (state,)
    again.close()


def test_private_tensors_advance_to_the_newest_committed_round_with_the_sites_update(store: Store, clock: FakeClock) -> None:
    submit(store)
    assert store.settled_round(DEMO, A) == 0
    committed(store, clock, 1, A, B)
    committed(store, clock, 2, B)
    advance(store, planned(store, 3), events.Opened(clock.now()))
    assert (store.settled_round(DEMO, A), store.settled_round(DEMO, B)) == (1, 2)


def test_a_token_is_used_once_before_it_expires(members: Members, clock: FakeClock) -> None:
    members.create_token("hmac", A, clock.now() + timedelta(minutes=30))
    assert members.token_site("hmac") == A
    assert members.token_site("other") is None
    members.enrol("hmac", A, "spiffe://test/site/a", "01", clock.now() + timedelta(days=7))
    assert members.token_site("hmac") is None
    assert members.tokens_valid_until() is None
    with pytest.raises(AlreadyThere, match="used already"):
        members.enrol("hmac", A, "spiffe://test/site/a", "02", clock.now())


def test_a_token_expires(members: Members, clock: FakeClock) -> None:
    members.create_token("hmac", A, clock.now() + timedelta(minutes=30))
    clock.advance(1800)
    assert (members.token_site("hmac"), members.tokens_valid_until()) == (None, None)


def test_sites_show_their_newest_certificate_and_what_they_gave(members: Members, store: Store, clock: FakeClock) -> None:
    members.create_token("hmac", A, clock.now() + timedelta(minutes=30))
    members.enrol("hmac", A, "spiffe://test/site/a", "01", clock.now() + timedelta(days=7))
    members.add_certificate("spiffe://test/site/a", "02", clock.now() + timedelta(days=9))
    members.add_certificate("spiffe://test/site/aa", "03", clock.now() + timedelta(days=20))
    submit(store)
    committed(store, clock, 1, A)
    (site,) = members.sites()
    assert (site.certificate_expires_at, site.updates_admitted, site.left_at) == (
        clock.now() + timedelta(days=9),
        1,
        clock.now(),
    )
    members.site_seen(A, "0.1.0", "instance")
    assert members.sites()[0].left_at is None
    with pytest.raises(NotFound, match="site b is not enrolled"):
        members.site_seen(B, "0.1.0", "instance")


def test_an_experiment_name_is_taken_for_ever_and_an_ended_one_stays_ended(store: Store) -> None:
    submit(store)
    with pytest.raises(AlreadyThere, match="exists already"):
        store.check_name_is_free(DEMO)
    store.set_experiment(DEMO, "failed", "why")
    store.set_experiment(DEMO, "running")
    assert (store.experiment("demo").state, store.experiment("demo").reason) == ("failed", "why")


def test_a_site_hears_which_of_its_experiments_have_ended(store: Store) -> None:
    submit(store)
    assert store.ended_experiments(["demo", "unknown"]) == ()
    store.set_experiment(DEMO, "cancelled")
    assert store.ended_experiments(["demo", "unknown"]) == ("demo",)
    assert store.ended_experiments([]) == ()


def test_models_are_found_by_digest_beginning_or_experiment(store: Store, clock: FakeClock) -> None:
    submit(store)
    first = model(clock)
    store.add_first_model(first)
    store.add_first_model(first)
    assert store.experiment("demo").state == "running"
    clock.advance(1)
    second = committed(store, clock, 1, A).model
    assert store.model("demo").digest == second
    assert store.model(first.digest) == store.model(first.digest[:4]) == first
    assert store.part(first.digest, "shared") == File("5" * 64, 10)
    assert store.is_part(Digest("6" * 64))
    assert not store.is_part(Digest("7" * 64))
    for unknown in ("%%%%%%%%", first.digest[:3], "nothing"):
        with pytest.raises(NotFound, match="does not exist"):
            store.model(unknown)


def test_an_experiment_named_like_the_beginning_of_digests_is_found_by_its_name(store: Store, clock: FakeClock) -> None:
    submit(store)
    others = []
    for number in range(2):
        one = replace(model(clock, number), digest=Digest(f"beef{number}" + "0" * 59))
        store.add_first_model(one)
        others.append(one)
    store.add_experiment(ExperimentId("beef"), "", Digest("1" * 64), "op")
    mine = replace(model(clock, 0, shared="7"), experiment=ExperimentId("beef"))
    store.add_first_model(mine)
    assert store.model("beef").digest == mine.digest
    assert [store.model(f"beef{number}").digest for number in range(2)] == [one.digest for one in others]


def test_the_migrations_make_exactly_the_tables_of_the_schema(database: Database) -> None:
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def test_a_state_of_a_newer_release_is_refused_in_words(database: Database, tmp_path: Path) -> None:
    database.close()
    connection = sqlite3.connect(tmp_path / "state.db")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(VersionMismatch, match=r"newer histofed \(schema 9999\)"):
        Database(tmp_path / "state.db")


def test_a_full_disk_changes_nothing_and_says_so(database: Database, store: Store) -> None:
    submit(store)
    state = planned(store)
    # SQLite's own limit stands for the disk's: the same error path (SQLITE_FULL)
    with database.reading() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    sa.event.listen(database.engine, "connect", lambda raw, _record: raw.execute(f"PRAGMA max_page_count={pages}"))
    database.engine.dispose()
    with pytest.raises(CannotWriteState, match=r"database or disk is full.*nothing was acknowledged"):
        for number in range(2, 2000):
            planned(store, number)
    assert store.round(state.key) == state
