"""What an offer says of the backups: which private tensors its site has to keep."""

from __future__ import annotations

import json

import sqlalchemy as sa

from aggregator import schema
from aggregator.engine import Engine
from aggregator.history import Chronicle
from aggregator.services.offers import task_offer
from histofed.base.ids import TaskKey
from tests.support.engine_bench import EXPERIMENT, NORTH, Bench, deliver, opened, settle


def backed_up(engine: Engine, year: int, number: int, digest: str | None) -> None:
    """A backup with the experiment's round `number` in it; without a digest it is still being written."""
    row = {"id": str(year), "made_at": str(year), "rounds": json.dumps({EXPERIMENT.name: number}), "digest": digest}
    with engine.store._database.writing() as connection:
        connection.execute(sa.insert(schema.backups).values(row))


def told(engine: Engine, chronicle: Chronicle) -> tuple[int | None, int | None]:
    """The rounds that the offer of round 2 names."""
    offer = task_offer(engine, chronicle, TaskKey.parse("demo/2/train/north"))
    assert offer is not None
    newest = offer.backup_round if offer.HasField("backup_round") else None
    return newest, offer.complete_backup_round if offer.HasField("complete_backup_round") else None


async def test_a_backup_that_is_being_written_is_offered_beside_the_last_that_is_complete(bench: Bench) -> None:
    """Whether it comes to an end or fails, the private tensors of the newest backup are at the sites."""
    async with bench.engine() as engine:
        await opened(engine, (NORTH,))
        await deliver(engine, NORTH)
        await settle(engine)
        base = engine.store.latest_model(EXPERIMENT.name)
        assert base is not None
        engine.plan(EXPERIMENT, 2, base.digest, (NORTH,), (NORTH,))
        chronicle = bench.chronicle(engine)
        assert told(engine, chronicle) == (None, None)
        backed_up(engine, 2026, 0, "d" * 64)
        assert told(engine, chronicle) == (0, None)
        backed_up(engine, 2027, 1, None)
        assert told(engine, chronicle) == (1, 0)
        backed_up(engine, 2028, 1, "e" * 64)
        assert told(engine, chronicle) == (1, None)
