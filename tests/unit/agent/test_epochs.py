"""An aggregator that was restored, and one that was put back by hand: what a site does with each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.outbox import folder_name
from histofed import weights
from histofed.audit.history import EPOCH_KEY, History
from histofed.audit.verify import Head
from histofed.base import durable
from histofed.base.errors import AggregatorUnavailable, CannotWriteState, NotFound, WentBack
from histofed.v1 import rounds_pb2
from tests.support.agent_site import LONG, AgentSite, task, training, until
from tests.support.fake_aggregator import FakeAggregator
from tests.support.pki import Federation
from tests.support.processes import trainers


def history(epoch: int, records: int) -> rounds_pb2.History:
    return rounds_pb2.History(epoch=epoch, records=records, head=f"{records:064x}")


@pytest.fixture
async def aggregator(tmp_path: Path, federation: Federation) -> AsyncIterator[FakeAggregator]:
    async with FakeAggregator(tmp_path / "aggregator", federation) as running:
        running.history = history(1, 10)
        yield running


async def reconnect(site: AgentSite, aggregator: FakeAggregator) -> None:
    """A new connection, and so a new hello."""
    count = aggregator.called("Hello")
    await site.stop()
    site.start()
    await aggregator.wait_for("Hello", count + 1)


async def test_a_site_tells_what_it_has_seen(site: AgentSite, aggregator: FakeAggregator) -> None:
    site.start()
    first = await aggregator.wait_for("Hello")
    assert not first.request.HasField("history")
    await until(lambda: site.work.epochs.history_seen() is not None)
    await reconnect(site, aggregator)
    again = await aggregator.wait_for("Hello", 2)
    assert (again.request.history.epoch, again.request.history.records) == (1, 10)


async def test_offers_and_verdicts_are_noted_as_well(site: AgentSite, aggregator: FakeAggregator) -> None:
    offer = aggregator.make_offer(task())
    offer.history.CopyFrom(history(1, 20))
    verdict = rounds_pb2.SubmitUpdateResponse(state="TASK_STATE_ADMITTED", history=history(1, 30))
    aggregator.answers["SubmitUpdate"] = [verdict]
    aggregator.offer(offer)
    site.start()
    heard = await aggregator.wait_for("AcceptTask")
    assert heard.metadata[EPOCH_KEY] == "1", "calls about tasks name the epoch"
    assert site.work.epochs.history_seen() == History(1, Head(20, f"{20:064x}"))
    await aggregator.wait_for("SubmitUpdate")
    await until(lambda: site.work.epochs.history_seen() == History(1, Head(30, f"{30:064x}")))


@pytest.mark.parametrize(("epoch", "records"), [(1, 9), (0, 0)])
async def test_an_aggregator_that_went_back_gets_no_work_done_and_nothing_is_dropped(
    site: AgentSite, aggregator: FakeAggregator, epoch: int, records: int
) -> None:
    aggregator.history = history(2, 10)
    site.start()
    await aggregator.wait_for("WaitForWork")
    aggregator.history = history(epoch or 1, records or 99)
    aggregator.offer(aggregator.make_offer(task()))
    await site.stop()
    site.start()
    await until(lambda: "went back" in site.sessions.words)
    assert "put back from a copy without `histofed-aggregator restore`" in site.sessions.words
    assert "restore --in-place --epoch 3" in site.sessions.words
    assert aggregator.called("AcceptTask") == 0
    assert site.actions() == []
    assert site.work.epochs.history_seen() == History(2, Head(10, f"{10:064x}")), "what was seen is not forgotten"


async def test_another_federation_is_another_history(site: AgentSite) -> None:
    site.state.note_history(Federation().aggregator().ca_sha256, History(7, Head(1, "a" * 64)))
    assert site.work.epochs.history_seen() is None


async def test_a_site_follows_an_aggregator_that_was_restored(site: AgentSite, aggregator: FakeAggregator) -> None:
    """The task in hand is dropped when the restored aggregator does not know it."""
    aggregator.offer(aggregator.make_offer(task(4), config=LONG))
    site.start()
    await aggregator.wait_for("AcceptTask")
    aggregator.offers.clear()
    aggregator.history = history(2, 7)
    aggregator.answers["ReportProgress"] = [NotFound("round pilot/4 is not known here")] * 99
    await reconnect(site, aggregator)
    await until(lambda: site.state.task_in_hand() is None)
    assert [action for action in site.actions() if action in {"aggregator.restored", "task.dropped"}] == [
        "aggregator.restored",
        "task.dropped",
    ]
    assert site.work.epochs.history_seen() == History(2, Head(7, f"{7:064x}"))


async def test_a_finished_update_that_is_still_wanted_is_not_trained_again(
    site: AgentSite, aggregator: FakeAggregator
) -> None:
    """The aggregator goes away before the update is handed over, and comes back restored with the round open."""
    offer = aggregator.make_offer(task(2))
    aggregator.answers["SubmitUpdate"] = [AggregatorUnavailable("gone")] * 99
    aggregator.offer(offer)
    site.start()
    await aggregator.wait_for("SubmitUpdate")
    await site.stop()
    assert len(site.outbox) == 1
    (trained,) = {manifest.weights.sha256 for manifest in aggregator.manifests() if manifest.weights}
    aggregator.history = history(2, 7)
    aggregator.answers.clear()
    before = site.actions().count("update.verdict")
    site.start()
    await until(lambda: site.actions().count("update.verdict") > before)
    assert "update.withheld" in site.actions()
    last = aggregator.manifests()[-1].weights
    assert last is not None
    assert last.sha256 == trained
    phases = [heard.request.phase for heard in aggregator.heard if heard.call == "ReportProgress"]
    assert phases.count("train") <= 1, "nobody trained twice"


async def test_a_verdict_that_the_restored_aggregator_forgot_ends_nothing(
    site: AgentSite, aggregator: FakeAggregator, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk did not let go of the admitted update; withheld for the new epoch, it is what the round's offer finds."""
    room, remove = site.layout.work / folder_name(task()), durable.remove

    def removing(path: Path) -> None:
        if path == room and "aggregator.restored" not in site.actions():
            raise CannotWriteState("read-only for a while")
        remove(path)

    monkeypatch.setattr(durable, "remove", removing)
    offer = aggregator.make_offer(task())
    aggregator.offer(offer)
    site.start()
    await until(lambda: "update.verdict" in site.actions())
    await site.stop()
    aggregator.history = history(2, 7)
    aggregator.offer(offer)
    site.start()
    await until(lambda: site.actions().count("update.verdict") == 2)
    await until(lambda: not room.exists())
    assert "update.withheld" in site.actions()
    assert trained == ["pilot.1.train"]


