from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.base.errors import BadData, NotFound
from histofed.cli import statement_file
from histofed.pki.signing import Envelope

ENVELOPES = st.builds(Envelope, st.text(max_size=40), st.binary(max_size=200), st.binary(max_size=80), st.binary(min_size=1))


@given(ENVELOPES)
def test_an_envelope_survives_the_file(envelope: Envelope) -> None:
    assert statement_file.decode(statement_file.encode(envelope)) == envelope


def test_the_file_is_dsse_json_that_others_can_read() -> None:
    document = json.loads(statement_file.encode(Envelope("kind", b"{}", b"\x01", b"\x02")))

    assert set(document) == {"payloadType", "payload", "signatures"}
    assert base64.b64decode(document["payload"]) == b"{}"
    assert document["signatures"][0]["cert"].startswith("-----BEGIN CERTIFICATE-----")


@given(st.binary(max_size=300) | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
def test_whatever_is_no_envelope_is_bad_data(data: bytes) -> None:
    with pytest.raises(BadData, match="not a DSSE envelope"):
        statement_file.decode(data)


@pytest.mark.parametrize(
    "change",
    [
        {"signatures": []},
        {"signatures": [{}, {}]},
        {"payload": "not base64!"},
        {"payload": 7},
        {"signatures": [{"sig": "AA==", "cert": "no certificate"}]},
    ],
)
def test_a_damaged_envelope_is_bad_data(change: dict[str, object]) -> None:
    document = json.loads(statement_file.encode(Envelope("kind", b"{}", b"\x01", b"\x02"))) | change

    with pytest.raises(BadData, match="pull the model again"):
        statement_file.decode(json.dumps(document).encode())


def test_a_missing_or_huge_statement_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.statement.json"
    with pytest.raises(NotFound, match="models pull"):
        statement_file.read(path)

    path.write_bytes(b" " * (statement_file.SIZE_LIMIT + 1))
    with pytest.raises(BadData, match="larger than"):
        statement_file.read(path)
