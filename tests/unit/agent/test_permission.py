"""What a site does not do, and in which words it declines."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.agent_site import AgentSite, ends, task, until
from tests.support.fake_aggregator import FakeAggregator

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


async def test_a_consent_file_that_cannot_be_read_for_a_moment_is_read_again(
    site: AgentSite, aggregator: FakeAggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failures = Path.read_bytes, [OSError(errno.EMFILE, os.strerror(errno.EMFILE))] * 2

    def reading(path: Path) -> bytes:
        if failures and path == site.consent:
            raise failures.pop()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    aggregator.offer(aggregator.make_offer(task()))
    site.start()
    await until(lambda: bool(ends(site)) or aggregator.called("DeclineTask") > 0)
    assert ends(site) == [("update.verdict", "success")]
    assert "consent.denied" not in site.actions()


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
