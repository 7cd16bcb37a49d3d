"""The agent against an aggregator that does what the test says: whole tasks, refusals, interruptions, and what is told."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest

from agent.sessions import RECONNECT, SLOWLY
from histofed.base.clock import SystemClock, iso
from histofed.base.errors import AlreadyThere, CannotWriteState, Stale, TryLater, VersionMismatch
from histofed.pki.credentials import Credentials
from histofed.transport.backoff import Backoff
from histofed.v1 import rounds_pb2, types_pb2
from tests.support.agent_site import SITE, AgentSite, task, until
from tests.support.fake_aggregator import FakeAggregator
from tests.support.pki import Federation
from tests.support.processes import trainers

LONG = "steps = 400\ndelay_s = 0.02"


GAN = """
name = "pilot"
recipe = "gan"
rounds = 1
[config]
classes = ["MSIH", "nonMSIH"]
image_size = 32
steps = 1
discriminator = { name = "cnn" }
"""


async def training(aggregator: FakeAggregator) -> None:
    """The trainer has reported a step."""
    count = 1
    while (await aggregator.wait_for("ReportProgress", count)).request.phase != "train":
        count += 1


# -- a task from the offer to the verdict ------------------------------------------------------------------------------


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


async def test_a_rejected_update_is_told_and_gone(
    site: AgentSite, aggregator: FakeAggregator, caplog: pytest.LogCaptureFixture
) -> None:
    rejected = rounds_pb2.SubmitUpdateResponse(state=types_pb2.TASK_STATE_REJECTED, reason="its norm is above the bound")
    aggregator.answers["SubmitUpdate"] = [rejected]
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: "rejected: its norm is above the bound" in caplog.text)
    await until(lambda: site.state.task_in_hand() is None)
    assert site.outbox.entries() == ()
    (verdict,) = (record for record in site.audit() if record.action == "update.verdict")
    assert (verdict.outcome, verdict.reason) == ("refused", "its norm is above the bound")


# -- what a site does not do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("consent", "words"),
    [
        (None, "no consent file"),
        ('experiments = ["other"]', "the experiment 'pilot'"),
        ('experiments = ["*"]\nrecipes = ["mean"]\nmodels = ["mean"]\nmaximum_steps = 2', "3 steps in one task"),
        ("experiment = []", "cannot be read, so nothing is allowed"),
        ("not toml at all", "cannot be read, so nothing is allowed"),
    ],
)
async def test_what_the_consent_does_not_allow_is_declined_in_words(
    site: AgentSite, aggregator: FakeAggregator, consent: str | None, words: str
) -> None:
    site.consent.unlink()
    if consent is not None:
        site.consent.write_text(consent)
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    heard = await aggregator.wait_for("DeclineTask")
    assert words in heard.request.reason
    assert str(site.consent) not in heard.request.reason
    assert aggregator.called("AcceptTask") == 0
    assert [record.outcome for record in site.audit() if record.action == "consent.denied"] == ["refused"]


async def test_the_hospitals_veto_works_without_a_restart(site: AgentSite, aggregator: FakeAggregator) -> None:
    site.start()
    aggregator.offer(aggregator.make_offer(task(1)))
    await aggregator.wait_for("SubmitUpdate")
    site.consent.write_text("")
    aggregator.offer(aggregator.make_offer(task(2)))
    assert (await aggregator.wait_for("DeclineTask")).request.task == str(task(2))


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('name = "pilot"\nrecipe = "unknown"\nrounds = 1\n', "'unknown' is not installed"),
        ('name = "pilot"\nrecipe = "mean"\nrounds = 1\n[config]\nsteps = 1\ndimension = 1\nlayers = 3\n', "layers"),
        ('name = "pilot"\nrecipe = "mean"\nrounds = 1\nsurprise = 1\n', "surprise: no such key"),
    ],
)
async def test_an_experiment_that_cannot_run_here_is_declined(
    site: AgentSite, aggregator: FakeAggregator, toml: str, words: str
) -> None:
    aggregator.offer(aggregator.make_offer(task(), toml=toml))
    site.start()
    assert words in (await aggregator.wait_for("DeclineTask")).request.reason


async def test_an_experiment_that_reads_tiles_is_declined_by_a_site_without_any(
    site: AgentSite, aggregator: FakeAggregator
) -> None:
    aggregator.offer(aggregator.make_offer(task(), toml=GAN))
    site.start()
    assert "[data] root is not set" in (await aggregator.wait_for("DeclineTask")).request.reason


async def test_another_sites_task_is_left_alone(
    site: AgentSite, aggregator: FakeAggregator, caplog: pytest.LogCaptureFixture
) -> None:
    aggregator.offer(aggregator.make_offer(task(site="south-clinic")))
    aggregator.offer(aggregator.make_offer(task(2)))
    site.start()
    await aggregator.wait_for("SubmitUpdate")
    assert [manifest.task for manifest in aggregator.manifests()] == [task(2)]
    assert "a task of site south-clinic" in caplog.text


# -- faults ------------------------------------------------------------------------------------------------------------


async def test_offers_behind_the_task_in_hand_wait_in_a_row(site: AgentSite, aggregator: FakeAggregator) -> None:
    for number in (1, 2, 3):
        aggregator.offer(aggregator.make_offer(task(number)))
    site.start()
    await aggregator.wait_for("SubmitUpdate", 3)
    assert [manifest.round for manifest in aggregator.manifests()] == [1, 2, 3]


async def test_a_killed_trainer_is_reported_and_the_next_attempt_goes_on(
    site: AgentSite, aggregator: FakeAggregator
) -> None:
    aggregator.offer(aggregator.make_offer(task(), config=LONG))
    site.start()
    await training(aggregator)
    (child,) = trainers()
    os.kill(child, signal.SIGKILL)
    heard = await aggregator.wait_for("FailTask")
    assert heard.request.retryable
    assert "killed by signal 9" in heard.request.reason
    aggregator.offer(aggregator.make_offer(task(), attempt=2))
    await aggregator.wait_for("SubmitUpdate")
    assert aggregator.manifests()[0].attempt == 2


async def test_data_that_cannot_be_used_is_final(site: AgentSite, aggregator: FakeAggregator) -> None:
    # a base that does not fit its experiment
    toml = aggregator.make_offer(task()).experiment_toml.replace("dimension = 10", "dimension = 11")
    aggregator.offer(aggregator.make_offer(task(), toml=toml))
    site.start()
    heard = await aggregator.wait_for("FailTask")
    assert not heard.request.retryable
    assert "belong to other work" in heard.request.reason
    await until(lambda: site.state.task_in_hand() is None)


async def test_a_base_that_is_not_what_its_name_says_is_refused(site: AgentSite, aggregator: FakeAggregator) -> None:
    offer = aggregator.make_offer(task())
    path = aggregator.store.path(offer.base.sha256)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    aggregator.offer(offer)
    site.start()
    heard = await aggregator.wait_for("FailTask")
    assert not heard.request.retryable
    assert aggregator.called("SubmitUpdate") == 0
    assert not trainers()


async def test_a_full_disk_in_the_trainer_is_told_without_a_path(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # read by the child alone: this process has read its environment long ago
    monkeypatch.setenv("HISTOFED_FAILPOINTS", "replace.before_rename=ENOSPC")
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    heard = await aggregator.wait_for("FailTask")
    assert heard.request.retryable
    assert "disk is full" in heard.request.reason
    assert str(site.layout.root) not in heard.request.reason
    assert "No space left on device" in caplog.text


async def test_another_attempt_after_a_full_disk_rests_first(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agent.patience.REST_S", 0.6)
    monkeypatch.setenv("HISTOFED_FAILPOINTS", "replace.before_rename=ENOSPC")
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await aggregator.wait_for("FailTask")
    monkeypatch.delenv("HISTOFED_FAILPOINTS")
    failed = time.monotonic()
    aggregator.offer(aggregator.make_offer(task(), attempt=2))
    await aggregator.wait_for("AcceptTask", 2)
    assert time.monotonic() - failed > 0.4
    assert "attempt 2 at task pilot/1/train/north-clinic begins in 1 s" in caplog.text
    await aggregator.wait_for("SubmitUpdate")


async def test_a_task_that_is_withdrawn_while_it_rests_is_over(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTOFED_FAILPOINTS", "replace.before_rename=ENOSPC")
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await aggregator.wait_for("FailTask")
    aggregator.offer(aggregator.make_offer(task(), attempt=2))
    await until(lambda: "rests first" in site.sessions.words)
    aggregator.withdraw(task(), "the round's deadline passed")
    await until(lambda: site.state.task_in_hand() is None and site.sessions.words == "waits for work")
    assert aggregator.called("AcceptTask") == 1


async def test_without_a_journal_nothing_is_done(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise CannotWriteState("cannot write the journal: No space left on device")

    monkeypatch.setattr(site.journal, "append", full)
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    heard = await aggregator.wait_for("FailTask")
    assert heard.request.retryable
    assert aggregator.called("AcceptTask") == 0


@pytest.mark.parametrize("call", ["AcceptTask", "SubmitUpdate", "may_upload"])
async def test_a_busy_aggregator_is_asked_again(site: AgentSite, aggregator: FakeAggregator, call: str) -> None:
    aggregator.answers[call] = [TryLater("too many calls"), CannotWriteState("its disk is full")]
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: site.actions()[-1:] == ["update.verdict"])
    assert site.audit()[-1].outcome == "success"


# -- rounds that close -------------------------------------------------------------------------------------------------


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


async def test_an_update_that_comes_too_late_is_dropped(site: AgentSite, aggregator: FakeAggregator) -> None:
    aggregator.answers["SubmitUpdate"] = [Stale("round 1 is closed")]
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: "update.dropped" in site.actions())
    await until(lambda: site.state.task_in_hand() is None)
    assert site.outbox.entries() == ()


async def test_only_the_aggregators_word_ends_a_task_whatever_the_clock_here_says(
    site: AgentSite, aggregator: FakeAggregator
) -> None:
    """This machine's clock is three hours ahead: by it the round closed before it was offered."""
    aggregator.answers["AcceptTask"] = [TryLater("busy"), TryLater("busy")]
    aggregator.offer(aggregator.make_offer(task(), deadline_s=-3 * 3600))
    site.start()
    await until(lambda: site.actions()[-1:] == ["update.verdict"])
    aggregator.answers["AcceptTask"] = [TryLater("busy"), Stale("the round closed an hour ago")]
    aggregator.offer(aggregator.make_offer(task(2)))
    await until(lambda: site.actions()[-1:] == ["task.dropped"])
    assert site.audit()[-1].reason == "the round closed an hour ago"


