"""One connection after the other: which offers are taken up, and what is told when an aggregator cannot be talked to."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

import pytest

from agent.offers import Offer
from agent.sessions import RECONNECT, SLOWLY
from histofed.base.errors import AlreadyThere, CannotWriteState, NotAuthorised, TryLater, VersionMismatch
from histofed.pki.credentials import Credentials
from histofed.transport.backoff import Backoff
from histofed.transport.channel import Connection
from histofed.transport.enrolment import renew
from histofed.v1 import rounds_pb2
from tests.support.agent_site import SITE, AgentSite, leave_update, task, training, until
from tests.support.failing_disk import hide
from tests.support.fake_aggregator import FakeAggregator
from tests.support.pki import Federation
from tests.support.processes import trainers

# -- offers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["bases", "outbox", "private", "work"])
async def test_a_folder_that_cannot_be_listed_for_a_moment_ends_no_agent(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    await leave_update(tmp_path / "site", federation.site(SITE), aggregator)
    submitted = aggregator.called("SubmitUpdate")
    async with AgentSite(tmp_path / "site", federation.site(SITE), aggregator.address) as site:
        hide(monkeypatch, site.layout.root / folder, looks=1)
        site.start()
        await aggregator.wait_for("SubmitUpdate", submitted + 1)


async def test_another_sites_task_is_left_alone(
    site: AgentSite, aggregator: FakeAggregator, caplog: pytest.LogCaptureFixture
) -> None:
    aggregator.offer(aggregator.make_offer(task(site="south-clinic")))
    aggregator.offer(aggregator.make_offer(task(2)))
    site.start()
    await aggregator.wait_for("SubmitUpdate")
    assert [manifest.task for manifest in aggregator.manifests()] == [task(2)]
    assert "a task of site south-clinic" in caplog.text


async def test_offers_behind_the_task_in_hand_wait_in_a_row(site: AgentSite, aggregator: FakeAggregator) -> None:
    for number in (1, 2, 3):
        aggregator.offer(aggregator.make_offer(task(number)))
    site.start()
    await aggregator.wait_for("SubmitUpdate", 3)
    assert [manifest.round for manifest in aggregator.manifests()] == [1, 2, 3]


async def test_training_goes_on_while_the_aggregator_restarts(
    site: AgentSite, aggregator: FakeAggregator, tmp_path: Path, federation: Federation
) -> None:
    aggregator.offer(aggregator.make_offer(task(), config="steps = 60\ndelay_s = 0.02"))
    site.start()
    await training(aggregator)
    (child,) = trainers()
    port = int(aggregator.address.rpartition(":")[2])
    await aggregator._server.stop(grace=0)
    async with FakeAggregator(tmp_path / "aggregator", federation, port=port) as restarted:
        assert trainers() == [child]
        await restarted.wait_for("SubmitUpdate")


async def test_a_task_that_fails_unforeseen_ends_the_agent(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stumble(offer: Offer) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(site.work, "run", stumble)
    aggregator.offer(aggregator.make_offer(task()))
    running = asyncio.create_task(site.sessions.run())
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(running, 60)


# -- what an earlier connection left in the outbox ---------------------------------------------------------------------

NO_ROOM = CannotWriteState("no room for this update")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not taken, and a connection that ended, is tried again in a moment."""
    for backoff in ("agent.handover.TASK_BACKOFF", "agent.sessions.RECONNECT"):
        monkeypatch.setattr(backoff, Backoff(first_s=0.1, most_s=0.1, attempts=None))


async def left_behind(folder: Path, federation: Federation, aggregator: FakeAggregator, *experiments: str) -> None:
    """A life of the site that ends with a finished update of each experiment's first round; the next finds no room."""
    aggregator.answers["may_upload"] = [NotAuthorised("not now")] * 100
    for experiment in experiments:
        aggregator.offer(aggregator.make_offer(task(experiment=experiment)))
    async with AgentSite(folder, federation.site(SITE), aggregator.address) as site:
        site.start()
        await until(lambda: len(site.outbox) == len(experiments))
    aggregator.answers["may_upload"] = [NO_ROOM] * 10_000


