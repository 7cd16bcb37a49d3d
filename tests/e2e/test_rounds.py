"""Four hospitals and an aggregator: what an operator gets to see of rounds that go well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from histofed.audit.verify import Head, records, verify
from histofed.weights import read
from tests.support import expected
from tests.support.federation import Federation, mean_experiment
from tests.support.hospitals import SITES

KEYS = {
    *("experiment", "round", "state", "reason", "eligible", "sampled", "admitted", "refused", "model_digest"),
    *("base_digest", "opened_at", "deadline", "committed_at", "metrics", "quorum", "enough"),
}
"""Of one round in `rounds list --json`: programs rely on them."""
SAMPLED_TOML = mean_experiment("sampled", 3, extra=f"[sampling]\nfraction = 0.6\nminimum = 2\nsites = {list(SITES)}")
EVERYBODY_TOML = mean_experiment("everybody", 1, extra=f"[sampling]\nsites = {list(SITES)}")


@pytest.fixture(scope="module")
def sampled(healthy: Federation) -> list[dict[str, Any]]:
    """The rounds of an experiment that samples three of four sites."""
    healthy.submit(SAMPLED_TOML)
    healthy.wait_until_ended("sampled")
    rounds: list[dict[str, Any]] = healthy.cli("rounds", "list", "sampled")["rounds"]
    return rounds


def test_every_round_is_committed_with_its_sample(sampled: list[dict[str, Any]]) -> None:
    assert [(one["round"], one["state"], one["refused"]) for one in sampled] == [(n, "committed", []) for n in (1, 2, 3)]
    for one in sampled:
        assert one["eligible"] == sorted(SITES)
        assert len(one["sampled"]) == 3
        assert one["admitted"] == one["sampled"]
        assert one["opened_at"] < one["committed_at"] < one["deadline"]
    assert len({tuple(one["sampled"]) for one in sampled}) > 1, "the sample is drawn anew for each round"


def test_rounds_have_exactly_the_promised_keys(sampled: list[dict[str, Any]]) -> None:
    assert [set(one) for one in sampled] == [KEYS] * 3


def test_each_round_begins_where_the_last_one_ended(sampled: list[dict[str, Any]]) -> None:
    assert [one["base_digest"] for one in sampled[1:]] == [one["model_digest"] for one in sampled[:-1]]


def test_the_models_are_what_the_recipe_says(healthy: Federation, tmp_path: Path) -> None:
    healthy.submit(EVERYBODY_TOML)
    healthy.wait_until_ended("everybody")
    assert healthy.parts("everybody") == expected.models(EVERYBODY_TOML, SITES, tmp_path)


def test_the_operator_pulls_a_model_and_verifies_it_again_offline(
    healthy: Federation, sampled: list[dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    pulled = healthy.cli("models", "pull", "sampled", "--out", str(file))
    assert pulled["verified"] and pulled["model"]["digest"] == sampled[-1]["model_digest"]
    assert read(file)["ema.value"].shape == (1000,)
    checked = healthy.cli("models", "verify", str(file), "--ca", str(healthy.operator / "ca.crt"))
    assert checked["verified"] and checked["model"] == sampled[-1]["model_digest"]
    assert [share["site"] for share in checked["statement"]["contributions"]] == sampled[-1]["admitted"]

    file.write_bytes(file.read_bytes()[:-4] + b"fake")
    refused = healthy.cli("models", "verify", str(file), "--ca", str(healthy.operator / "ca.crt"), code=65)
    assert refused["error"]["kind"] == "DigestMismatch"


def test_the_journals_verify_offline_and_tell_the_rounds(healthy: Federation, sampled: list[dict[str, Any]]) -> None:
    folders = {"aggregator": healthy.state / "journal"} | {site: healthy.site(site) / "state/journal" for site in SITES}
    for folder in folders.values():
        report = verify(folder)
        assert report.ok, report
    told = [record.action for record in records(folders["aggregator"]) if record.subject.get("round") == "sampled/1"]
    assert told[:2] == ["round.planned", "round.opened"]
    assert {"round.accepted", "round.announced", "round.received", "round.admitted"} == set(told[2:-1])
    assert told[-1] == "round.aggregated"
    site = sampled[0]["sampled"][0]
    told = [
        record.action
        for record in records(folders[site])
        if (record.subject.get("experiment"), record.subject.get("round")) == ("sampled", 1)
    ]
    assert told == ["task.offered", "consent.allowed", "task.trained", "update.sent", "update.verdict"]


@pytest.mark.parametrize("service", ["", "liveness", "startup", "histofed.v1.FleetService"])
def test_probes_find_the_aggregator_well(healthy: Federation, service: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{healthy.ports['health']}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def since_its_start(federation: Federation) -> int:
    """Records that the aggregator has written in this life, whichever of its parts wrote them."""
    actions = [record.action for record in records(federation.state / "journal")]
    return actions[::-1].index("aggregator.started") + 1


def test_prometheus_reads_what_happened(healthy: Federation, sampled: list[dict[str, Any]]) -> None:
    before = since_its_start(healthy)
    values = healthy.measured()
    assert before <= values["histofed_journal_records_total"] <= since_its_start(healthy)
    assert values['histofed_rounds_total{state="committed"}'] >= len(sampled)
    assert values['histofed_tasks_total{state="admitted"}'] >= 9
    expiries = {f'histofed_site_certificate_expiry_seconds{{site="{site}"}}' for site in SITES}
    healthy.wait_until_measured(
        lambda values: values.get("histofed_sites_connected") == len(SITES) and expiries <= values.keys()
    )


def test_status_names_the_federation_and_its_sites(healthy: Federation) -> None:
    status = healthy.cli("status")
    assert (status["federation"], status["sites_connected"], status["conditions"]) == ("test", 4, [])
    noted = Head.parse(status["journal_head"])
    assert noted.sequence == status["journal_records"]
    assert verify(healthy.state / "journal", noted).ok
    connected = {site["name"] for site in healthy.cli("sites", "list")["sites"] if site["connected"]}
    assert connected == set(SITES)