async def test_a_task_rests_by_the_aggregators_clock(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a site whose clock is ahead would use its attempts up within a second."""
    monkeypatch.setenv("HISTOFED_FAILPOINTS", "replace.before_rename=ENOSPC")
    ahead = timedelta(hours=3)
    aggregator.answers["Hello"] = [rounds_pb2.HelloResponse(now=iso(SystemClock().now() - ahead))]
    deadline_s = 600 - ahead.total_seconds()
    aggregator.offer(aggregator.make_offer(task(), deadline_s=deadline_s))
    site.start()
    await aggregator.wait_for("FailTask")
    aggregator.offer(aggregator.make_offer(task(), attempt=2, deadline_s=deadline_s))
    await until(lambda: "rests first" in site.sessions.words)


# -- interruptions -----------------------------------------------------------------------------------------------------


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


async def test_a_finished_update_is_delivered_by_the_next_life(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    credentials = federation.site(SITE)
    aggregator.answers["may_upload"] = [TryLater("busy")] * 100
    aggregator.offer(aggregator.make_offer(task()))
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        site.start()
        await until(lambda: len(site.outbox.entries()) == 1)
        await site.stop()
    aggregator.answers.clear()
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        site.start()
        await aggregator.wait_for("SubmitUpdate")
        await until(lambda: site.outbox.entries() == ())
        assert site.actions().count("task.trained") == 1


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


async def test_a_clock_that_differs_is_told(
    site: AgentSite, aggregator: FakeAggregator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    aggregator.answers["Hello"] = [
        rounds_pb2.HelloResponse(version="0.1.0", identity="x", now="2020-01-01T00:00:00.000000Z")
    ]
    site.start()
    await until(lambda: "clock differs" in caplog.text)


# -- a round that closed while the agent was away ----------------------------------------------------------------------


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
