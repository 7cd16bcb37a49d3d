"""What operators are answered, however much there is to tell."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from aggregator import queries
from aggregator.database import Database
from aggregator.door import EnrolmentDoor
from aggregator.members import Members
from aggregator.rounds import plan
from aggregator.rows import ModelRow
from aggregator.services import convert
from aggregator.services.admin import OperatorServicer
from aggregator.store import Store
from aggregator.tasks import Task, TaskState
from histofed.audit.journal import Journal
from histofed.audit.verify import records
from histofed.base.clock import FakeClock
from histofed.base.errors import AlreadyThere, BadData, NotFound
from histofed.base.ids import Digest, RoundKey, SiteId, sha256
from histofed.pki import tokens
from histofed.transport import limits
from histofed.v1 import admin_pb2 as pb
from tests.support.calls import Call
from tests.support.centre import DEMO, Centre
from tests.support.pki import Federation

KEY = tokens.new_server_key()
MANY = 11_000
"""Models that do not fit into one message."""


class Engine:
    """As much of it as lists ask for."""

    def __init__(self, store: Store) -> None:
        self.store = store


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "state.db")
    yield opened
    opened.close()


@pytest.fixture
def store(database: Database, clock: FakeClock) -> Store:
    """One experiment is known."""
    made = Store(database, clock)
    made.add_experiment(DEMO, "", Digest("1" * 64), "admin")
    return made


@pytest.fixture
def members(database: Database, clock: FakeClock) -> Members:
    return Members(database, clock)


@pytest.fixture
def servicer(store: Store, members: Members, tmp_path: Path, clock: FakeClock) -> Iterator[OperatorServicer]:
    nobody = cast("Any", None)
    journal = Journal(tmp_path / "journal", clock, "test")
    yield OperatorServicer(
        engine=cast("Any", Engine(store)),
        experiments=nobody,
        members=members,
        scheduler=nobody,
        fleet=nobody,
        changes=nobody,
        door=EnrolmentDoor(members, KEY, AsyncMock()),
        journal=journal,
        health=nobody,
        clock=clock,
        federation="test",
        join_line=str,
    )
    journal.close()


async def test_a_join_line_for_a_site_that_has_enrolled_must_be_meant(
    servicer: OperatorServicer, members: Members, tmp_path: Path, clock: FakeClock
) -> None:
    """Whoever uses it is that site from then on, and the hospital is not."""
    north, call = SiteId("north"), cast("Any", Call(Federation().operator()))
    assert (await servicer.CreateToken(pb.CreateTokenRequest(site=north, ttl_s=60), call)).join_line
    members.create_token("first", north, clock.now() + timedelta(minutes=1))
    members.enrol("first", north, "spiffe://test/site/north", "01", clock.now() + timedelta(days=7))

    with pytest.raises(AlreadyThere, match="site north enrolled on 2026-01-01 00:00 UTC: add --again"):
        await servicer.CreateToken(pb.CreateTokenRequest(site=north, ttl_s=60), call)
    assert members.tokens_valid_until() is None
    answer = await servicer.CreateToken(pb.CreateTokenRequest(site=north, ttl_s=60, again=True), call)
    assert members.token_site(tokens.digest(answer.join_line, KEY)) == north
    assert [record.subject["again"] for record in records(tmp_path / "journal")] == [False, True]


async def test_what_a_recipe_only_carries_on_with_is_no_submission(servicer: OperatorServicer) -> None:
    """A class ramp beside projection heads: what runs with one goes on."""
    toml = """
        name = "new"
        recipe = "gan"
        rounds = 1
        config = { image_size = 32, steps = 1, discriminator.name = "cnn", objective = { name = "cgan", class_ramp = 9 } }
    """
    with pytest.raises(BadData, match="projection heads have none; remove them"):
        await servicer.SubmitExperiment(pb.SubmitExperimentRequest(toml=toml), cast("Any", Call(Federation().operator())))


async def listed(servicer: OperatorServicer, **words: Any) -> pb.ListModelsResponse:
    answer = await servicer.ListModels(pb.ListModelsRequest(**words), cast("Any", None))
    assert answer.ByteSize() < limits.MESSAGE
    return answer


async def test_more_models_than_a_message_holds(
    servicer: OperatorServicer, database: Database, clock: FakeClock, tmp_path: Path
) -> None:
    model = Centre(tmp_path / "centre").model(0)
    with database.writing() as connection:
        for number in range(MANY):
            clock.advance(number % 2)  # some are of one instant
            digest = sha256(b"%d" % number)
            queries.insert_model(connection, replace(model, digest=digest, round=number, created_at=clock.now()))
    page = await listed(servicer, experiment=DEMO, page_size=10_000)
    found = list(page.models)
    while page.next_page_token:
        page = await listed(servicer, experiment=DEMO, page_size=10_000, page_token=page.next_page_token)
        found += page.models
    assert [model.round for model in found] == list(range(MANY))

    alone = await listed(servicer, page_size=1)
    assert [model.round for model in alone.models] == [0]
    with pytest.raises(NotFound):
        await listed(servicer, page_token="f" * 64)

    older_client = await listed(servicer)
    rounds = [model.round for model in older_client.models]
    assert rounds == list(range(MANY - len(rounds), MANY)), "the newest, oldest first"
    assert len(rounds) > 1000


async def test_statements_are_read_beside_the_loop(
    servicer: OperatorServicer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_first_model(Centre(tmp_path / "centre").model(0))
    goes_on, convert_model = threading.Event(), convert.model

    def slowly(row: ModelRow) -> pb.Model:
        assert goes_on.wait(10), "the loop stands still"
        return convert_model(row)

    monkeypatch.setattr(convert, "model", slowly)
    for page_size in (0, 10):
        goes_on.clear()
        asyncio.get_running_loop().call_soon(goes_on.set)
        assert len((await listed(servicer, page_size=page_size)).models) == 1


async def rounds(servicer: OperatorServicer, **words: Any) -> pb.ListRoundsResponse:
    answer = await servicer.ListRounds(pb.ListRoundsRequest(experiment=DEMO, **words), cast("Any", None))
    assert answer.ByteSize() < limits.MESSAGE
    return answer


@pytest.mark.parametrize(("sites", "count"), [(90, 100), (5000, 3)])
async def test_more_refusals_than_a_message_holds(servicer: OperatorServicer, store: Store, sites: int, count: int) -> None:
    """A hundred sites that decline in 500 letters, round after round; or so many that a page holds one round."""
    names = tuple(SiteId(f"hospital-{number:04d}") for number in range(sites))
    declined = tuple(Task(name, TaskState.DECLINED, reason="x" * 500) for name in names)
    for number in range(1, count + 1):
        planned = plan(RoundKey(DEMO, number), Digest("2" * 64), names, names, 2, 3, 60)
        store.add_round(replace(planned, tasks=declined))
    page = await rounds(servicer)
    found, pages = list(page.rounds), 1
    while page.next_page_token:
        page = await rounds(servicer, page_token=page.next_page_token)
        found, pages = [*found, *page.rounds], pages + 1
    assert [each.round for each in found] == list(range(1, count + 1))
    assert {len(each.refused) for each in found} == {sites}
    assert pages == 3
