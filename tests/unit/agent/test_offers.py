"""What comes on the stream of work, where it is not what it should be."""

from __future__ import annotations

import pytest

from agent.offers import Offer, message
from histofed.base.ids import sha256
from histofed.v1 import rounds_pb2, types_pb2
from tests.support.agent_site import AgentSite, task
from tests.support.fake_aggregator import FakeAggregator


async def test_an_offer_that_makes_no_sense_is_told_and_passed_over(
    site: AgentSite, aggregator: FakeAggregator, caplog: pytest.LogCaptureFixture
) -> None:
    broken = aggregator.make_offer(task(1))
    broken.experiment_sha256 = sha256(b"something else")
    aggregator.offer(broken)
    aggregator.offer(aggregator.make_offer(task(2)))
    site.start()
    await aggregator.wait_for("SubmitUpdate")
    assert "not the one whose digest it names" in caplog.text


def test_an_offer_says_how_many_rounds_are_committed() -> None:
    offer = read(rounds_committed=3)
    assert offer.rounds_committed == 3


def test_an_aggregator_of_before_counts_by_the_round() -> None:
    assert read().rounds_committed == 8


def test_a_backup_that_is_being_written_comes_with_the_one_before() -> None:
    assert read().backup_rounds == ()
    assert read(backup_round=0).backup_rounds == (0,)
    assert read(backup_round=7, complete_backup_round=0).backup_rounds == (7, 0)
    assert read(complete_backup_round=3).backup_rounds == (3,)


def read(
    rounds_committed: int | None = None, backup_round: int | None = None, complete_backup_round: int | None = None
) -> Offer:
    """The offer of round 9, read."""
    toml = "a file"
    offer = rounds_pb2.TaskOffer(
        task="crc/9/train/north",
        kind=types_pb2.TASK_KIND_TRAIN,
        experiment_toml=toml,
        experiment_sha256=sha256(toml.encode()),
        base=types_pb2.Blob(sha256="0" * 64),
        deadline="2030-01-01T00:00:00.000000Z",
        rounds_committed=rounds_committed,
        backup_round=backup_round,
        complete_backup_round=complete_backup_round,
    )
    found = message(rounds_pb2.WaitForWorkResponse(offer=offer))
    assert isinstance(found, Offer)
    return found
