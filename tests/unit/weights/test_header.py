"""What a header must be before it is believed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histofed.base.errors import BadData
from histofed.weights import parse_header


def test_a_header_nested_beyond_reason_is_refused() -> None:
    with pytest.raises(BadData, match="not JSON"):
        parse_header(b'{"w":' + b"[" * 200_000, 0)


ENTRIES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from(["F32", "F16", "U8"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "other"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


NEARLY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "F64", "bad"]) | ENTRIES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | ENTRIES,
        "data_offsets": st.lists(st.integers(-4, 40), min_size=2, max_size=2) | ENTRIES,
    }
)


@given(header=st.dictionaries(st.text(max_size=3), NEARLY | ENTRIES, max_size=4) | ENTRIES, size=st.integers(0, 40))
@settings(max_examples=500)
def test_a_header_is_refused_or_covers_its_data_exactly(header: object, size: int) -> None:
    try:
        specs = parse_header(json.dumps(header).encode(), size)
    except BadData:
        return
    covered = sorted(place for spec in specs for place in range(spec.begin, spec.end))
    assert covered == list(range(size))


@given(header=st.binary(max_size=60), size=st.integers(0, 40))
def test_any_bytes_are_refused_or_a_header(header: bytes, size: int) -> None:
    try:
        specs = parse_header(header, size)
    except BadData:
        return
    assert sum(spec.end - spec.begin for spec in specs) == size
