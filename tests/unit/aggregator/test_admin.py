"""What operators are answered, however much there is to tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from aggregator import queries
from aggregator.database import Database
from aggregator.services.admin import OperatorServicer
from aggregator.store import Store
from histofed.base.clock import FakeClock
from histofed.base.errors import NotFound
from histofed.base.ids import Digest, sha256
from histofed.transport import limits
from histofed.v1 import admin_pb2 as pb
from tests.support.centre import DEMO, Centre

MANY = 11_000
"""Models that do not fit into one message."""


class Engine:
    """As much of it as lists ask for."""

    def __init__(self, store: Store) -> None:
        self.store = store


@pytest.fixture
def servicer(tmp_path: Path) -> Iterator[OperatorServicer]:
    """An aggregator with many models in its rows."""
    database, clock = Database(tmp_path / "state.db"), FakeClock()
    store = Store(database, clock)
    store.add_experiment(DEMO, "", Digest("1" * 64), "admin")
    model = Centre(tmp_path / "centre").model(0)
    with database.writing() as connection:
        for number in range(MANY):
            clock.advance(number % 2)  # some are of one instant
            digest = sha256(b"%d" % number)
            queries.insert_model(connection, replace(model, digest=digest, round=number, created_at=clock.now()))
    nobody = cast("Any", None)
    yield OperatorServicer(
        engine=cast("Any", Engine(store)),
        experiments=nobody,
        members=nobody,
        scheduler=nobody,
        fleet=nobody,
        changes=nobody,
        door=nobody,
        journal=nobody,
        health=nobody,
        clock=clock,
        federation="test",
        join_line=str,
    )
    database.close()


async def listed(servicer: OperatorServicer, **words: Any) -> pb.ListModelsResponse:
    answer = await servicer.ListModels(pb.ListModelsRequest(**words), cast("Any", None))
    assert answer.ByteSize() < limits.MESSAGE
    return answer


async def test_more_models_than_a_message_holds(servicer: OperatorServicer) -> None:
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
