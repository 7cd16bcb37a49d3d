"""Picture files that are no tiles, one writer per kind."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from PIL import Image


def sixteen_bits(path: Path) -> None:
    """A valid 64 x 64 PNG of 16 bits per channel; Pillow cannot write one."""
    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(64 * 6) for _ in range(64)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b""))


def bomb(path: Path) -> None:
    """A PNG header that claims 60000 x 60000 pixels."""
    sixteen_bits(path)
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = bytearray(path.read_bytes())
    data[12:33] = header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(bytes(data))


def truncated(path: Path) -> None:
    """A JPEG that ends in the middle."""
    Image.effect_noise((128, 128), 50).convert("RGB").save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])


def grey(path: Path) -> None:
    """One channel."""
    Image.new("L", (64, 64)).save(path, "JPEG")


def cmyk(path: Path) -> None:
    """Four channels, for a printer."""
    Image.new("CMYK", (64, 64)).save(path, "JPEG")


BAD_PICTURES: Final[Mapping[str, Callable[[Path], None]]] = {
    "far too many pixels for a tile": bomb,
    "not 8-bit RGB: 16 bits": sixteen_bits,
    "not 8-bit RGB: CMYK": cmyk,
    "not 8-bit RGB: grey": grey,
    "truncated or damaged": truncated,
}
"""Why it is refused → who writes it."""
UNREADABLE: Final = Path("/proc/self/mem")
"""Opens like any file, and its first byte is an I/O error to whoever reads it: a disk that fails."""


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
