"""Values as whole numbers whose high bytes repeat, and back: what is lost is lost here, what is left is coded losslessly.

| encoding         | a float32 value becomes                                              | bits | exact |
|------------------|----------------------------------------------------------------------|------|-------|
| `bfloat16`       | itself, rounded to bfloat16                                          | 16   | no    |
| `bfloat16-delta` | its difference to the base, rounded to bfloat16                      | 16   | no    |
| `float32-delta`  | how many float32 values lie between it and the base, with the sign   | 32   | yes   |

Rounding is to nearest, ties to even (IEEE 754, 4.3.1), so that equal tensors give equal words on every machine. bfloat16 is
the upper half of a float32; its words are rotated by one bit, so that the exponent fills the high byte and the sign joins
the mantissa, which is noise. Tensors of float16 and float64 are never rounded.

Decoding a difference adds it to the base in float32. Where |difference| as stored is at most that of the trained value, the
sum lies between base and trained value, because rounding is monotone and both are float32: so `towards_base`, which
truncates, can never raise an update's norm (`histofed/privacy/clipping.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from histofed.base.encoding import EXACT, Encoding
from histofed.weights import Array

_LOW_BITS: Final = 16
"""Of a float32, which bfloat16 leaves out."""


@dataclass(frozen=True)
class Transform:
    """One type of tensor under one encoding. Both functions take the base's values too, of the same length."""

    words: np.dtype[Any]
    """Little-endian unsigned numbers."""
    encode: Callable[[Array, Array], Array]
    decode: Callable[[Array, Array], Array]
    """Of any words, also of those that no encoder writes: then to values that may not be finite."""
    exact: bool


def transform(encoding: Encoding, dtype: np.dtype[Any], *, towards_base: bool = False) -> Transform:
    """What `encoding` does with tensors of `dtype`; with `towards_base` a difference is truncated, not rounded."""
    words = np.dtype(f"<u{dtype.itemsize}")
    if encoding not in EXACT and dtype == np.float32:
        half = np.dtype("<u2")
        if encoding == "bfloat16":
            return Transform(half, lambda new, _: _rotated(_rounded(new)), lambda word, _: _widened(word), exact=False)
        shorten = _shortened if towards_base else _nearest
        return Transform(half, lambda new, base: _rotated(shorten(new, base)), _added, exact=False)
    if encoding.endswith("-delta"):
        return Transform(words, _steps_between, _stepped, exact=True)
    return Transform(words, lambda new, _: new.view(words), lambda word, base: word.view(base.dtype), exact=True)


# -- bfloat16 ----------------------------------------------------------------------------------------------------------


def _rounded(values: Array) -> Array:
    """The nearest bfloat16 of float32 values that are numbers, ties to even; infinite above the largest one."""
    bits = values.view(np.uint32)
    half: Array = (bits + np.uint32(0x7FFF) + ((bits >> _LOW_BITS) & np.uint32(1))) >> _LOW_BITS
    return half.astype("<u2")


def _nearest(new: Array, base: Array) -> Array:
    """The difference to the base, rounded to float32 and then to bfloat16."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _rounded(new - base)


def _shortened(new: Array, base: Array) -> Array:
    """The largest bfloat16 that is not above the difference, by magnitude."""
    exact = np.subtract(new, base, dtype=np.float64)
    with np.errstate(over="ignore"):
        half = (exact.astype(np.float32).view(np.uint32) >> _LOW_BITS).astype("<u2")
    # rounding to float32 may have reached the next bfloat16; the word before it is the smaller magnitude
    half -= np.abs(_value(half).astype(np.float64)) > np.abs(exact)
    return half


def _rotated(half: Array) -> Array:
    word: Array = (half << np.uint16(1)) | (half >> np.uint16(15))
    return word


def _widened(word: Array) -> Array:
    """The float32 values that rotated bfloat16 words stand for."""
    return _value((word >> np.uint16(1)) | (word << np.uint16(15)))


def _value(half: Array) -> Array:
    value: Array = (half.astype("<u4") << np.uint32(_LOW_BITS)).view("<f4")
    return value


def _added(word: Array, base: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.add(base, _widened(word), dtype=np.float32)


# -- exact differences -------------------------------------------------------------------------------------------------


def _steps_between(new: Array, base: Array) -> Array:
    """Places from the base to the value in the order of all floats, modulo 2^bits; the sign in the lowest bit."""
    steps = _place(new) - _place(base)
    signed = steps.view(f"<i{steps.itemsize}")
    word: Array = (steps << steps.dtype.type(1)) ^ (signed >> (8 * steps.itemsize - 1)).view(steps.dtype)
    return word


def _stepped(word: Array, base: Array) -> Array:
    """The value that lies so many places from the base: the reverse, for every word."""
    one = word.dtype.type(1)
    place = _place(base) + ((word >> one) ^ (word.dtype.type(0) - (word & one)))
    top = word.dtype.type(1 << (8 * word.itemsize - 1))
    value: Array = np.where(place & top, place ^ top, ~place).astype(word.dtype).view(base.dtype)
    return value


def _place(values: Array) -> Array:
    """Where floats stand in the order of all bit patterns from -NaN to NaN: neighbours are one apart."""
    bits = values.view(f"<u{values.itemsize}")
    top = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    place: Array = np.where(bits & top, ~bits, bits | top).astype(bits.dtype)
    return place
