"""A finished update whose file the disk does not give, or does not let go of, for a moment: it costs no training."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from agent.link import Wanted
from agent.outbox import folder_name
from histofed.base import durable
from histofed.base.errors import Stale, Unreadable
from tests.support.agent_site import SITE, AgentSite, ends, leave_update, task, until
from tests.support.fake_aggregator import FakeAggregator
from tests.support.pki import Federation


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT])
async def test_weights_that_cannot_be_read_for_a_moment_are_handed_over_a_moment_later(
    site: AgentSite, aggregator: FakeAggregator, trained: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    opened, failures = Path.open, [OSError(number, os.strerror(number))]

    def opening(path: Path, *arguments: Any, **options: Any) -> Any:
        if failures and path.match(f"outbox/{folder_name(task())}/update.safetensors"):
            raise failures.pop()
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", opening)
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: bool(ends(site)))
    assert ends(site) == [("update.verdict", "success")]
    assert trained == ["pilot.1.train"]
    assert aggregator.called("FailTask") == 0


async def unreadable(*_: Any) -> None:
    raise Unreadable("what is to be sent cannot be read now: Stale file handle")


async def test_weights_that_stay_unreadable_are_waited_for_as_long_as_their_round_is_open(
    site: AgentSite, aggregator: FakeAggregator, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site was away when the round closed: no withdrawal tells it."""
    asked = []

    async def report(*arguments: Any) -> Wanted:
        asked.append(1)
        return Wanted(len(asked) < 3, "round 1 is closed")

    monkeypatch.setattr(site.link, "upload", unreadable)
    monkeypatch.setattr(site.link, "report", report)
    aggregator.answers["SubmitUpdate"] = [Stale("round 1 is closed")]
    aggregator.offer(aggregator.make_offer(task(), config="steps = 1"))
    site.start()
    await until(lambda: "update.dropped" in site.actions())
    await until(lambda: site.state.task_in_hand() is None)
    assert len(asked) >= 3, "while the aggregator wanted it, it was tried again"
    assert trained == ["pilot.1.train"]
    assert aggregator.called("FailTask") == 0


async def test_weights_that_stay_unreadable_hold_up_no_other_task(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = federation.site(SITE)
    await leave_update(tmp_path / "site", credentials, aggregator)
    aggregator.offers.clear()
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        upload = site.link.upload

        async def uploading(path: Path, *arguments: Any) -> None:
            await (unreadable() if path.parent.name == folder_name(task()) else upload(path, *arguments))

        with monkeypatch.context() as disk:
            disk.setattr(site.link, "upload", uploading)
            site.start()
            aggregator.offer(aggregator.make_offer(task(experiment="other")))
            await until(lambda: len(ends(site)) == 1)
        await until(lambda: len(ends(site)) == 2)
        assert ends(site) == [("update.verdict", "success")] * 2
    assert [manifest.experiment for manifest in aggregator.manifests()] == ["other", "pilot"]
    assert trained == ["pilot.1.train", "other.1.train"]


@pytest.mark.parametrize("meanwhile", ["nothing", "another connection"])
async def test_an_update_that_the_disk_does_not_let_go_of_goes_a_moment_later(
    site: AgentSite, aggregator: FakeAggregator, trained: list[str], monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Its weights are unlinked, and the folder's sync fails: there is nothing to send any more, and a verdict."""
    sync, failures = durable.fsync_directory, [OSError(errno.EIO, os.strerror(errno.EIO))]

    def syncing(directory: Path) -> None:
        sync(directory)
        here = directory == site.layout.outbox / folder_name(task()) and not (directory / "update.safetensors").exists()
        if here and failures and "update.verdict" in site.actions():
            if meanwhile == "another connection":
                aggregator.hang_up()
            raise failures.pop()

    monkeypatch.setattr(durable, "fsync_directory", syncing)
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: not failures and not (site.layout.outbox / folder_name(task())).exists())
    assert ends(site) == [("update.verdict", "success")], "its verdict is told once"
    assert trained == ["pilot.1.train"]
    assert aggregator.called("FailTask") == 0
    assert aggregator.called("SubmitUpdate") == 1
