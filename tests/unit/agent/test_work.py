"""Whole tasks against an aggregator that does what the test says: the order of the steps, and how a task ends early."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.config import DataConfig
from histofed.v1 import rounds_pb2
from tests.support.agent_site import LONG, SITE, AgentSite, task, training, until
from tests.support.fake_aggregator import FakeAggregator
from tests.support.pki import Federation
from tests.support.processes import trainers


async def test_every_effect_is_journalled_before_it_happens(site: AgentSite, aggregator: FakeAggregator) -> None:
    seen: dict[str, list[str]] = {}

    async def remember(call: str) -> None:
        await aggregator.wait_for(call)
        seen[call] = site.actions()

    aggregator.offer(aggregator.make_offer(task()))
    watching = [asyncio.create_task(remember(call)) for call in ("AcceptTask", "SubmitUpdate")]
    site.start()
    await asyncio.gather(*watching)
    await until(lambda: site.actions()[-1] == "update.verdict")
    assert seen["AcceptTask"][:2] == ["task.offered", "consent.allowed"]
    assert seen["SubmitUpdate"][:4] == ["task.offered", "consent.allowed", "task.trained", "update.sent"]
    assert {record.trace.trace_id for record in site.audit() if record.trace} == {
        aggregator.make_offer(task()).traceparent.split("-")[1]
    }


async def test_calls_carry_the_trace_of_the_round(site: AgentSite, aggregator: FakeAggregator) -> None:
    offer = aggregator.make_offer(task())
    aggregator.offer(offer)
    site.start()
    heard = await aggregator.wait_for("SubmitUpdate")
    assert heard.metadata["traceparent"].split("-")[1] == offer.traceparent.split("-")[1]


async def test_a_stopped_agent_resumes_its_checkpoint(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    credentials = federation.site(SITE)
    aggregator.offer(aggregator.make_offer(task(), config="steps = 60\ndelay_s = 0.02"))
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        site.start()
        await training(aggregator)
        await site.stop()
        assert not trainers()
        held = site.state.task_in_hand()
        assert held is not None
        assert held.task == task()
    reports = len(aggregator.heard)
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        site.start()
        await aggregator.wait_for("SubmitUpdate")
    first = next(
        heard.request.done
        for heard in aggregator.heard[reports:]
        if heard.call == "ReportProgress" and heard.request.phase == "train"
    )
    assert first > 1


async def test_a_cache_that_was_made_smaller_after_a_full_disk_costs_no_checkpoint(
    site: AgentSite, aggregator: FakeAggregator
) -> None:
    """The disk fills in mid-training; the administrator does what `doctor` says, and reloads."""
    aggregator.offer(aggregator.make_offer(task(), config="steps = 60\ndelay_s = 0.02"))
    site.start()
    await training(aggregator)
    await site.stop()
    site.work.config = site.config.model_copy(update={"data": DataConfig(cache_bytes=1_000_000_000)})
    reports = len(aggregator.heard)
    site.start()
    await aggregator.wait_for("SubmitUpdate")
    first = next(
        heard.request.done
        for heard in aggregator.heard[reports:]
        if heard.call == "ReportProgress" and heard.request.phase == "train"
    )
    assert first > 1


async def half_trained(folder: Path, federation: Federation, aggregator: FakeAggregator) -> None:
    """A life of the site that ends in the middle of a task of `zeta`; the next one is offered a task of `alpha` first."""
    zeta = aggregator.make_offer(task(experiment="zeta"), config="steps = 60\ndelay_s = 0.02")
    aggregator.offer(zeta)
    async with AgentSite(folder, federation.site(SITE), aggregator.address) as site:
        site.start()
        await training(aggregator)
        await site.stop()
    aggregator.offers = [aggregator.make_offer(task(experiment="alpha"), config=LONG), zeta]


async def test_another_experiments_task_leaves_a_checkpoint_alone(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    await half_trained(tmp_path / "site", federation, aggregator)
    aggregator.offers[0] = aggregator.make_offer(task(experiment="alpha"))
    reports = len(aggregator.heard)
    async with AgentSite(tmp_path / "site", federation.site(SITE), aggregator.address) as site:
        site.start()
        await aggregator.wait_for("SubmitUpdate", 2)
        await until(lambda: not list(site.layout.work.iterdir()))
    assert [manifest.experiment for manifest in aggregator.manifests()] == ["alpha", "zeta"]
    first = next(
        heard.request.done
        for heard in aggregator.heard[reports:]
        if heard.call == "ReportProgress" and heard.request.phase == "train" and heard.request.task.startswith("zeta/")
    )
    assert first > 1


async def test_a_withdrawn_task_that_waits_half_done_is_dropped(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    await half_trained(tmp_path / "site", federation, aggregator)
    async with AgentSite(tmp_path / "site", federation.site(SITE), aggregator.address) as site:
        site.start()
        await aggregator.wait_for("AcceptTask", 2)
        aggregator.withdraw(task(experiment="zeta"), "the round reached its deadline")
        await until(lambda: "task.dropped" in site.actions())
        await until(lambda: [room.name for room in site.layout.work.iterdir()] == ["alpha.1.train"])


async def test_a_withdrawn_task_stops_its_trainer_and_leaves_nothing(site: AgentSite, aggregator: FakeAggregator) -> None:
    aggregator.offer(aggregator.make_offer(task(), config=LONG))
    site.start()
    await training(aggregator)
    aggregator.withdraw(task(), "the round reached its deadline")
    await until(lambda: site.actions()[-1] == "task.dropped")
    assert not trainers()
    assert site.state.task_in_hand() is None
    assert not list(site.layout.work.iterdir())
    aggregator.offer(aggregator.make_offer(task(2)))
    await aggregator.wait_for("SubmitUpdate")


async def test_an_answer_that_the_task_is_not_wanted_stops_it(site: AgentSite, aggregator: FakeAggregator) -> None:
    wanted = rounds_pb2.ReportProgressResponse(wanted=True)
    answer = rounds_pb2.ReportProgressResponse(wanted=False, reason="the round is abandoned")
    aggregator.offer(aggregator.make_offer(task(), config=LONG))
    aggregator.answers["ReportProgress"] = [wanted, wanted, answer]
    site.start()
    await until(lambda: site.actions()[-1:] == ["task.dropped"])
    assert site.audit()[-1].reason == "the round is abandoned"
    assert not trainers()


async def test_a_task_that_was_cancelled_while_the_agent_was_away_is_cleared_away(
    site: AgentSite, aggregator: FakeAggregator
) -> None:
    aggregator.offer(aggregator.make_offer(task(), config=LONG))
    site.start()
    await training(aggregator)
    await site.stop()
    assert site.state.task_in_hand() is not None
    aggregator.offers = []
    told = aggregator.called("ReportProgress")
    cancelled = "the experiment was cancelled by ada: wrong data"
    aggregator.answers["ReportProgress"] = [rounds_pb2.ReportProgressResponse(wanted=False, reason=cancelled)]
    site.start()
    await until(lambda: site.state.task_in_hand() is None)
    assert aggregator.called("ReportProgress") == told + 1
    assert not list(site.layout.work.iterdir())
    dropped = site.audit()[-1]
    assert (dropped.action, dropped.reason) == ("task.dropped", cancelled)
    assert trainers() == []


async def test_a_task_that_is_offered_again_is_not_asked_about(site: AgentSite, aggregator: FakeAggregator) -> None:
    aggregator.offer(aggregator.make_offer(task(), config=LONG))
    site.start()
    await training(aggregator)
    await site.stop()
    told = aggregator.called("ReportProgress")
    site.start()
    await aggregator.wait_for("ReportProgress", told + 2)
    phases = {heard.request.phase for heard in aggregator.heard if heard.call == "ReportProgress"}
    assert "waiting" not in phases
