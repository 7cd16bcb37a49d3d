"""A record and its line are the same thing in two forms."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histofed.audit.record import GENESIS, OUTCOMES, AuditRecord, Who, parse_line
from histofed.base.errors import BadData
from histofed.base.ids import Json, canonical
from histofed.telemetry.context import round_parent

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
entries = st.builds(
    AuditRecord,
    sequence=st.integers(1, 2**40),
    recorded=texts,
    monotonic=st.integers(0, 2**50),
    where=texts,
    action=texts,
    who=st.builds(Who, texts, st.none() | texts),
    subject=st.dictionaries(texts, values, max_size=4),
    outcome=st.sampled_from(OUTCOMES),
    reason=texts,
    trace=st.none() | st.builds(round_parent, st.just("crc"), st.integers(1, 1000)),
)


@given(entries, st.binary(min_size=32, max_size=32))
def test_a_line_is_read_back_as_the_record(record: AuditRecord, previous: bytes) -> None:
    line, own = record.line(previous.hex())
    sealed = parse_line(line)
    assert (sealed.record, sealed.previous, sealed.hash) == (record, previous.hex(), own)
    assert b"\n" not in line


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_refused(noise: bytes) -> None:
    with pytest.raises(BadData):
        parse_line(noise)


def test_the_hash_can_be_computed_by_anyone() -> None:
    record = AuditRecord(1, "2026-01-01T00:00:00.000000Z", 5, "a", "x.y", Who("system"), {"n": 1}, "success", "", None)
    document = json.loads(record.line(GENESIS)[0])
    own = document.pop("hash")
    plain = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert own == hashlib.sha256(bytes(32) + plain).hexdigest()


def test_deep_nesting_is_refused_in_words() -> None:
    with pytest.raises(BadData):
        parse_line(b"[" * 200_000)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("outcome", "maybe"),
        ("sequence", "1"),
        ("who", None),
        ("subject", []),
        ("trace", {"trace": "0", "span": "0"}),
        ("extra", 1),
    ],
)
def test_a_forged_line_with_a_right_hash_and_a_wrong_field_is_refused(field: str, value: Json) -> None:
    record = AuditRecord(1, "", 0, "", "x", Who("system"), {}, "success", "", None)
    document = {**record.document(GENESIS), field: value}
    own = hashlib.sha256(bytes(32) + canonical(document)).hexdigest()
    with pytest.raises(BadData):
        parse_line(canonical({**document, "hash": own}))


def test_a_number_that_is_not_finite_is_refused() -> None:
    record = AuditRecord(1, "", 0, "", "x", Who("system"), {"loss": math.inf}, "success", "", None)
    with pytest.raises(BadData, match="not finite"):
        record.line(GENESIS)
