"""TIFF files of the kinds that scanners write and Pillow only reads."""

from __future__ import annotations

import struct
import zlib
from typing import Final

import numpy as np

DIRECTORY: Final = 16384
"""Where the tags begin: a number that looks like 16 bits."""
_EDGE: Final = 40
"""Pixels: also 16 bits of them end before the directory."""
_DEFLATE: Final = 8
_SHORT, _LONG = 3, 4


def tiff(bits: int, order: str = "<", *, compressed: bool = False, planar: bool = False, second: bool = False) -> bytes:
    """An RGB picture of noise; `order` is struct's; `second` adds a directory without a tag."""
    pixels = np.random.default_rng(0).integers(0, 2**bits, (_EDGE, _EDGE, 3)).astype(f"{order}u{bits // 8}")
    strips = [band.tobytes() for band in np.moveaxis(pixels, 2, 0)] if planar else [pixels.tobytes()]
    if compressed:
        strips = [zlib.compress(strip) for strip in strips]
    data = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, DIRECTORY)
    places = []
    for strip in strips:
        places.append(len(data))
        data += strip
    tags = {
        256: (_SHORT, [_EDGE]),  # width
        257: (_SHORT, [_EDGE]),  # height
        258: (_SHORT, [bits] * 3),
        259: (_SHORT, [_DEFLATE if compressed else 1]),
        262: (_SHORT, [2]),  # RGB
        273: (_LONG, places),
        277: (_SHORT, [3]),  # samples of a pixel
        278: (_SHORT, [_EDGE]),  # rows of a strip
        279: (_LONG, [len(strip) for strip in strips]),
        284: (_SHORT, [2 if planar else 1]),
    }
    return data.ljust(DIRECTORY, b"\0") + _directory(tags, order, second)


def _directory(tags: dict[int, tuple[int, list[int]]], order: str, second: bool) -> bytes:
    entries, behind = struct.pack(f"{order}H", len(tags)), b""
    end = DIRECTORY + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in tags.items():
        value = struct.pack(f"{order}{len(values)}{'H' if kind == _SHORT else 'I'}", *values)
        if len(value) > 4:
            value, behind = struct.pack(f"{order}I", end + len(behind)), behind + value
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
    following = struct.pack(f"{order}I", end + len(behind) if second else 0)
    return entries + following + behind + (bytes(2 + 4) if second else b"")
