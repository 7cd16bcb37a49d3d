"""A site with a valid certificate that does what it must not: refused in words, and nobody else is harmed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.tasks import ANNOUNCEMENTS
from histofed.base.clock import SystemClock
from histofed.base.errors import BadData, NotAuthorised, NotFound, Stale, VersionMismatch
from histofed.base.hashing import sha256_file
from histofed.pki.authority import Authority
from histofed.pki.credentials import Credentials
from histofed.pki.keys import new_key, signing_request
from histofed.pki.signing import sign
from histofed.statements import UPDATE_TYPE, File, encode
from histofed.transport.store import owner_of
from histofed.v1 import admin_pb2, admin_pb2_grpc, rounds_pb2_grpc, types_pb2
from histofed.v1 import rounds_pb2 as wire
from histofed.weights import Array
from tests.support.federation import Federation, Sight, mean_experiment
from tests.support.hospitals import HOSTILE
from tests.support.hostile_site import HostileSite

VALUE = "mean.value"
DIMENSION = 1000
PATIENCE = 30
ALONE = f"""
[sampling]
minimum = 1
sites = ["{HOSTILE}"]
[round]
abandoned_limit = {PATIENCE}
[aggregation]
max_update_bytes = 8192
max_norm = 100.0
"""
"""Only the hostile site is asked, so a refused update abandons its round, and the next test finds the next round."""


@pytest.fixture(scope="module")
def hostile(healthy: Federation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileSite]:
    """The enrolled site without an agent, and an experiment that asks nobody else."""
    identity = healthy.site(HOSTILE) / "state/identity/agent.pem"
    with HostileSite(healthy.address, identity, tmp_path_factory.mktemp("hostile")) as site:
        site.hello()
        healthy.submit(mean_experiment("alone", 1000, extra=ALONE))
        yield site
        for _ in range(PATIENCE - _abandoned_in_a_row(healthy)):
            site.decline(site.wait_for_offer("alone"))
        end = healthy.wait_until_seen("alone", lambda sight: sight["experiment"]["state"] == "paused")
        assert "rounds in a row were abandoned" in end["experiment"]["reason"]
        healthy.cli("experiments", "cancel", "alone")


@pytest.fixture
def offer(hostile: HostileSite) -> wire.TaskOffer:
    """The next round's task, accepted."""
    found = hostile.wait_for_offer("alone")
    hostile.accept(found)
    return found


def outcome(federation: Federation, offer: wire.TaskOffer) -> tuple[str, str]:
    """How the offer's round ended: its state and the reason that the operator reads."""
    experiment, number = offer.task.split("/")[:2]

    def over(sight: Sight) -> bool:
        newest = sight["round"]
        return newest["round"] > int(number) or newest["state"] in ("committed", "abandoned")

    federation.wait_until_seen(experiment, over)
    state = federation.cli("rounds", "show", experiment, number)["round"]
    return state["state"], state["reason"]


