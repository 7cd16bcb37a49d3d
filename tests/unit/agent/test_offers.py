"""What comes on the stream of work, where it is not what it should be."""

from __future__ import annotations

import pytest

from histofed.base.ids import sha256
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