async def test_a_finished_update_of_another_base_is_made_again_and_not_handed_over(
    site: AgentSite, aggregator: FakeAggregator, tmp_path: Path
) -> None:
    aggregator.answers["SubmitUpdate"] = [AggregatorUnavailable("gone")] * 99
    aggregator.offer(aggregator.make_offer(task(2)))
    site.start()
    await aggregator.wait_for("SubmitUpdate")
    await site.stop()
    lost = aggregator.manifests()[-1]
    other = tmp_path / "other.safetensors"
    found = weights.read(tmp_path / "aggregator" / "initial.safetensors")
    weights.save(other, {name: value + 1 for name, value in found.items()})
    aggregator.offers.clear()
    aggregator.offer(aggregator.make_offer(task(2), base=other))
    aggregator.history = history(2, 7)
    aggregator.answers.clear()
    before = len(aggregator.manifests())
    site.start()
    await until(lambda: len(aggregator.manifests()) > before)
    assert {manifest.base for manifest in aggregator.manifests()[before:]} != {lost.base}
    assert all(manifest.base != lost.base for manifest in aggregator.manifests()[before:]), "it was not even tried"


async def test_private_tensors_go_back_to_the_round_of_the_backup(site: AgentSite, aggregator: FakeAggregator) -> None:
    async def train(number: int, settled: int, backup_round: int | None = None) -> int:
        count = len(aggregator.manifests())
        aggregator.offer(aggregator.make_offer(task(number), settled_round=settled, backup_round=backup_round))
        await until(lambda: len(aggregator.manifests()) > count)
        await until(lambda: site.state.task_in_hand() is None)
        return aggregator.manifests()[-1].private_round

    site.start()
    assert await train(1, 0) == 0
    assert await train(2, 1) == 1
    assert await train(3, 2, backup_round=1) == 2
    assert await train(4, 3, backup_round=1) == 3
    aggregator.history = history(2, 5)
    await reconnect(site, aggregator)
    assert await train(2, 1, backup_round=1) == 1
    assert "private.went_back" in site.actions()
    # an older backup than the newest one: its round's tensors are gone
    aggregator.history = history(3, 5)
    await reconnect(site, aggregator)
    site.state.set_private_round(task().round.experiment, 2)
    (site.layout.private / "pilot" / "1.safetensors").unlink()
    assert await train(2, 1) == 0
    (*_, last) = (record for record in site.audit() if record.action == "private.went_back")
    assert "training starts anew" in last.reason


async def test_an_offer_of_a_silent_history_changes_nothing(site: AgentSite, aggregator: FakeAggregator) -> None:
    aggregator.history = None
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    heard = await aggregator.wait_for("SubmitUpdate")
    assert EPOCH_KEY not in heard.metadata
    assert site.work.epochs.history_seen() is None


async def test_a_task_that_runs_into_an_aggregator_which_was_put_back_is_kept(
    site: AgentSite, aggregator: FakeAggregator
) -> None:
    """Its calls may come before the next hello: a round that is not known says nothing yet."""
    aggregator.answers["may_upload"] = [NotFound("there is no round pilot/2")] * 99
    aggregator.offer(aggregator.make_offer(task(2)))
    site.start()
    await until(lambda: len(site.outbox) == 1 and not aggregator.answers["may_upload"][98:])
    aggregator.history = history(1, 5)
    await reconnect(site, aggregator)
    await until(lambda: "went back" in site.sessions.words)
    assert len(site.outbox) == 1
    assert site.state.task_in_hand() is not None
    assert "task.dropped" not in site.actions()


@pytest.mark.parametrize("told_by", ["the aggregator", "its history"])
async def test_training_waits_with_its_checkpoint_for_an_aggregator_that_is_made_honest(
    site: AgentSite, aggregator: FakeAggregator, told_by: str
) -> None:
    aggregator.offer(aggregator.make_offer(task(2), config="steps = 200\ndelay_s = 0.02"))
    site.start()
    await training(aggregator)
    aggregator.history = history(1, 5)
    if told_by == "the aggregator":
        aggregator.answers["Hello"] = [WentBack("this aggregator's history went back")]
    aggregator.hang_up()
    await until(lambda: "went back" in site.sessions.words)
    await until(lambda: not trainers())
    assert site.state.task_in_hand() is not None
    assert not {"task.dropped", "task.failed", "update.sent"} & set(site.actions())
    reports = len(aggregator.heard)
    aggregator.history = history(2, 7)
    await reconnect(site, aggregator)
    await until(lambda: "update.verdict" in site.actions())
    first = next(
        heard.request.done
        for heard in aggregator.heard[reports:]
        if heard.call == "ReportProgress" and heard.request.phase == "train"
    )
    assert first > 1
