"""A task that fails: whether another attempt makes sense, and which words leave the site."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest

from agent.config import AgentConfig, DataConfig
from agent.failure import for_the_operator
from histofed.base.errors import BadData, CannotWriteState, TooFewPatients
from histofed.base.ids import Digest
from tests.support.agent_site import LONG, AgentSite, task, training, until
from tests.support.fake_aggregator import FakeAggregator
from tests.support.processes import trainers


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


@pytest.mark.parametrize("left", [0, -10])
async def test_a_base_that_the_aggregator_has_lost_is_told_and_may_be_put_back(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """Gone, or cut while it was read."""
    offer = aggregator.make_offer(task())
    path = aggregator.store.path(offer.base.sha256)
    content, size = path.read_bytes(), aggregator.store.size(Digest(offer.base.sha256))
    path.unlink()
    if left:
        path.write_bytes(content[:left])
        monkeypatch.setattr(aggregator.store, "size", lambda _: size)
    aggregator.offer(offer)
    site.start()
    heard = await aggregator.wait_for("FailTask")
    assert heard.request.retryable
    assert "the aggregator has lost the model that it offers" in heard.request.reason
    path.write_bytes(content)
    aggregator.offer(aggregator.make_offer(task(), attempt=2))
    await aggregator.wait_for("SubmitUpdate")
    assert aggregator.called("AcceptTask") == 2


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


@pytest.mark.parametrize("place", ["first", "second", "third"])
async def test_a_place_of_any_configuration_since_the_task_began_is_not_told(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    """Offered under the first, reloaded while the model comes, so that the trainer is told the second, and once again."""

    def reload(root: str) -> None:
        site.work.config = site.config.model_copy(update={"data": DataConfig(root=tmp_path / root)})

    async def fetch(*_: object) -> None:
        reload("second")

    async def train(*_: object) -> None:
        reload("third")
        raise BadData(f"{tmp_path}/{place} cannot be listed")

    reload("first")
    monkeypatch.setattr("agent.work.fetch", fetch)
    monkeypatch.setattr("agent.work.train", train)
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    heard = await aggregator.wait_for("FailTask")
    assert heard.request.reason.endswith("The site's log says where.")


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


def test_what_a_link_leads_to_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "state").symlink_to("disk")
    error = CannotWriteState(f"{tmp_path / 'disk' / 'state.db'} is on a file system that is mounted read-only")
    config = AgentConfig(state_dir=tmp_path / "state")
    assert for_the_operator(error, config).endswith("The site's log says where.")


async def test_the_number_of_a_classs_patients_stays_at_the_site(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither it nor the site's own minimum: not in what the operator reads, nor in the record of it."""

    async def refuse(*_: object) -> NoReturn:
        raise TooFewPatients("class MSIH has tiles of 3 patients; this site requires at least 5")

    monkeypatch.setattr("agent.work.train", refuse)
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    heard = await aggregator.wait_for("FailTask")
    assert heard.request.reason == "A class has too few patients for this site's own rule. The site's log says more."
    assert not heard.request.retryable
    assert "class MSIH has tiles of 3 patients; this site requires at least 5" in caplog.text
