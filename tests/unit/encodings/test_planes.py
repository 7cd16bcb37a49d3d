"""Planes: what goes in comes out, what does not pay is stored, and bytes that lie are refused with a bound."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from histofed.base.errors import BadData
from histofed.encodings.planes import pack, skip, unpack
from histofed.weights import Array

TYPES = [np.dtype(name) for name in ("<u2", "<u4", "<u8")]
BYTE = np.dtype("<u2")
few = settings(deadline=None, max_examples=50)


def deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


def plane(coded: bytes) -> bytes:
    return struct.pack("<I", len(coded)) + coded


@few
@given(
    words=st.sampled_from(TYPES).flatmap(lambda dtype: hnp.arrays(dtype, st.integers(1, 300))), before=st.binary(max_size=3)
)
def test_words_come_back(words: Array, before: bytes) -> None:
    data = memoryview(before + pack(words) + b"after")
    found, behind = unpack(data, len(before), words.size, words.dtype)
    assert (found.dtype, found.tobytes()) == (words.dtype, words.tobytes())
    assert bytes(data[behind:]) == b"after"
    assert skip(data, len(before), words.size, words.dtype) == behind


@few
@given(data=st.binary(max_size=80), count=st.integers(1, 40))
def test_any_bytes_are_read_or_refused(data: bytes, count: int) -> None:
    try:
        words, behind = unpack(memoryview(data), 0, count, BYTE)
    except BadData:
        return
    assert words.size == count
    assert behind <= len(data)


def test_noise_is_stored_and_repetition_is_not() -> None:
    draw = np.random.default_rng(3)
    noise = draw.integers(0, 1 << 16, 1 << 15, np.uint16)
    assert len(pack(noise)) == 2 * (4 + (1 << 15))
    assert len(pack(noise & np.uint16(0x00FF))) < 4 + (1 << 15) + 100, "the high byte is always zero"
    few = draw.integers(0, 4, 1 << 15, np.uint16) << np.uint16(8)
    assert len(pack(few)) < (1 << 15) / 3.5, "two bits of eight, and nothing for the low byte"


def test_half_noise_is_found() -> None:
    """A sample of every so many bytes must not miss that half of a block never changed."""
    words = np.random.default_rng(3).integers(0, 1 << 16, 1 << 15, np.uint16)
    words[: 1 << 14] = 0
    assert len(pack(words)) < 0.6 * words.nbytes


LIES = {
    "nothing": (b"", "ends too soon"),
    "half a length": (b"\x05\x00", "ends too soon"),
    "a length and no bytes": (struct.pack("<I", 10), "ends too soon"),
    "more than a plane": (struct.pack("<I", 11) + bytes(11), "a plane of 10 bytes claims 11"),
    "four gigabytes": (struct.pack("<I", 0xFFFFFFFF), "a plane of 10 bytes claims 4294967295"),
    "no deflate": (plane(b"\xff\xff\xff"), "cannot be inflated"),
    "too few bytes": (plane(deflated(bytes(9))), "does not inflate to its 10 bytes"),
    "one byte more": (plane(deflated(bytes(11))), "does not inflate to its 10 bytes"),
    "half a stream": (plane(deflated(bytes(10))[:-1]), "does not inflate to its 10 bytes"),
    "bytes behind the stream": (plane(deflated(bytes(10)) + b"x"), "does not inflate to its 10 bytes"),
    "a stream without an end": (plane(zlib.compressobj(wbits=-15).flush(zlib.Z_SYNC_FLUSH)), "does not inflate to its 10"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("first", [b"", plane(bytes(10))], ids=["high", "low"])
def test_lies_are_refused(lie: str, first: bytes) -> None:
    data, words = LIES[lie]
    with pytest.raises(BadData, match=words):
        unpack(memoryview(first + data), 0, 10, BYTE)


def test_a_bomb_stops_one_byte_behind_its_plane() -> None:
    bomb = deflated(bytes(32 << 20))
    assert len(bomb) < 1 << 15, "it fits where a plane of a block fits"
    tracemalloc.start()
    try:
        with pytest.raises(BadData, match="does not inflate to its 32768 bytes"):
            unpack(memoryview(plane(bomb)), 0, 1 << 15, BYTE)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
