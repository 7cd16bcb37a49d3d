"""What is signed: one byte form, every field, nothing else; a document that is nearly right is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histofed import statements
from histofed.base.errors import BadData
from histofed.base.ids import RoundKey, TaskKey, canonical, experiment_id, sha256, site_id
from histofed.statements import (
    Contribution,
    File,
    ModelStatement,
    UpdateManifest,
    decode_model,
    decode_update,
    encode,
    outline,
)

MANIFEST = UpdateManifest(
    federation="test.example",
    experiment="crc",
    experiment_sha256=sha256(b"experiment"),
    round=3,
    kind="train",
    site="north-clinic",
    attempt=1,
    base=sha256(b"base"),
    encoding="float32",
    weights=File(sha256(b"weights"), 4096),
    tiles=640,
    patients=12,
    steps=50,
    metrics={"loss": 0.5, "update_norm": 1e-300},
    private_round=2,
    policy_sha256=sha256(b"policy"),
    created_at="2026-01-01T00:00:00.000000Z",
)
MODEL = ModelStatement(
    federation="test.example",
    experiment="crc",
    experiment_sha256=sha256(b"experiment"),
    recipe="gan",
    round=3,
    base=sha256(b"model before"),
    parts={"shared": File(sha256(b"shared"), 10), "server": File(sha256(b"server"), 7)},
    release="server",
    strategy="fedavg",
    contributions=[Contribution("north-clinic", sha256(b"w"), 0.25)],
)


def changed(**changes: Any) -> bytes:
    return canonical(asdict(MANIFEST) | changes)


def test_what_is_encoded_is_decoded() -> None:
    assert decode_update(encode(MANIFEST)) == MANIFEST
    assert decode_model(encode(MODEL)) == MODEL
    without = replace(MANIFEST, weights=None)
    assert decode_update(encode(without)) == without


def test_the_signed_bytes_do_not_change_between_releases() -> None:
    assert sha256(encode(MANIFEST)) == "269237e442e9e1c338ce4201371ba2d01b195a98c156b3e85ed097c1d8a07f2f"
    assert statements.name_of(MODEL) == "9a5065df83eca3aa15c0ad009b23f469084e094db0c5a3d759779cb400270866"


def test_a_signature_covers_the_whole_meaning() -> None:
    signed = set(json.loads(encode(MANIFEST)))
    assert signed >= {"experiment", "round", "kind", "site", "base", "weights", "encoding", "attempt", "federation"}
    assert signed == {field.name for field in fields(UpdateManifest)}


def test_the_name_of_a_model_depends_on_every_field_and_on_no_clock() -> None:
    names = {statements.name_of(MODEL)}
    for field, value in asdict(MODEL).items():
        other = {int: value + 1 if isinstance(value, int) else 0, str: f"{value}x", dict: {}, list: []}[type(value)]
        names.add(sha256(canonical(asdict(MODEL) | {field: other})))
    assert len(names) == 1 + len(fields(ModelStatement))
    assert not any("time" in field.name or field.name.endswith("_at") for field in fields(ModelStatement))


def test_a_manifest_names_the_task_it_answers() -> None:
    assert MANIFEST.task == TaskKey(RoundKey(experiment_id("crc"), 3), "train", site_id("north-clinic"))


def test_as_json_is_the_signed_document() -> None:
    assert statements.as_json(MODEL) == json.loads(encode(MODEL))


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "update manifest cannot be read: document"),
        (b"\xff\xfe", "update manifest cannot be read: document"),
        (b"[" * 5000, "update manifest cannot be read: document"),
        (b"null", "update manifest cannot be read"),
        (changed(surprise=1), "surprise: Unexpected keyword argument"),
        (canonical({key: value for key, value in asdict(MANIFEST).items() if key != "site"}), "site: Field required"),
        (changed(round="3"), "round: Input should be a valid integer"),
        (changed(round=True), "round: Input should be a valid integer"),
        (changed(tiles=1.5), "tiles: Input should be a valid integer"),
        (changed(site=7), "site: Input should be a valid string"),
        (changed(metrics={"loss": "low"}), "metrics.loss: Input should be a valid number"),
        (changed(weights={"sha256": "../../etc/passwd", "bytes": 1}), "is not a SHA-256 digest"),
        (changed(weights={"sha256": "0" * 64, "bytes": -1}), "a file's length is negative"),
        (changed(weights={"sha256": "0" * 64, "bytes": 10**30}), "a file's length is negative or above"),
        (changed(tiles=-1), "a count that is negative"),
        (changed(tiles=10**30), "a count that is negative or above"),
        (changed(patients=-1), "a count that is negative"),
        (changed(steps=-1), "a count that is negative"),
        (encode(MODEL), "update manifest cannot be read"),
        (encode(MANIFEST) + b"\n", "not in canonical form"),
        (json.dumps(asdict(MANIFEST), sort_keys=True).encode(), "not in canonical form"),
        (encode(MANIFEST).replace(b'"round":3', b'"round":4,"round":3'), "not in canonical form"),
        (encode(MANIFEST).replace(b"0.5", b"0.50"), "not in canonical form"),
        (encode(MANIFEST).replace(b"0.5", b"NaN"), "finite|cannot be read"),
        (encode(MANIFEST).replace(b"0.5", b"1e999"), "finite|cannot be read"),
        (encode(MANIFEST) + b" " * statements.SIZE_LIMIT, "larger than 1048576 bytes"),
    ],
)
def test_a_document_that_is_nearly_right_is_refused(payload: bytes, words: str) -> None:
    with pytest.raises(BadData, match=words):
        decode_update(payload)


def test_what_a_document_calls_its_fields_is_told_in_few_words() -> None:
    with pytest.raises(BadData) as caught:
        decode_update(changed(**{"\x1b[2Jfinished" + "x" * 60_000: 1}))
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_numbers_that_are_not_finite_are_not_signed() -> None:
    with pytest.raises(BadData, match="not finite cannot be signed"):
        encode(replace(MANIFEST, metrics={"loss": float("nan")}))


@given(place=st.integers(0, 2000), flip=st.integers(1, 255))
@settings(max_examples=300)
def test_a_changed_byte_is_refused_or_another_meaning(place: int, flip: int) -> None:
    payload = bytearray(encode(MANIFEST))
    payload[place % len(payload)] ^= flip
    try:
        found = decode_update(bytes(payload))
    except BadData:
        return
    assert found != MANIFEST
    assert encode(found) == payload


@given(payload=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*asdict(MODEL), "x"]), inner, max_size=12),
).map(lambda document: json.dumps(document).encode()) | st.binary(max_size=80))  # fmt: skip
def test_anything_else_is_refused_and_nothing_else_happens(payload: bytes) -> None:
    for decode in (decode_update, decode_model):
        with pytest.raises(BadData):
            decode(payload)


def test_an_outline_is_what_the_statement_says() -> None:
    found = outline(encode(MODEL))

    assert (found.base, found.parts, found.release) == (MODEL.base, MODEL.parts, MODEL.release)


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b"\xff", b'{"parts": [], "base": "", "release": ""}'])
def test_what_is_no_statement_has_no_outline(payload: bytes) -> None:
    with pytest.raises(BadData, match="restore"):
        outline(payload)
