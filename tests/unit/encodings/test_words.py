"""Words: exact differences come back to the bit, rounded ones are as near as bfloat16 allows, and nothing is random."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histofed.base.encoding import Encoding
from histofed.encodings.words import transform
from histofed.weights import Array

FLOAT32 = np.dtype("<f4")
TYPES = [FLOAT32, np.dtype("<f2"), np.dtype("<f8")]
few = settings(deadline=None, max_examples=40)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SMALL = st.floats(-(2.0**100), 2.0**100, width=32)


def patterns(dtype: np.dtype[np.floating]) -> st.SearchStrategy[Array]:
    """Any bits at all, NaNs and negative zeros among them."""
    return hnp.arrays(f"<u{dtype.itemsize}", 9).map(lambda bits: bits.view(dtype))


def pairs(elements: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[Array, Array]]:
    arrays = hnp.arrays(FLOAT32, 9, elements=elements)
    return st.tuples(arrays, arrays)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@few
@given(data=st.data())
def test_an_exact_difference_brings_every_bit_back(dtype: np.dtype[np.floating], data: st.DataObject) -> None:
    new, base = data.draw(patterns(dtype)), data.draw(patterns(dtype))
    coder = transform("float32-delta", dtype)
    assert coder.exact
    assert coder.decode(coder.encode(new, base), base).tobytes() == new.tobytes()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@few
@given(data=st.data())
def test_an_exact_difference_knows_every_word(dtype: np.dtype[np.floating], data: st.DataObject) -> None:
    coder = transform("float32-delta", dtype)
    words, base = data.draw(hnp.arrays(coder.words, 9)), data.draw(patterns(dtype))
    assert coder.encode(coder.decode(words, base), base).tobytes() == words.tobytes()


def test_near_values_have_small_words() -> None:
    base = np.array([1.0, -1.0, 0.0, 3e38, 1e-40], FLOAT32)
    up, down = np.nextafter(base, np.float32(np.inf)), np.nextafter(base, np.float32(-np.inf))
    coder = transform("float32-delta", FLOAT32)
    assert coder.encode(base, base).tolist() == [0] * 5
    assert coder.encode(up, base).tolist() == [2] * 5
    # below zero comes negative zero first
    assert coder.encode(down, base).tolist() == [1, 1, 3, 1, 1]


@few
@given(values=hnp.arrays(FLOAT32, 9, elements=FINITE))
def test_rounding_is_that_of_torch(values: Array) -> None:
    coder = transform("bfloat16", FLOAT32)
    expected = torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()
    assert coder.decode(coder.encode(values, values), values).tobytes() == expected.tobytes()


@few
@given(pair=pairs(SMALL))
def test_a_rounded_difference_is_within_its_bound(pair: tuple[Array, Array]) -> None:
    new, base = pair
    coder = transform("bfloat16-delta", FLOAT32)
    decoded = coder.decode(coder.encode(new, base), base).astype(np.float64)
    distance = np.abs(np.subtract(new, base, dtype=np.float64))
    # half a unit of bfloat16, once for the difference and once for the float32 next to the sum; below it, subnormal steps
    assert (np.abs(decoded - new) <= 2 * 2.0**-8 * distance + 2.0**-133).all()


@few
@given(pair=pairs(FINITE))
def test_a_truncated_difference_lies_between_base_and_value(pair: tuple[Array, Array]) -> None:
    new, base = pair
    coder = transform("bfloat16-delta", FLOAT32, towards_base=True)
    decoded = coder.decode(coder.encode(new, base), base)
    # beyond either end by no more than the rounding of the difference to float32
    least, most = np.minimum(new, base).astype(np.float64), np.maximum(new, base).astype(np.float64)
    slack = (most - least) * 2.0**-24
    assert ((least - slack <= decoded) & (decoded <= most + slack)).all()


@few
@given(base=hnp.arrays(FLOAT32, 9, elements=FINITE))
def test_what_did_not_change_does_not_change(base: Array) -> None:
    for towards_base in (False, True):
        coder = transform("bfloat16-delta", FLOAT32, towards_base=towards_base)
        words = coder.encode(base, base)
        assert not words.any()
        np.testing.assert_array_equal(coder.decode(words, base), base)


@pytest.mark.parametrize("encoding", ["bfloat16", "bfloat16-delta"])
@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
def test_other_types_are_never_rounded(encoding: Encoding, dtype: np.dtype[np.floating]) -> None:
    draw = np.random.default_rng(1)
    new, base = draw.standard_normal(100).astype(dtype), draw.standard_normal(100).astype(dtype)
    coder = transform(encoding, dtype)
    assert coder.exact
    assert coder.decode(coder.encode(new, base), base).tobytes() == new.tobytes()


def test_the_exponent_fills_the_high_byte() -> None:
    values = np.array([1.5, -1.5, 1.0], FLOAT32)
    words = transform("bfloat16", FLOAT32).encode(values, values)
    assert [f"{word:016b}" for word in words.tolist()] == [
        "01111111" + "1000000" + "0",
        "01111111" + "1000000" + "1",
        "01111111" + "0000000" + "0",
    ]
