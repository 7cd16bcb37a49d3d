"""A block of words as its byte planes, the highest first, each coded for itself or stored as it is.

    plane = u32 length, little-endian; then the bytes: stored where the length is the number of words, else deflated

Weights and their differences repeat in their exponents and nowhere else, so all that can be gained is an entropy code of
the high bytes: zlib with Huffman codes and runs (Z_RLE) comes within 2 % of the entropy, faster than a search for matches,
which finds none. A plane of noise is found by its histogram and not tried. Raw deflate: bytes are signed, a checksum would
say nothing new.

Bounds: what a plane decodes to is known before (`count` bytes), and inflating stops one byte behind it.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final, Protocol

import numpy as np

from histofed.base.errors import BadData
from histofed.weights import Array

_LENGTH: Final = struct.Struct("<I")
_RAW_DEFLATE: Final = -15
_NOISE_BITS: Final = 7.92
"""Bits per byte of a sample's histogram above which coding is not tried: it would gain a percent at most."""
_SAMPLE: Final = 8192
"""Bytes of a sample: of noise it shows 7.98 bits, and below it trying is quick."""


class Data(Protocol):
    """Bytes of which parts are taken: those in memory, or of a file that is read as they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> memoryview: ...


def pack(words: Array) -> bytes:
    """The planes of a block. The same words give the same bytes with the same zlib."""
    found = bytearray()
    for plane in _planes(words):
        data = plane.tobytes()
        coded = data if _is_noise(plane) else _deflated(data)
        if len(coded) >= len(data):
            coded = data
        found += _LENGTH.pack(len(coded)) + coded
    return bytes(found)


def unpack(data: Data, begin: int, count: int, dtype: np.dtype[Any]) -> tuple[Array, int]:
    """The `count` words of the block at `begin`, and where the next one begins. Raises `BadData`."""
    planes = np.empty((count, dtype.itemsize), np.uint8)
    for column in reversed(range(dtype.itemsize)):
        length, begin = _length(data, begin, count)
        planes[:, column] = np.frombuffer(_plane(data[begin : begin + length], count), np.uint8)
        begin += length
    return planes.view(dtype).reshape(-1), begin


def skip(data: Data, begin: int, count: int, dtype: np.dtype[Any]) -> int:
    """Where the block behind the one at `begin` begins, without decoding it. Raises `BadData`."""
    for _ in range(dtype.itemsize):
        length, begin = _length(data, begin, count)
        begin += length
    return begin


def _length(data: Data, begin: int, count: int) -> tuple[int, int]:
    """Bytes of the plane at `begin`, and where they begin."""
    behind = begin + _LENGTH.size
    if behind > len(data):
        raise BadData("it ends too soon")
    (length,) = _LENGTH.unpack(data[begin:behind])
    if length > count:
        raise BadData(f"a plane of {count} bytes claims {length}")
    if behind + length > len(data):
        raise BadData("it ends too soon")
    return length, behind


def _plane(coded: memoryview, count: int) -> bytes | memoryview:
    if len(coded) == count:
        return coded
    inflater = zlib.decompressobj(_RAW_DEFLATE)
    try:
        plane = inflater.decompress(coded, count + 1)
    except zlib.error as error:
        raise BadData("a plane cannot be inflated") from error
    if len(plane) != count or not inflater.eof or inflater.unused_data:
        raise BadData(f"a plane does not inflate to its {count} bytes")
    return plane


def _planes(words: Array) -> tuple[Array, ...]:
    columns = words.view(np.uint8).reshape(-1, words.itemsize)
    return tuple(np.ascontiguousarray(columns[:, column]) for column in reversed(range(words.itemsize)))


def _deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(level=1, method=zlib.DEFLATED, wbits=_RAW_DEFLATE, memLevel=9, strategy=zlib.Z_RLE)
    return deflater.compress(data) + deflater.flush()


def _is_noise(plane: Array) -> bool:
    """Whether the histogram of every so many bytes leaves nothing to gain."""
    if plane.size < _SAMPLE:
        return False
    sample = plane[:: plane.size // _SAMPLE]
    share = np.bincount(sample, minlength=256) / sample.size
    share = share[share > 0]
    return bool(-(share * np.log2(share)).sum() > _NOISE_BITS)
