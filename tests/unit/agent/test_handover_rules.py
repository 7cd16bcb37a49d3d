"""An update that waits leaves the site under the hospital's rules of that day, or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from agent.link import Wanted
from agent.outbox import folder_name
from histofed.base.errors import AggregatorUnavailable, TryLater
from histofed.base.ids import sha256
from histofed.transport.backoff import Backoff
from tests.support.agent_site import SITE, AgentSite, ends, leave_update, task, until
from tests.support.fake_aggregator import FakeAggregator
from tests.support.federation import CONSENT
from tests.support.pki import Federation

REMARK: Final = CONSENT + "# read again by the ethics board\n"


async def test_an_update_that_waits_is_not_sent_when_the_consent_is_taken_back(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator
) -> None:
    credentials = federation.site(SITE)
    await leave_update(tmp_path / "site", credentials, aggregator)
    async with AgentSite(tmp_path / "site", credentials, aggregator.address, consent="") as site:
        sent = site.actions().count("update.sent")
        site.start()
        await aggregator.wait_for("DeclineTask")
        await until(lambda: not list(site.layout.work.iterdir()))
        assert site.outbox.entries() == ()
        assert site.actions().count("update.sent") == sent
        withheld = next(record for record in site.audit() if record.action == "update.withheld")
        assert "the consent file has changed" in withheld.reason
    assert aggregator.manifests() == []


@pytest.mark.parametrize("room", ["here", "gone"])
async def test_an_update_that_another_consent_file_allows_too_is_sent_under_that_one(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator, trained: list[str], room: str
) -> None:
    credentials = federation.site(SITE)
    await leave_update(tmp_path / "site", credentials, aggregator)
    async with AgentSite(tmp_path / "site", credentials, aggregator.address, consent=REMARK) as site:
        if room == "gone":
            shutil.rmtree(site.layout.work / folder_name(task()))
        site.start()
        await until(lambda: "update.verdict" in site.actions())
        policy = sha256(site.consent.read_bytes())
    (manifest,) = aggregator.manifests()
    assert manifest.policy_sha256 == policy
    assert len(trained) == (1 if room == "here" else 2)


@pytest.mark.parametrize("minimum", [5, 50])
@pytest.mark.parametrize("room", ["here", "gone"])
async def test_an_update_that_waits_is_not_sent_when_more_patients_are_asked_for(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator, trained: list[str], room: str, minimum: int
) -> None:
    """It is trained again: the training under the stricter rule says whether there are so many, in each class."""
    credentials = federation.site(SITE)
    await leave_update(tmp_path / "site", credentials, aggregator)
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        site.work.config = site.config.model_copy(update={"minimum_patients": minimum})
        if room == "gone":
            shutil.rmtree(site.layout.work / folder_name(task()))
        site.start()
        await until(lambda: "update.verdict" in site.actions())
        (withheld,) = (r for r in site.audit() if r.action == ("update.withheld" if room == "here" else "update.dropped"))
        assert "minimum_patients" in withheld.reason
    assert len(aggregator.manifests()) == 1
    assert len(trained) == 2


@pytest.mark.parametrize("minimum", [1, 2])
async def test_an_update_of_a_release_that_kept_no_minimum_beside_it_is_sent_where_any_number_will_do(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator, trained: list[str], minimum: int
) -> None:
    """As such a release's backup leaves it: without the folder of its task."""
    credentials = federation.site(SITE)
    entry = await leave_update(tmp_path / "site", credentials, aggregator)
    file = entry.weights.with_name("manifest.json")
    document = json.loads(file.read_bytes())
    assert document.pop("minimum_patients") == 2
    file.write_text(json.dumps(document))
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        site.work.config = site.config.model_copy(update={"minimum_patients": minimum})
        shutil.rmtree(site.layout.work / folder_name(task()))
        site.start()
        await until(lambda: "update.verdict" in site.actions())
        dropped = [record.reason for record in site.audit() if record.action == "update.dropped"]
    assert dropped == (["nothing tells under which minimum_patients this was trained"] if minimum > 1 else [])
    assert len(trained) == minimum


