"""What may not enter a round, and the sentence that says why; no change to a manifest gets through unnoticed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aggregator.admission import COUNT_LIMIT, Expected, check_manifest, open_manifest, weight_of
from aggregator.inspection import TOLERANCE, check_tensors
from histofed import statements, weights
from histofed.base.clock import FakeClock, iso
from histofed.base.errors import BadData, HistofedError, NotAuthorised, Stale, TooLarge, TryLater
from histofed.base.ids import ExperimentId, RoundKey, SiteId, TaskKey, sha256
from histofed.pki.credentials import Credentials
from histofed.pki.signing import Envelope, sign
from histofed.statements import File, UpdateManifest
from histofed.weights import Array
from tests.support.failing_disk import fail_from
from tests.support.pki import Federation

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OTHER = sha256(b"something else")
EXPECTED = Expected(
    federation="test.example",
    task=TaskKey(RoundKey(ExperimentId("crc"), 7), "train", SiteId("north-clinic")),
    attempt=2,
    experiment_sha256=sha256(b"the experiment file"),
    base=sha256(b"the base"),
    encoding="float32",
    weights="tiles",
    max_update_bytes=1000,
)
MANIFEST = UpdateManifest(
    federation="test.example",
    experiment="crc",
    experiment_sha256=EXPECTED.experiment_sha256,
    round=7,
    kind="train",
    site="north-clinic",
    attempt=2,
    base=EXPECTED.base,
    encoding="float32",
    weights=File(sha256(b"the update"), 1000),
    tiles=640,
    patients=12,
    steps=50,
    metrics={"loss": 0.5},
    private_round=6,
    policy_sha256=sha256(b"the policy"),
    created_at=iso(NOW),
)

# -- the manifest ------------------------------------------------------------------------------------------------------


def test_what_was_asked_for_may_enter() -> None:
    check_manifest(MANIFEST, EXPECTED)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"federation": "other.example"}, NotAuthorised, "for federation 'other.example', this is 'test.example'"),
        ({"site": "south-clinic"}, NotAuthorised, "names site 'south-clinic'; a site answers only for itself"),
        ({"experiment": "other"}, BadData, "for experiment 'other'"),
        ({"experiment_sha256": OTHER}, BadData, "trained another version of the experiment file"),
        ({"round": 6}, Stale, "for round 6; the round asked for is 7"),
        ({"round": 8}, Stale, "for round 8; the round asked for is 7"),
        ({"kind": "evaluate"}, BadData, "answers a task of kind 'evaluate', the task is of kind 'train'"),
        ({"attempt": 1}, Stale, "of attempt 1; attempt 2 is the one in hand"),
        ({"attempt": 3}, Stale, "of attempt 3; attempt 2 is the one in hand"),
        ({"base": OTHER}, BadData, rf"started from weights {OTHER[:12]}\.\.\..* must download them and train again"),
        ({"encoding": "int8"}, BadData, "encoding is 'int8', the experiment asks for 'float32'"),
        ({"encoding": "bfloat16-delta"}, BadData, "encoding is 'bfloat16-delta', the experiment asks for 'float32'"),
        ({"weights": None}, BadData, "has no weights"),
        ({"weights": File(OTHER, 1001)}, TooLarge, r"weights are 1001 bytes, the experiment allows 1000 \(aggregation"),
        ({"tiles": 0}, BadData, "counts by tiles, and the site reports none"),
        ({"tiles": -1}, BadData, "-1 tiles cannot be"),
        ({"tiles": COUNT_LIMIT + 1}, BadData, "1000000001 tiles cannot be"),
        ({"patients": -1}, BadData, "-1 patients cannot be"),
        ({"steps": -1}, BadData, "-1 steps cannot be"),
        ({"private_round": 7}, BadData, "private state is of round 7, which is not before round 7"),
        ({"private_round": -1}, BadData, "private state is of round -1"),
        ({"policy_sha256": "a/../b"}, BadData, "consent policy's digest or the time"),
        ({"created_at": "yesterday"}, BadData, "consent policy's digest or the time"),
    ],
)
def test_anything_else_is_refused_in_words(changes: dict[str, Any], error: type[HistofedError], words: str) -> None:
    with pytest.raises(error, match=f"the update for crc/7/train/north-clinic is refused: .*{words}") as caught:
        check_manifest(replace(MANIFEST, **changes), EXPECTED)
    assert type(caught.value) is error


@pytest.mark.parametrize(("rule", "needed"), [("tiles", "tiles"), ("patients", "patients"), ("uniform", None)])
def test_only_the_count_that_weighs_must_be_there(rule: str, needed: str | None) -> None:
    expected = replace(EXPECTED, weights=rule)
    for field, manifest in (("tiles", replace(MANIFEST, tiles=0)), ("patients", replace(MANIFEST, patients=0))):
        if field == needed:
            with pytest.raises(BadData, match=f"counts by {rule}, and the site reports none"):
                check_manifest(manifest, expected)
        else:
            check_manifest(manifest, expected)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (
            {"distance": 1.0},
            r"weighs by metric 'loss', and the site reports distance \(aggregation\.options\.train_loss_key",
        ),
        ({}, "weighs by metric 'loss', and the site reports none"),
        ({"loss": -0.5}, "weighs by 'loss', which is -0.5; it must be between 0 and"),
        ({"loss": 1e60}, "weighs by 'loss', which is 1e\\+60; it must be between 0 and"),
    ],
)
def test_a_loss_that_cannot_be_weighed_by_costs_its_site_alone(metrics: dict[str, float], words: str) -> None:
    unweighable = replace(MANIFEST, metrics=metrics)
    check_manifest(unweighable, EXPECTED)

    with pytest.raises(BadData, match=words):
        check_manifest(unweighable, replace(EXPECTED, loss="loss"))
    check_manifest(MANIFEST, replace(EXPECTED, loss="loss"))


def test_what_an_update_counts_by() -> None:
    assert [weight_of(MANIFEST, rule) for rule in ("tiles", "patients", "uniform")] == [640, 12, 1]
    with pytest.raises(BadData, match="cannot be weighted by 'beds'"):
        weight_of(MANIFEST, "beds")


def test_an_evaluation_may_come_without_weights() -> None:
    task = TaskKey(EXPECTED.task.round, "evaluate", EXPECTED.task.site)
    check_manifest(replace(MANIFEST, kind="evaluate", weights=None), replace(EXPECTED, task=task))


FREE = {"patients", "steps", "metrics", "tiles", "private_round", "policy_sha256", "created_at", "weights"}
"""Fields that a site fills in; any other must be what was offered."""
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=70), st.just({}), st.just([]),
    st.sampled_from(["evaluate", "tiles", OTHER, sha256(b""), "../../etc", "7", "north-clinic "]),
)  # fmt: skip


@given(field=st.sampled_from(sorted(asdict(MANIFEST))), value=VALUES)
@settings(max_examples=400)
def test_a_changed_manifest_never_passes_as_the_one_that_was_asked_for(field: str, value: object) -> None:
    document = asdict(MANIFEST) | {field: value}
    assume(document != asdict(MANIFEST))
    try:
        payload = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        manifest = statements.decode_update(payload)
        check_manifest(manifest, EXPECTED)
    except HistofedError:
        return
    assert field in FREE, f"{field} = {value!r} was admitted"
    assert 0 < manifest.tiles <= COUNT_LIMIT and 0 <= manifest.private_round < 7
    assert manifest.weights is not None and 0 <= manifest.weights.bytes <= 1000


# -- the signature -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def federation() -> Federation:
    return Federation("test.example", FakeClock(NOW))


@pytest.fixture(scope="module")
def north(federation: Federation) -> Credentials:
    return federation.site("north-clinic")


def opened(envelope: Envelope, north: Credentials, at: datetime = NOW, expected: Expected = EXPECTED) -> UpdateManifest:
    return open_manifest(envelope, ca=north.ca, signer=north.identity, at=at, expected=expected)


def envelope_of(credentials: Credentials, payload_type: str = statements.UPDATE_TYPE) -> Envelope:
    return sign(payload_type, statements.encode(MANIFEST), credentials)


def test_a_manifest_signed_by_its_site_is_opened(north: Credentials) -> None:
    assert opened(envelope_of(north), north) == MANIFEST


def test_a_signature_of_another_site_does_not_count(federation: Federation, north: Credentials) -> None:
    with pytest.raises(NotAuthorised, match=r"signed by .*/site/south-clinic, it must be signed by .*/site/north-clinic"):
        opened(envelope_of(federation.site("south-clinic")), north)


def test_a_site_cannot_answer_the_task_of_another(federation: Federation) -> None:
    south = federation.site("south-clinic")
    with pytest.raises(NotAuthorised, match=r"/site/south-clinic cannot answer crc/7/train/north-clinic"):
        opened(envelope_of(south), south)


def test_an_operator_named_like_a_site_is_not_the_site(federation: Federation) -> None:
    operator = federation.operator("north-clinic")
    with pytest.raises(NotAuthorised, match=r"/operator/north-clinic cannot answer"):
        opened(envelope_of(operator), operator)


def test_a_certificate_of_another_authority_does_not_count(north: Credentials) -> None:
    foreign = Federation("test.example", FakeClock(NOW)).site("north-clinic")
    with pytest.raises(NotAuthorised, match="not issued by this federation's CA"):
        opened(envelope_of(foreign), north)


def test_an_expired_certificate_does_not_count(north: Credentials) -> None:
    with pytest.raises(NotAuthorised, match="was not valid at"):
        opened(envelope_of(north), north, at=NOW + timedelta(days=400))


def test_a_model_statement_is_not_an_update(north: Credentials) -> None:
    with pytest.raises(BadData, match=r"of type 'application/vnd\.histofed\.model"):
        opened(envelope_of(north, statements.MODEL_TYPE), north)


def test_a_signed_manifest_of_another_round_is_still_refused(north: Credentials) -> None:
    later = replace(EXPECTED, task=replace(EXPECTED.task, round=RoundKey(ExperimentId("crc"), 8)))
    with pytest.raises(Stale, match="for round 7; the round asked for is 8"):
        opened(envelope_of(north), north, expected=later)


@pytest.fixture(scope="module")
def sealed(north: Credentials) -> Envelope:
    return envelope_of(north)


# a negative serial number is only warned about by today's cryptography
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(field=st.sampled_from(["payload", "signature", "certificate"]), place=st.integers(0, 2000), flip=st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_no_byte_of_an_envelope_can_be_changed(
    sealed: Envelope, north: Credentials, field: str, place: int, flip: int
) -> None:
    whole = bytearray(getattr(sealed, field))
    whole[place % len(whole)] ^= flip
    with pytest.raises((BadData, NotAuthorised)):
        opened(Envelope(**asdict(sealed) | {field: bytes(whole)}), north)


# -- the tensors -------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    weights.save(path, {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 3), np.float32)})
    return path


def update(base: Path, **changes: Array) -> Path:
    path = base.with_name("update")
    weights.save(path, weights.read(base) | changes)
    return path


def test_the_norm_runs_over_all_tensors(base: Path) -> None:
    moved = update(base, a=np.arange(4, dtype=np.float32) + np.float32(1), b=np.full((2, 3), 3, np.float32))
    assert check_tensors(moved, base, 6) == pytest.approx((4 * 1 + 6 * 4) ** 0.5)


def test_an_update_that_equals_its_base_may_enter(base: Path) -> None:
    assert check_tensors(update(base), base, 1e-9) == 0.0


def test_the_bound_is_kept_but_for_rounding(base: Path) -> None:
    moved = update(base, a=np.arange(4, dtype=np.float32) + np.float32(1))
    assert check_tensors(moved, base, 2 / (1 + TOLERANCE / 2)) == 2.0
    with pytest.raises(BadData, match=r"its norm is 2, the experiment allows 1\.99 \(aggregation\.max_norm\)"):
        check_tensors(moved, base, 1.99)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(base: Path, value: float) -> None:
    broken = np.array([0, 1, value, 3], np.float32)
    with pytest.raises(BadData, match="not finite in 1 of 2 tensors, the first is 'a': training diverged at the site"):
        check_tensors(update(base, a=broken), base, 1e30)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"a": np.zeros(5, np.float32)}, r"tensor 'a' is F32\[5\] where the model has F32\[4\]"),
        ({"b": np.zeros((3, 2), np.float32)}, r"tensor 'b' is F32\[3, 2\] where the model has F32\[2, 3\]"),
        ({"a": np.zeros(4, np.float64)}, r"tensor 'a' is F64\[4\] where the model has F32\[4\]"),
        ({"c": np.zeros(1, np.float32)}, "tensor 'c' is unknown to the model"),
    ],
)
def test_tensors_of_another_model_are_refused(base: Path, changes: dict[str, Array], words: str) -> None:
    with pytest.raises(BadData, match=words):
        check_tensors(update(base, **changes), base, 1e9)


def test_a_missing_tensor_is_refused(base: Path) -> None:
    path = base.with_name("update")
    weights.save(path, {"a": np.zeros(4, np.float32)})
    with pytest.raises(BadData, match="tensor 'b' is missing from the model"):
        check_tensors(path, base, 1e9)


def test_a_file_that_is_no_safetensors_file_is_refused(base: Path) -> None:
    path = base.with_name("update")
    path.write_bytes(b"\x80\x04\x95 a pickle, perhaps")
    with pytest.raises(BadData, match="not a safetensors file"):
        check_tensors(path, base, 1e9)


@pytest.mark.parametrize("name", ["base", "update"])
def test_a_disk_of_ours_that_fails_is_no_verdict(base: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = update(base)
    struck = base.with_name(name)
    fail_from(monkeypatch, struck, struck.stat().st_size - 4)
    with pytest.raises(TryLater, match="tensor 'b' cannot be read: Input/output error"):
        check_tensors(path, base, 1e9)


def test_a_base_that_is_damaged_or_gone_is_no_verdict(base: Path) -> None:
    path = update(base)
    base.write_bytes(base.read_bytes()[:-1])
    for words in ("the base model cannot be used: damaged", "the base model cannot be read: No such file"):
        with pytest.raises(HistofedError, match=words) as caught:
            check_tensors(path, base, 1e9)
        assert not isinstance(caught.value, BadData)
        base.unlink(missing_ok=True)
