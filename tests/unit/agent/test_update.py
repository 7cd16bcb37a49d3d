"""The update that a site signs: of the task that it was asked for, trained from the model that it was given."""

from __future__ import annotations

from histofed import weights
from histofed.base.clock import SystemClock
from histofed.base.ids import sha256
from histofed.pki.signing import verify
from histofed.statements import UPDATE_TYPE
from tests.support.agent_site import SITE, AgentSite, task, until
from tests.support.fake_aggregator import FakeAggregator
from tests.support.pki import Federation


async def test_an_offer_becomes_a_signed_update(site: AgentSite, aggregator: FakeAggregator, federation: Federation) -> None:
    offer = aggregator.make_offer(task(), extra="[aggregation]\nmax_norm = 0.5")
    aggregator.offer(offer)
    site.start()
    await aggregator.wait_for("SubmitUpdate")
    (manifest,) = aggregator.manifests()
    assert manifest.task == task()
    assert (manifest.base, manifest.experiment_sha256) == (offer.base.sha256, offer.experiment_sha256)
    assert (manifest.tiles, manifest.patients, manifest.steps, manifest.private_round) == (100, 10, 3, 0)
    assert manifest.policy_sha256 == sha256(site.consent.read_bytes())
    verify(
        aggregator.envelope(),
        ca=site.link.credentials.ca,
        payload_type=UPDATE_TYPE,
        signer=federation.authority.site(SITE),
        at=SystemClock().now(),
    )
    assert manifest.weights is not None
    with (
        weights.TensorFile(aggregator.store.path(manifest.weights.sha256)) as update,
        weights.TensorFile(aggregator.store.path(offer.base.sha256)) as base,
    ):
        assert 0 < weights.difference(update, base).norm <= 0.5
    await until(lambda: site.state.task_in_hand() is None)
    assert site.outbox.entries() == ()
    assert not list(site.layout.work.iterdir())