@pytest.mark.usefixtures("soon")
async def test_a_site_listens_while_it_hands_over_what_waited(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    """For hours where the aggregator has no room: it stays connected, and what is offered waits behind the update."""
    await left_behind(tmp_path / "site", federation, aggregator, "pilot")
    accepted, hellos = aggregator.called("AcceptTask"), aggregator.called("Hello")
    aggregator.offer(aggregator.make_offer(task(2)))
    async with AgentSite(tmp_path / "site", federation.site(SITE), aggregator.address) as site:
        refused = len(aggregator.answers["may_upload"])
        site.start()
        await aggregator.wait_for("WaitForWork", hellos + 1)
        await until(lambda: len(aggregator.answers["may_upload"]) < refused - 3)
        assert site.sessions.connected
        assert site.sessions.words == "round 1 of pilot: upload"
        assert aggregator.called("Hello") == hellos + 1
        assert aggregator.called("AcceptTask") == accepted, "an update comes before the experiment's next task"
        aggregator.answers.clear()
        await aggregator.wait_for("SubmitUpdate", 2)
        await until(lambda: site.state.task_in_hand() is None)
        assert [manifest.round for manifest in aggregator.manifests()] == [1, 2]
        assert site.actions().count("task.offered") == 2, "the offer of what has its verdict now was not taken up again"
        assert "task.dropped" not in site.actions()


async def test_an_update_without_room_holds_up_no_other(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    await left_behind(tmp_path / "site", federation, aggregator, "alpha", "beta")
    aggregator.answers["may_upload"] = [NO_ROOM]
    async with AgentSite(tmp_path / "site", federation.site(SITE), aggregator.address) as site:
        site.start()
        await aggregator.wait_for("SubmitUpdate", 2)
        await until(lambda: len(site.outbox) == 0)
    assert [manifest.experiment for manifest in aggregator.manifests()] == ["beta", "alpha"]


async def test_a_withdrawn_tasks_update_is_dropped_while_it_is_handed_over(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    await left_behind(tmp_path / "site", federation, aggregator, "alpha", "beta")
    async with AgentSite(tmp_path / "site", federation.site(SITE), aggregator.address) as site:
        hellos = aggregator.called("Hello")
        site.start()
        await aggregator.wait_for("WaitForWork", hellos + 1)
        aggregator.withdraw(task(experiment="alpha"), "the round reached its deadline")
        await until(lambda: "update.dropped" in site.actions())
        assert [entry.task for entry in site.outbox.entries()] == [task(experiment="beta")]
        aggregator.answers.clear()
        await aggregator.wait_for("SubmitUpdate")
        await until(lambda: len(site.outbox) == 0)
        assert [manifest.experiment for manifest in aggregator.manifests()] == ["beta"]
        assert aggregator.called("Hello") == hellos + 1


@pytest.mark.usefixtures("soon")
async def test_what_waits_is_handed_over_after_a_hello_alone(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    """The next connection may lead to an aggregator that was put back by hand."""
    await left_behind(tmp_path / "site", federation, aggregator, "pilot")
    streams = aggregator.called("WaitForWork")
    async with AgentSite(tmp_path / "site", federation.site(SITE), aggregator.address) as site:
        site.start()
        await until(lambda: site.sessions.words == "round 1 of pilot: upload")
        await aggregator.wait_for("WaitForWork", streams + 1)  # or there is nothing to hang up
        aggregator.answers["Hello"] = [TryLater("it starts")] * 100
        hellos = aggregator.called("Hello")
        aggregator.hang_up()
        await aggregator.wait_for("Hello", hellos + 3)  # what was on its way has come
        refused = len(aggregator.answers["may_upload"])
        await aggregator.wait_for("Hello", hellos + 9)
        assert len(aggregator.answers["may_upload"]) == refused
        aggregator.answers.clear()
        await aggregator.wait_for("SubmitUpdate")


async def test_what_keeps_an_update_from_the_aggregator_for_good_is_told(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    await left_behind(tmp_path / "site", federation, aggregator, "pilot")
    accepted = aggregator.called("AcceptTask")
    aggregator.answers["may_upload"] = [NotAuthorised("this site may not upload")] * 100
    async with AgentSite(tmp_path / "site", federation.site(SITE), aggregator.address) as site:
        site.start()
        await until(lambda: "this site may not upload" in site.sessions.words)
        assert len(site.outbox) == 1
    assert aggregator.called("AcceptTask") == accepted


# -- the connection ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (VersionMismatch("this agent is newer than the aggregator: upgrade the aggregator first"), "upgrade the aggregator"),
        (AlreadyThere("another agent with this identity is connected"), "another agent with this identity"),
    ],
)
async def test_a_refusal_that_a_person_must_repair_is_told_once_and_retried_slowly(
    site: AgentSite, aggregator: FakeAggregator, caplog: pytest.LogCaptureFixture, error: Exception, words: str
) -> None:
    aggregator.answers["Hello"] = [error]
    site.start()
    await until(lambda: words in site.sessions.words)
    (line,) = (record.getMessage() for record in caplog.records if words in record.getMessage())
    seconds = float(line.rpartition("next try in ")[2].removesuffix(" s"))
    # drawn from the whole range; the numbers of this site draw more than any pause between two tries to connect
    assert RECONNECT.most_s < seconds <= SLOWLY.most_s


async def test_an_absent_aggregator_is_told_and_tried_again(
    tmp_path: Path, federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeAggregator(tmp_path / "aggregator", federation) as there:
        address = there.address
    async with AgentSite(tmp_path / "site", federation.site(SITE), address) as site:
        site.start()
        await until(lambda: "nobody listens at" in site.sessions.words)
        assert not site.sessions.connected
        async with FakeAggregator(tmp_path / "aggregator", federation, port=int(address.rpartition(":")[2])) as back:
            await back.wait_for("WaitForWork", seconds=60)
            await until(lambda: site.sessions.connected)
            assert site.sessions.words == "waits for work"
    assert f"not connected to {address}" in caplog.text


async def test_an_aggregator_that_has_not_met_the_site_hears_its_hello_again(
    site: AgentSite, aggregator: FakeAggregator
) -> None:
    """It was started again between the hello and the call for work."""
    aggregator.answers["WaitForWork"] = [TryLater("this aggregator has not heard yet what the site has seen")]
    site.start()
    await aggregator.wait_for("WaitForWork", 2)
    assert [heard.call for heard in aggregator.heard] == ["Hello", "WaitForWork"] * 2
    await until(lambda: site.sessions.words == "waits for work")


async def test_an_expired_certificate_is_told(tmp_path: Path, federation: Federation, aggregator: FakeAggregator) -> None:
    expired = federation.site(SITE, lifetime=timedelta(seconds=-1))
    async with AgentSite(tmp_path / "site", expired, aggregator.address) as site:
        site.start()
        await until(lambda: "enrol again" in site.sessions.words)


async def test_a_foreign_certificate_is_told(tmp_path: Path, aggregator: FakeAggregator) -> None:
    foreign = Federation("other.example").site(SITE)
    async with AgentSite(tmp_path / "site", foreign, aggregator.address) as site:
        site.start()
        await until(lambda: "not connected" in site.sessions.words)
        assert aggregator.heard == []


async def test_a_new_enrolment_is_noticed_without_a_restart(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.sessions.SLOWLY", Backoff(first_s=0.2, most_s=0.2, attempts=None))
    expired = federation.site(SITE, lifetime=timedelta(seconds=-1))
    async with AgentSite(tmp_path / "site", expired, aggregator.address) as site:
        site.start()
        await until(lambda: "enrol again" in site.sessions.words)
        federation.site(SITE).save(site.layout.identity)
        await aggregator.wait_for("Hello")


async def test_a_certificate_past_its_half_life_is_renewed_with_a_new_key(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    old = federation.site(SITE, lifetime=timedelta(seconds=2))
    async with AgentSite(tmp_path / "site", old, aggregator.address) as site:
        site.start()
        await aggregator.wait_for("Renew")
        await aggregator.wait_for("Hello", 2)
        new = Credentials.load(site.layout.identity)
        assert new.serial != old.serial
        assert new.certificate.public_key() != old.certificate.public_key()
        assert new.identity == old.identity
        assert "identity.renewal" in site.actions()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_renewal_leaves_an_identity_that_somebody_has_enrolled_for(
    site: AgentSite, aggregator: FakeAggregator, federation: Federation, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    enrolled = federation.site(SITE)

    async def renewing(connection: Connection, credentials: Credentials) -> Credentials:
        enrolled.save(site.layout.identity)
        return await renew(connection, credentials)

    monkeypatch.setattr("agent.link.renew", renewing)
    site.start()
    await aggregator.wait_for("WaitForWork")
    if when == "before":
        enrolled.save(site.layout.identity)
    monkeypatch.setattr(site.link, "renewal_due", lambda: site.link.credentials.serial != enrolled.serial)
    await aggregator.wait_for("WaitForWork", 2)
    assert Credentials.load(site.layout.identity).key_pem == enrolled.key_pem
    assert site.link.credentials.serial == enrolled.serial
    assert aggregator.called("Renew") == site.actions().count("identity.renewal") == (when == "meanwhile")


async def test_a_clock_that_differs_is_told(
    site: AgentSite, aggregator: FakeAggregator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    aggregator.answers["Hello"] = [
        rounds_pb2.HelloResponse(version="0.1.0", identity="x", now="2020-01-01T00:00:00.000000Z")
    ]
    site.start()
    await until(lambda: "clock differs" in caplog.text)
