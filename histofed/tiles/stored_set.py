"""One set of decoded tiles on disk: a memory-mapped file, how it is built, and how it is checked and opened.

    <key>.tiles     the pixels, uint8 (N, 3, S, S) from offset 0, then an index in JSON, then a tail
    <key>.stamps    for each file of the set 32 bytes of stamp and 32 of content: which file held which bytes when last read

The key is SHA-256 over the way of decoding and the contents in their order, so a changed file is another set. A stamp (path,
size, times, inode; hashed) saves reading files that nobody has touched.

Invariants: a file appears by rename, complete; its length and SHA-256 are checked when it is opened, and one that is damaged
is none. Removing a file that somebody has mapped is harmless. `store.py` keeps the sets; `cache.py` fills and reads them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from histofed.base import durable
from histofed.base.hashing import StreamDigest
from histofed.base.ids import Json, canonical
from histofed.tiles.decode import Pixels

Stamp: TypeAlias = bytes
Content: TypeAlias = bytes
"""SHA-256 of a file's bytes."""
Row: TypeAlias = int | str
"""Where a file's pixels are in a set, or why it was refused."""

BUILDING: Final = "building.tiles"
"""The name of a set that has no key yet."""
_TAIL: Final = struct.Struct("<Q32s8s")
"""Length and SHA-256 of the index, and what kind of file this is."""
_MAGIC: Final = b"HFTILES1"


@dataclass(frozen=True)
class Decoding:
    """How pixels come from bytes; `version` changes when the decoder would give others, or refuse others."""

    size: int
    minimum_edge: int
    version: int = 2

    def key(self, contents: Sequence[Content]) -> str:
        """The name of a set: the way of decoding, then every content in its order."""
        hasher = hashlib.sha256(canonical({"size": self.size, "minimum_edge": self.minimum_edge, "version": self.version}))
        for content in contents:
            hasher.update(content)
        return hasher.hexdigest()


@dataclass(frozen=True)
class StoredSet:
    """One set, open. The mapping lives as long as `pixels`."""

    pixels: Pixels
    """uint8 (rows, 3, S, S), read-only."""
    sha256: str
    """Of the pixels."""
    contents: tuple[Content, ...]
    """Of every file of the set, the refused ones too."""
    rows: tuple[Row, ...]
    """For each of `contents`."""


def stamp(path: Path) -> Stamp:
    """What changes when somebody changes, replaces or moves the file. Raises `OSError`."""
    found = path.stat()
    facts = (os.fspath(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return hashlib.sha256("\0".join(map(str, facts)).encode(errors="surrogateescape")).digest()


class Builder:
    """A set in the making: files are added in order, and `finish` gives it its name. A context manager."""

    def __init__(self, directory: Path, decoding: Decoding) -> None:
        self._directory, self._decoding = directory, decoding
        self._stack = contextlib.ExitStack()
        self._stamps = bytearray()
        self._contents: list[Content] = []
        self._rows: list[Row] = []
        self._count = 0

    def __enter__(self) -> Builder:
        self._file = self._stack.enter_context(durable.writing(self._directory / BUILDING))
        self._digest = self._stack.enter_context(StreamDigest())
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        durable.remove(self._directory / BUILDING)

    def add(self, mark: Stamp | None, content: Content, decoded: Pixels | str) -> None:
        """One file: its pixels (3, S, S), or the reason why it has none. Raises `OSError` when the disk refuses."""
        self._contents.append(content)
        if mark is not None:
            self._stamps += mark + content
        if isinstance(decoded, str):
            self._rows.append(decoded)
            return
        data = np.ascontiguousarray(decoded).data.cast("B")
        self._file.write(data)
        self._digest.update(data)
        self._rows.append(self._count)
        self._count += 1

    def finish(self) -> str:
        """Complete the file and name it; returns the key. Raises `CannotWriteState`."""
        index: dict[str, Json] = {
            **{"size": self._decoding.size, "minimum_edge": self._decoding.minimum_edge},
            **{"version": self._decoding.version, "count": self._count, "sha256": self._digest.finish()},
            **{"contents": [content.hex() for content in self._contents], "rows": self._rows},
        }
        data = canonical(index)
        self._file.write(data + _TAIL.pack(len(data), hashlib.sha256(data).digest(), _MAGIC))
        self._file.flush()
        expected = self._count * 3 * self._decoding.size**2 + len(data) + _TAIL.size
        if os.fstat(self._file.fileno()).st_size != expected:
            raise OSError(errno.EIO, "fewer bytes than were written")
        self._stack.close()
        key = self._decoding.key(self._contents)
        durable.adopt(self._directory / BUILDING, self._directory / f"{key}.tiles")
        durable.replace(self._directory / f"{key}.stamps", bytes(self._stamps))
        return key


def room(size: int, tiles: int) -> int:
    """Bytes that a set may take at most: pixels, index, stamps."""
    return tiles * (3 * size * size + 160) + 4096


def listed(path: Path, decoding: Decoding) -> Iterator[tuple[Content, Row]]:
    """What a set's index says that it holds; nothing where it was decoded in another way."""
    try:
        with path.open("rb") as file:
            index = _read_index(file.fileno(), os.fstat(file.fileno()).st_size)
    except OSError:
        return
    wanted = (decoding.size, decoding.minimum_edge, decoding.version)
    if index is not None and tuple(index.get(name) for name in ("size", "minimum_edge", "version")) == wanted:
        yield from zip(map(bytes.fromhex, index["contents"]), index["rows"], strict=True)


def _read_index(descriptor: int, length: int) -> dict[str, Any] | None:
    """The JSON behind the pixels; None for a file that is cut off, damaged or of another kind."""
    if length < _TAIL.size:
        return None
    size, digest, magic = _TAIL.unpack(os.pread(descriptor, _TAIL.size, length - _TAIL.size))
    if magic != _MAGIC or size > length - _TAIL.size:
        return None
    data = os.pread(descriptor, size, length - _TAIL.size - size)
    if hashlib.sha256(data).digest() != digest:
        return None
    index: dict[str, Any] = json.loads(data)
    return index


def map_set(descriptor: int, size: int) -> StoredSet | None:
    """The open file as a set; None unless every byte is what was written."""
    length = os.fstat(descriptor).st_size
    index = _read_index(descriptor, length)
    if index is None or index["size"] != size:
        return None
    count = index["count"]
    body = count * 3 * size * size
    pixels: Pixels = np.zeros((0, 3, size, size), np.uint8)
    if 0 < body < length:
        pixels = np.frombuffer(mmap.mmap(descriptor, body, access=mmap.ACCESS_READ), np.uint8).reshape(count, 3, size, size)
    if hashlib.sha256(pixels.data.cast("B") if len(pixels) else b"").hexdigest() != index["sha256"]:
        return None
    return StoredSet(pixels, index["sha256"], tuple(map(bytes.fromhex, index["contents"])), tuple(index["rows"]))