async def test_a_site_may_change_its_mind_while_it_hands_an_update_over(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    async def upload(*_: object) -> None:
        tries.append(1)
        site.consent.write_text("")
        raise TryLater("the aggregator has been busy for a while")

    monkeypatch.setattr(site.link, "upload", upload)
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await aggregator.wait_for("DeclineTask")
    assert len(tries) == 1
    await until(lambda: site.state.task_in_hand() is None)
    assert site.outbox.entries() == ()
    assert aggregator.manifests() == []


@pytest.mark.parametrize("consent", ["", REMARK])
async def test_of_an_update_that_was_admitted_before_the_consent_changed_the_verdict_is_asked_for(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch, consent: str
) -> None:
    """Its answer was lost; that it was withheld would be untrue in the hospital's journal. No byte of it goes again."""
    uploads: list[Path] = []
    upload, submit = site.link.upload, site.link.submit

    async def uploading(path: Path, *arguments: Any) -> None:
        uploads.append(path)
        await upload(path, *arguments)

    async def report(*_: Any) -> Wanted:
        return Wanted(False, "the task is admitted")

    async def lost(*_: Any) -> None:
        monkeypatch.setattr(site.link, "submit", submit)
        monkeypatch.setattr(site.link, "report", report)
        site.consent.write_text(consent)
        raise AggregatorUnavailable("the connection was cut")

    monkeypatch.setattr(site.link, "upload", uploading)
    monkeypatch.setattr(site.link, "submit", lost)
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: site.state.task_in_hand() is None and bool(ends(site)))
    assert site.actions()[-2:] == ["update.sent", "update.verdict"]
    assert ends(site) == [("update.verdict", "success")]
    assert len(uploads) == 1


async def test_an_update_that_the_aggregator_waits_for_still_is_not_submitted_again_when_the_consent_changed(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = []

    async def lost(*_: Any) -> None:
        submitted.append(1)
        site.consent.write_text("")
        raise AggregatorUnavailable("it never arrived")

    monkeypatch.setattr(site.link, "submit", lost)
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await aggregator.wait_for("DeclineTask")
    assert len(submitted) == 1
    withheld = next(record for record in site.audit() if record.action == "update.withheld")
    assert "the consent file has changed" in withheld.reason
    assert "it was submitted before, and the aggregator may have it" in withheld.reason


def fail_to_read(disk: pytest.MonkeyPatch, file: Path, number: int, times: int) -> None:
    """The next reads of the file fail with that errno."""
    read, failures = Path.read_bytes, [OSError(number, os.strerror(number))] * times

    def reading(path: Path) -> bytes:
        if failures and path == file:
            raise failures.pop()
        return read(path)

    disk.setattr(Path, "read_bytes", reading)


@pytest.mark.parametrize("room", ["here", "gone"])
async def test_an_update_waits_while_the_consent_file_cannot_be_read_for_a_moment(
    tmp_path: Path,
    federation: Federation,
    aggregator: FakeAggregator,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
    room: str,
) -> None:
    credentials = federation.site(SITE)
    await leave_update(tmp_path / "site", credentials, aggregator)
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        if room == "gone":
            shutil.rmtree(site.layout.work / folder_name(task()))
        fail_to_read(monkeypatch, site.consent, errno.ESTALE, 2)
        site.start()
        await until(lambda: bool(ends(site)))
        assert ends(site) == [("update.verdict", "success")]
        assert "update.withheld" not in site.actions()
    assert len(trained) == 1


async def test_an_update_is_kept_with_its_training_where_the_consent_file_cannot_be_read_at_its_offer_either(
    tmp_path: Path,
    federation: Federation,
    aggregator: FakeAggregator,
    trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    credentials = federation.site(SITE)
    await leave_update(tmp_path / "site", credentials, aggregator)
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        for module in ("agent.handover", "agent.permission"):
            monkeypatch.setattr(f"{module}.TRANSFER", Backoff(attempts=0))
        monkeypatch.setattr("agent.patience.REST_S", 0.0)
        fail_to_read(monkeypatch, site.consent, errno.ESTALE, 2)
        site.start()
        told = await aggregator.wait_for("FailTask")
        assert told.request.retryable
        assert "the consent file cannot be read now" in told.request.reason
        aggregator.offer(aggregator.make_offer(task(), attempt=2))
        await until(lambda: bool(ends(site)))
        assert ends(site) == [("update.verdict", "success")]
        assert "consent.denied" not in site.actions()
    assert len(trained) == 1


async def test_an_update_is_withheld_with_the_reason_that_the_consent_file_cannot_be_used(
    tmp_path: Path, federation: Federation, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = federation.site(SITE)
    await leave_update(tmp_path / "site", credentials, aggregator)
    async with AgentSite(tmp_path / "site", credentials, aggregator.address) as site:
        fail_to_read(monkeypatch, site.consent, errno.EIO, 99)
        site.start()
        await aggregator.wait_for("DeclineTask")
        withheld = next(record for record in site.audit() if record.action == "update.withheld")
        assert withheld.reason == "the consent file cannot be used, so nothing is allowed"
    assert aggregator.manifests() == []