BAD_TENSORS: Mapping[str, tuple[Mapping[str, Array], str]] = {
    "not a number": ({VALUE: np.full(DIMENSION, np.nan, np.float32)}, "not finite"),
    "infinite": ({VALUE: np.array([np.inf] + [0] * (DIMENSION - 1), np.float32)}, "not finite"),
    "another shape": ({VALUE: np.zeros(DIMENSION + 1, np.float32)}, VALUE),
    "another type": ({VALUE: np.zeros(DIMENSION, np.float64)}, VALUE),
    "another name": ({"mean.other": np.zeros(DIMENSION, np.float32)}, "mean.other"),
    "far away": ({VALUE: np.full(DIMENSION, 1e6, np.float32)}, "aggregation.max_norm"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_tensors_are_rejected(healthy: Federation, hostile: HostileSite, offer: wire.TaskOffer, kind: str) -> None:
    tensors, word = BAD_TENSORS[kind]
    verdict = hostile.send(offer, tensors)
    assert verdict.state == types_pb2.TASK_STATE_REJECTED
    assert word in verdict.reason
    state, reason = outcome(healthy, offer)
    assert state == "abandoned"
    assert verdict.reason in reason, "the operator reads what the site was told"


BAD_MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "another round": ({"round": 777}, "it is for round 777"),
    "another base": ({"base": "ab" * 32}, "started from weights abababab"),
    "another experiment": ({"experiment": "other"}, "experiment 'other'"),
    "another version of the experiment": ({"experiment_sha256": "cd" * 32}, "another version of the experiment"),
    "another site": ({"site": "north"}, "names site 'north'"),
    "another federation": ({"federation": "elsewhere"}, "federation 'elsewhere'"),
    "too much weight": ({"tiles": 10**12}, "tiles cannot be"),
    "no weight": ({"tiles": 0}, "reports none"),
    "an unknown encoding": ({"encoding": "int8"}, "encoding is 'int8'"),
}


@pytest.mark.parametrize("kind", BAD_MANIFESTS)
def test_a_manifest_that_means_something_else_is_rejected(
    healthy: Federation, hostile: HostileSite, offer: wire.TaskOffer, kind: str
) -> None:
    changes, words = BAD_MANIFESTS[kind]
    verdict = hostile.send(offer, hostile.base_of(offer), **changes)
    assert verdict.state == types_pb2.TASK_STATE_REJECTED
    assert words in verdict.reason
    assert outcome(healthy, offer)[0] == "abandoned"


def test_a_manifest_signed_by_another_key_is_rejected(
    healthy: Federation, hostile: HostileSite, offer: wire.TaskOffer
) -> None:
    foreign = _certificate_of_another_federation(hostile.name)
    manifest = hostile.manifest(offer, File("ef" * 32, 100))
    verdict = hostile.submit(offer.task, offer.attempt, sign(UPDATE_TYPE, encode(manifest), foreign))
    assert verdict.state == types_pb2.TASK_STATE_REJECTED
    assert "signature" in verdict.reason or "certificate" in verdict.reason
    assert outcome(healthy, offer)[0] == "abandoned"


def test_an_update_that_is_too_large_is_refused_before_its_first_byte(
    healthy: Federation, hostile: HostileSite, offer: wire.TaskOffer
) -> None:
    with pytest.raises(BadData, match="8193 bytes, the experiment's limit is 8192"):
        hostile.announce(offer.task, "ab" * 32, 8193)
    state, reason = outcome(healthy, offer)
    assert state == "abandoned"
    assert "aggregation.max_update_bytes" in reason


def test_a_site_cannot_fill_the_disk_with_updates_of_one_task(
    healthy: Federation, hostile: HostileSite, offer: wire.TaskOffer, tmp_path: Path
) -> None:
    for number in range(ANNOUNCEMENTS):
        (file := tmp_path / str(number)).write_bytes(bytes([number]) * 8192)
        hostile.send_bytes(offer, file)
        left = [path.name for path in (healthy.state / "blobs").glob(f"*.{owner_of(offer.task)}.*")]
        assert left == [f"{sha256_file(file)}.{owner_of(offer.task)}.received"]
    with pytest.raises(Stale, match=f"announced {ANNOUNCEMENTS} different updates in attempt 1"):
        hostile.announce(offer.task, "ab" * 32, 100)
    assert hostile.send_file(offer, file).state == types_pb2.TASK_STATE_REJECTED
    assert outcome(healthy, offer)[0] == "abandoned"


def test_bytes_must_come_before_their_manifest_and_then_count(
    healthy: Federation, hostile: HostileSite, offer: wire.TaskOffer
) -> None:
    manifest = hostile.manifest(offer, File("ef" * 32, 100))
    with pytest.raises(Stale, match="upload the update's bytes before its manifest"):
        hostile.submit(offer.task, offer.attempt, hostile.sign(manifest))
    verdict = hostile.send(offer, hostile.base_of(offer))
    assert verdict.state == types_pb2.TASK_STATE_ADMITTED
    assert outcome(healthy, offer) == ("committed", "")


def test_an_honest_site_is_not_harmed(healthy: Federation, hostile: HostileSite) -> None:
    extra = f'[sampling]\nminimum = 2\nsites = ["north", "{HOSTILE}"]'
    healthy.submit(mean_experiment("mixed", 1, extra=extra))
    found = hostile.wait_for_offer("mixed")
    hostile.accept(found)
    hostile.send(found, {VALUE: np.full(DIMENSION, np.nan, np.float32)})
    healthy.wait_until_ended("mixed")
    (state,) = healthy.cli("rounds", "list", "mixed")["rounds"]
    assert (state["state"], state["admitted"]) == ("committed", ["north"])
    assert [refusal["site"] for refusal in state["refused"]] == [HOSTILE]
    assert "not finite" in state["refused"][0]["reason"]


# --- what belongs to others -------------------------------------------------------------------------------------------


def test_anothers_task_cannot_be_touched(healthy: Federation, hostile: HostileSite, offer: wire.TaskOffer) -> None:
    task = offer.task.replace(f"/{HOSTILE}", "/north")
    attempts = {
        "AcceptTask": wire.AcceptTaskRequest(task=task, attempt=1),
        "DeclineTask": wire.DeclineTaskRequest(task=task, attempt=1, reason="so there"),
        "FailTask": wire.FailTaskRequest(task=task, attempt=1, reason="so there"),
        "ReportProgress": wire.ReportProgressRequest(task=task, attempt=1),
        "SubmitUpdate": wire.SubmitUpdateRequest(task=task, attempt=1),
    }
    for method, request in attempts.items():
        with pytest.raises(NotAuthorised, match="belongs to another site"):
            hostile.call(method, request)
    with pytest.raises(NotAuthorised, match="belongs to another site"):
        hostile.announce(task, "ab" * 32, 100)
    hostile.decline(offer)
    assert outcome(healthy, offer)[0] == "abandoned"


def test_a_task_cannot_be_answered_in_another_kind(healthy: Federation, hostile: HostileSite, offer: wire.TaskOffer) -> None:
    task = offer.task.replace("/train/", "/evaluate/")
    with pytest.raises(NotFound, match="no task of kind evaluate"):
        hostile.call("AcceptTask", wire.AcceptTaskRequest(task=task, attempt=1))
    with pytest.raises(NotFound, match="no task of kind evaluate"):
        hostile.announce(task, "ab" * 32, 100)
    hostile.decline(offer)
    assert outcome(healthy, offer)[0] == "abandoned"


def test_what_a_site_reports_cannot_harm_the_operators_view(
    healthy: Federation, hostile: HostileSite, offer: wire.TaskOffer
) -> None:
    hostile.accept(offer)
    losses = {f"loss_{number}": 1.0 for number in range(100)} | {"bad\x1b[2J": 1.0, "nan": float("nan")}
    report = wire.ReportProgressRequest(
        task=offer.task, attempt=1, phase="train\x1b[2J", done=1, total=2, losses=losses, rate=float("inf")
    )
    assert hostile.call("ReportProgress", report).wanted
    experiment, number = offer.task.split("/")[:2]
    (shown,) = healthy.cli("rounds", "show", experiment, number)["round"]["tasks"]
    assert (len(shown["losses"]), shown["rate"]) == (16, 0.0)
    assert "\x1b" not in str(shown)
    assert hostile.call("ReportProgress", wire.ReportProgressRequest(task=offer.task, attempt=1, phase=" ")).wanted
    (shown,) = healthy.cli("rounds", "show", experiment, number)["round"]["tasks"]
    assert shown["phase"] == ""
    hostile.call("FailTask", wire.FailTaskRequest(task=offer.task, attempt=1, reason="no \x1b[2J luck", retryable=False))
    state, reason = outcome(healthy, offer)
    assert (state, "\x1b" in str(reason)) == ("abandoned", False)


def test_only_the_base_of_its_own_task_can_be_read(
    healthy: Federation, hostile: HostileSite, offer: wire.TaskOffer, tmp_path: Path
) -> None:
    server = healthy.parts("alone")[0]["server"]
    with pytest.raises(NotAuthorised, match="not part of a task"):
        hostile.download(server, 4080, tmp_path / "stolen")
    hostile.decline(offer)
    assert outcome(healthy, offer)[0] == "abandoned"


def test_a_site_cannot_be_an_operator(hostile: HostileSite) -> None:
    for method, request in (
        ("ListRounds", admin_pb2.ListRoundsRequest()),
        ("CreateToken", admin_pb2.CreateTokenRequest(site="friend", ttl_s=600)),
        ("SubmitExperiment", admin_pb2.SubmitExperimentRequest(toml="")),
    ):
        with pytest.raises(NotAuthorised, match=f"may not call OperatorService/{method}: it needs an operator's"):
            hostile.call_stub(admin_pb2_grpc.OperatorServiceStub, method, request)


def test_an_operator_cannot_be_a_site(healthy: Federation, tmp_path: Path) -> None:
    folder = healthy.operator
    identity = tmp_path / "operator.pem"
    identity.touch(mode=0o600)
    identity.write_bytes(b"".join((folder / name).read_bytes() for name in ("operator.key", "operator.crt", "ca.crt")))
    with HostileSite(healthy.address, identity, tmp_path) as operator:
        for method, request in (
            ("Hello", wire.HelloRequest(version="0.1.0", instance="operator-as-site")),
            ("SubmitUpdate", wire.SubmitUpdateRequest(task="sampled/1/train/north", attempt=1)),
        ):
            with pytest.raises(NotAuthorised, match=f"may not call FleetService/{method}"):
                operator.call_stub(rounds_pb2_grpc.FleetServiceStub, method, request)


def test_an_agent_that_is_newer_than_the_aggregator_is_told_who_must_upgrade(hostile: HostileSite) -> None:
    with pytest.raises(VersionMismatch, match=r"newer than the aggregator's .*: upgrade the aggregator first"):
        hostile.hello("99.0.0")
    assert hostile.hello("0.0.1").identity.endswith(f"/site/{HOSTILE}"), "an older one is welcome"


def _abandoned_in_a_row(federation: Federation) -> int:
    """The newest rounds of the experiment that came to nothing, without the one that is open."""
    states = [one["state"] for one in federation.cli("rounds", "list", "alone")["rounds"]][:-1]
    return len(list(itertools.takewhile(lambda state: state == "abandoned", reversed(states))))


def _certificate_of_another_federation(site: str) -> Credentials:
    authority, key = Authority.create("test", SystemClock()), new_key()
    issued = authority.issue(authority.site(site), signing_request(key))
    return Credentials.make(key, issued.certificate_pem, authority.certificate_pem)
