"""A finished update on its way to the aggregator's verdict."""

from __future__ import annotations

import asyncio
import errno
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.link import Transfer, Wanted
from agent.outbox import folder_name
from agent.state import TaskInHand
from histofed.base.clock import SystemClock
from histofed.base.errors import AggregatorUnavailable, HistofedError, NotAuthorised, Stale, TrainingFailed, TryLater
from histofed.base.ids import TaskKey
from histofed.pki.signing import verify
from histofed.statements import UPDATE_TYPE
from histofed.v1 import rounds_pb2, types_pb2
from tests.support.agent_site import SITE, AgentSite, ends, leave_update, task, until
from tests.support.fake_aggregator import FakeAggregator
from tests.support.pki import Federation


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


async def test_an_update_that_comes_too_late_is_dropped(site: AgentSite, aggregator: FakeAggregator) -> None:
    aggregator.answers["SubmitUpdate"] = [Stale("round 1 is closed")]
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: "update.dropped" in site.actions())
    await until(lambda: site.state.task_in_hand() is None)
    assert site.outbox.entries() == ()


async def test_a_finished_update_is_delivered_by_the_next_life(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    credentials = federation.site(SITE)
    await leave_update(tmp_path / "site", credentials, aggregator)
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        site.start()
        await aggregator.wait_for("SubmitUpdate")
        await until(lambda: site.outbox.entries() == ())
        assert site.actions().count("task.trained") == 1
        assert site.state.task_in_hand() is None, "or it would be dropped as one that nobody wants any more"
        assert not list(site.layout.work.iterdir())


async def test_an_update_that_cannot_be_read_for_a_moment_waits_and_holds_up_no_other_task(
    tmp_path: Path,
    federation: Federation,
    aggregator: FakeAggregator,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    credentials = federation.site(SITE)
    await leave_update(tmp_path / "site", credentials, aggregator)
    aggregator.offers.clear()
    read, beats = Path.read_bytes, []

    def reading(path: Path) -> bytes:
        if path.parent.name == folder_name(task()):
            raise OSError(errno.EMFILE, "Too many open files")
        return read(path)

    async def unwanted(*_: Any) -> Wanted:
        return Wanted(False, "the task is admitted")

    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        drop_unwanted = site.work.drop_unwanted

        async def beat() -> None:
            await drop_unwanted()
            beats.append(1)

        with monkeypatch.context() as moment:
            moment.setattr(Path, "read_bytes", reading)
            moment.setattr(site.link, "report", unwanted)
            moment.setattr(site.work, "drop_unwanted", beat)
            site.start()
            await until(lambda: len(beats) > 1)
        held = site.state.task_in_hand()
        assert held is not None and held.task == task(), "its update may be in the model"
        with monkeypatch.context() as moment:
            moment.setattr(Path, "read_bytes", reading)
            aggregator.offer(aggregator.make_offer(task(experiment="other")))
            await until(lambda: len(ends(site)) == 1)
        await until(lambda: len(ends(site)) == 2)
        assert ends(site) == [("update.verdict", "success")] * 2
    assert [manifest.experiment for manifest in aggregator.manifests()] == ["other", "pilot"]
    assert trained == ["pilot.1.train", "other.1.train"]
    assert aggregator.called("Hello") == 2, "one for each life"


def make_unreadable(file: Path) -> None:
    """It is there, and no byte of it can be read."""
    file.unlink()
    file.mkdir()


async def test_a_death_behind_the_verdict_leaves_no_task_in_hand_without_its_update(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = federation.site(SITE)
    await leave_update(tmp_path / "site", credentials, aggregator)
    in_hand: list[TaskInHand | None] = []
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        remove = site.outbox.remove

        def removing(done: TaskKey) -> None:
            in_hand.append(site.state.task_in_hand())
            remove(done)

        monkeypatch.setattr(site.outbox, "remove", removing)
        assert site.state.task_in_hand() is not None
        site.start()
        await until(lambda: site.outbox.entries() == ())
    assert in_hand == [None], "the next life would drop it as a task that nobody wants any more"


async def test_an_update_that_the_disk_does_not_give_is_made_anew_and_ends_no_agent(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    credentials = federation.site(SITE)
    entry = await leave_update(tmp_path / "site", credentials, aggregator)
    make_unreadable(entry.weights)
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        site.start()
        await until(lambda: "update.verdict" in site.actions())
        dropped = next(record for record in site.audit() if record.action == "update.dropped")
        assert "cannot be read from this machine's disk" in dropped.reason
        assert site.actions().count("task.trained") == 2


async def test_an_update_that_the_disk_does_not_give_any_more_is_made_anew_by_the_next_attempt(
    site: AgentSite, aggregator: FakeAggregator, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The aggregator was busy for a while, and then the disk did not give the file."""

    upload = site.link.upload

    async def lost(path: Path, *arguments: Any) -> None:
        make_unreadable(path)
        monkeypatch.setattr(site.link, "upload", upload)
        raise TryLater("busy")

    monkeypatch.setattr(site.link, "upload", lost)
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    failed = await aggregator.wait_for("FailTask")
    assert failed.request.retryable
    assert "cannot be read from this machine's disk" in failed.request.reason
    aggregator.offer(aggregator.make_offer(task(), attempt=2))
    await until(lambda: bool(ends(site)) and ends(site)[-1] == ("update.verdict", "success"))
    assert trained == ["pilot.1.train"] * 2


async def test_an_update_of_an_attempt_that_is_over_waits_for_the_next_one(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator, trained: list[str]
) -> None:
    """The aggregator heard that the attempt failed, and the agent died before it could put its update back."""
    credentials = federation.site(SITE)
    await leave_update(tmp_path / "site", credentials, aggregator)
    aggregator.answers["SubmitUpdate"] = [Stale("task pilot/1 is at attempt 2; this update is of attempt 1")]
    aggregator.offer(aggregator.make_offer(task(), attempt=2))
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        site.start()
        await until(lambda: "update.verdict" in site.actions())
        assert "update.withheld" in site.actions()
    assert [manifest.attempt for manifest in aggregator.manifests()] == [1, 2]
    assert len(trained) == 1


async def test_an_update_whose_certificate_has_ended_is_signed_with_the_one_that_the_site_has_now(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    """Signed with hours left, cut off until the certificate has ended, enrolled again; the round is open still."""
    day = timedelta(days=1)
    aggregator.answers["SubmitUpdate"] = [AggregatorUnavailable("gone")] * 99
    aggregator.offer(aggregator.make_offer(task()))
    async with AgentSite(tmp_path / "site", federation.site(SITE, day), aggregator.address) as site:
        site.start()
        await aggregator.wait_for("SubmitUpdate")
    earlier = aggregator.envelope()
    aggregator.answers.clear()
    async with AgentSite(tmp_path / "site", federation.site(SITE, 7 * day), aggregator.address) as site:
        site.start()
        await until(lambda: bool(ends(site)))
        assert ends(site) == [("update.verdict", "success")]
        assert site.actions().count("task.trained") == 1
        signer = site.link.credentials.identity
    later = aggregator.envelope()
    then = SystemClock().now() + 2 * day
    verify(later, ca=federation.authority.certificate, payload_type=UPDATE_TYPE, signer=signer, at=then)
    assert later.payload == earlier.payload, "by its digest the aggregator knows an update that it has judged already"


async def test_a_verdict_that_was_lost_on_its_way_is_asked_for(site: AgentSite, aggregator: FakeAggregator) -> None:
    """The aggregator admits the update and dies before it answers; the next one takes no bytes of a task that is settled."""
    aggregator.answers["SubmitUpdate"] = [AggregatorUnavailable("the connection was cut")]
    aggregator.answers["may_upload"] = [Stale("task pilot/1 is admitted")] * 9
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: "update.verdict" in site.actions())
    await until(lambda: site.state.task_in_hand() is None)
    assert ends(site) == [("update.verdict", "success")]
    assert site.outbox.entries() == ()


async def test_an_answer_that_an_upload_is_not_wanted_is_no_verdict(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what the aggregator says of an update that it has admitted, and of one whose round has closed."""

    async def upload(*arguments: Any) -> None:
        progress: Transfer = arguments[-1]
        progress(1, 2)
        await asyncio.Event().wait()

    async def report(*arguments: Any) -> Wanted:
        return Wanted(arguments[2] != "upload", "the task is admitted")

    monkeypatch.setattr(site.link, "upload", upload)
    monkeypatch.setattr(site.link, "report", report)
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: bool(ends(site)))
    await until(lambda: site.state.task_in_hand() is None)
    assert ends(site) == [("update.verdict", "success")]


async def test_an_update_that_is_tried_again_and_again_is_journalled_once(
    site: AgentSite, aggregator: FakeAggregator
) -> None:
    aggregator.answers["may_upload"] = [TryLater("busy")] * 3
    aggregator.answers["SubmitUpdate"] = [AggregatorUnavailable("gone")]
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: bool(ends(site)))
    assert site.actions()[-3:] == ["task.trained", "update.sent", "update.verdict"]


@pytest.mark.parametrize("answer", [None, Stale("the failure comes too late")])
async def test_a_hand_over_that_failed_is_repeated_by_the_next_attempt_without_another_training(
    site: AgentSite, aggregator: FakeAggregator, trained: list[str], answer: Stale | None
) -> None:
    """gRPC's UNKNOWN is no answer of ours, and another attempt may fare better."""
    aggregator.answers["SubmitUpdate"] = [TrainingFailed("Stream removed")]
    aggregator.answers["FailTask"] = [answer] if answer else []
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    assert (await aggregator.wait_for("FailTask")).request.retryable
    aggregator.offer(aggregator.make_offer(task(), attempt=2))
    await until(lambda: bool(ends(site)))
    assert ends(site) == [("update.verdict", "success")]
    assert trained == ["pilot.1.train"]
    first, second = aggregator.manifests()
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.weights == second.weights


async def test_so_it_is_when_the_agent_is_started_again_in_between(
    site: AgentSite, aggregator: FakeAggregator, trained: list[str]
) -> None:
    """What the next life sends first of all must not be the update of an attempt that the aggregator has given up."""
    aggregator.answers["SubmitUpdate"] = [TrainingFailed("Stream removed")]
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: "update.withheld" in site.actions())
    await site.stop()
    assert site.outbox.entries() == ()
    aggregator.offer(aggregator.make_offer(task(), attempt=2))
    site.start()
    await until(lambda: bool(ends(site)))
    assert [manifest.attempt for manifest in aggregator.manifests()] == [1, 2]
    assert trained == ["pilot.1.train"]


@pytest.mark.parametrize("error", [TrainingFailed("Stream removed"), HistofedError("internal error")])
async def test_a_failure_that_comes_too_late_leaves_the_update_to_its_verdict(
    site: AgentSite, aggregator: FakeAggregator, trained: list[str], error: HistofedError
) -> None:
    """The aggregator had the update, and its answer was lost in another way than by a cut."""
    aggregator.answers["SubmitUpdate"] = [error]
    aggregator.answers["FailTask"] = [Stale("task pilot/1 is admitted")]
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await aggregator.wait_for("FailTask")
    await until(lambda: site.work.sign.words == "waits for work")
    aggregator.hang_up()
    await until(lambda: bool(ends(site)))
    assert ends(site) == [("update.verdict", "success")]
    first, second = aggregator.manifests()
    assert first == second, "by its digest the aggregator knows it"
    assert trained == ["pilot.1.train"]


@pytest.mark.parametrize("error", [TrainingFailed("Stream removed"), HistofedError("internal error")])
async def test_the_verdict_is_asked_for_while_the_connection_lasts(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch, error: HistofedError
) -> None:
    """Of a task that is admitted the aggregator wants nothing more, which is no reason to drop its update."""

    async def report(*arguments: Any) -> Wanted:
        return Wanted(arguments[2] != "waiting", "the task is admitted")

    monkeypatch.setattr(site.link, "report", report)
    aggregator.answers["SubmitUpdate"] = [error]
    aggregator.answers["FailTask"] = [Stale("task pilot/1 is admitted")]
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: bool(ends(site)))
    await until(lambda: site.state.task_in_hand() is None)
    assert ends(site) == [("update.verdict", "success")]
    assert aggregator.called("WaitForWork") == 1


async def test_an_update_whose_submission_keeps_failing_there_keeps_the_site_from_no_other_experiment(
    site: AgentSite, aggregator: FakeAggregator, trained: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    aggregator.answers["SubmitUpdate"] = [HistofedError("internal error")] * 2
    aggregator.answers["FailTask"] = [Stale("task pilot/1 is received")]
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await aggregator.wait_for("SubmitUpdate", 2)
    aggregator.answers["SubmitUpdate"] = [HistofedError("internal error")] * 99
    await aggregator.wait_for("SubmitUpdate", 3)
    assert "cannot hand the update of pilot/1/train/north-clinic over now: internal error" in caplog.text
    aggregator.offer(aggregator.make_offer(task(experiment="other")))
    await until(lambda: "other.1.train" in trained)
    assert aggregator.called("Hello") == 1
    aggregator.answers.clear()
    await until(lambda: len(ends(site)) == 2)
    assert ends(site) == [("update.verdict", "success")] * 2
    assert trained == ["pilot.1.train", "other.1.train"]


async def test_an_update_that_waits_behind_another_task_is_sent_as_it_is_when_it_is_asked_for_again(
    site: AgentSite, aggregator: FakeAggregator, trained: list[str]
) -> None:
    """A refused certificate ends the connection; on the next one the other experiment's task is in hand already."""
    aggregator.answers["SubmitUpdate"] = [NotAuthorised("the certificate is denied")]
    aggregator.offer(aggregator.make_offer(task()))
    aggregator.offer(aggregator.make_offer(task(experiment="behind")))
    site.start()
    await until(lambda: len(ends(site)) == 2)
    assert ends(site) == [("update.verdict", "success")] * 2
    assert trained == ["pilot.1.train", "behind.1.train"]
    first, again = (manifest for manifest in aggregator.manifests() if manifest.experiment == "pilot")
    assert first == again
