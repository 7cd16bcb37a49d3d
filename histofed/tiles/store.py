"""Decoded tiles on disk, one memory-mapped file per set: what was decoded once is not decoded again.

    <key>.tiles     the pixels, uint8 (N, 3, S, S) from offset 0, then an index in JSON, then a tail
    <key>.stamps    for each file of the set 32 bytes of stamp and 32 of content: which file held which bytes when last read

The key is SHA-256 over the way of decoding and the contents in their order, so a set is found again from any run, folder or
process, and a changed file is another set. A stamp (path, size, times, inode; hashed) saves reading files that nobody has
touched. Names of files are nowhere in the cache; the pictures are, so its folder is for its owner alone (0700).

Invariants: a file appears by rename, complete; its length and SHA-256 are checked when it is opened, and one that is damaged
counts as absent. One process builds at a time, under a lock; the others go on without the cache. Removing a file that
somebody has mapped is harmless. `cache.py` is the only caller.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import mmap
import os
import re
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from histofed.base import durable
from histofed.base.errors import AlreadyThere, CannotWriteState
from histofed.base.hashing import StreamDigest
from histofed.base.ids import Json, canonical
from histofed.tiles.decode import Pixels

log = logging.getLogger(__name__)

DEFAULT_BYTES: Final = 10 * 1024**3
"""Four sets of TCGA-CRC-DX at 224 pixels."""

Stamp: TypeAlias = bytes
Content: TypeAlias = bytes
"""SHA-256 of a file's bytes."""
Row: TypeAlias = int | str
"""Where a file's pixels are in a set, or why it was refused."""

_TAIL: Final = struct.Struct("<Q32s8s")
"""Length and SHA-256 of the index, and what kind of file this is."""
_MAGIC: Final = b"HFTILES1"
_NAME: Final = re.compile(r"[0-9a-f]{64}\Z")
_BUILDING: Final = "building.tiles"


@dataclass(frozen=True)
class Decoding:
    """How pixels come from bytes; `version` changes when the decoder would give others."""

    size: int
    minimum_edge: int
    version: int = 1

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


def default_directory(environ: Mapping[str, str]) -> Path:
    """Where a person's cache lies: `$XDG_CACHE_HOME/histofed/tiles`, else `~/.cache/histofed/tiles`."""
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path(environ.get("HOME", "/")) / ".cache") / "histofed" / "tiles"


class TileStore:
    """A folder of decoded sets that never grows beyond `limit` bytes; the least recently used set goes first."""

    def __init__(self, directory: Path, limit: int = DEFAULT_BYTES) -> None:
        self.directory, self.limit = directory, limit

    def known(self) -> dict[Stamp, Content]:
        """What is known about files that nobody has touched since."""
        found: dict[Stamp, Content] = {}
        for path in self.directory.glob("*.stamps"):
            data = _read(path)
            if len(data) % 64 == 0:
                found.update((data[at : at + 32], data[at + 32 : at + 64]) for at in range(0, len(data), 64))
        return found

    def open(self, key: str, decoding: Decoding) -> StoredSet | None:
        """The set of that name, checked; None where it is not there or damaged. It is now the most recently used."""
        path = self.directory / f"{key}.tiles"
        try:
            with path.open("rb") as file:
                found = _map(file.fileno(), decoding.size)
                if found is not None:
                    os.utime(file.fileno())
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("a set in the tile cache cannot be opened (%s); its tiles are decoded again", error.strerror)
            return None
        if found is None or decoding.key(found.contents) != key:
            log.warning("a set in the tile cache is damaged; its tiles are decoded again")
            return None
        return found

    def decoded(self, decoding: Decoding) -> Decoded:
        """What other sets hold, decoded in this way."""
        return Decoded(self, decoding, self._sets())

    @contextlib.contextmanager
    def building(self, decoding: Decoding, tiles: int) -> Iterator[Builder | None]:
        """Hold the cache alone and make room for a set of `tiles`; None when it may not or cannot be built now.

        Raises `CannotWriteState` when the disk refuses.
        """
        needed = _room(decoding.size, tiles)
        if needed > self.limit:
            log.info("decoded tiles need up to %d bytes and the tile cache may hold %d: not cached", needed, self.limit)
            yield None
            return
        with contextlib.ExitStack() as stack:
            stack.enter_context(_disk_errors())
            durable.make_directory(self.directory)
            try:
                stack.enter_context(durable.lock(self.directory / "lock", "tile cache"))
            except AlreadyThere:
                log.info("another process fills the tile cache: these tiles are decoded without it")
                yield None
                return
            self._remove_what_was_left_behind()
            self._make_room(needed)
            yield stack.enter_context(Builder(self.directory, decoding))

    def _sets(self) -> list[Path]:
        return sorted(path for path in self.directory.glob("*.tiles") if _NAME.match(path.stem))

    def _remove_what_was_left_behind(self) -> None:
        """Half-built files of processes that died: the lock is ours, so nobody is writing them."""
        for path in [*self.directory.glob(".*.tmp"), self.directory / _BUILDING]:
            durable.remove(path)

    def _make_room(self, needed: int) -> None:
        """Remove sets, least recently used first, until `needed` bytes fit under the limit."""
        aged = sorted((path.stat().st_mtime_ns, path) for path in self._sets())
        used = sum(path.stat().st_size for path in self.directory.iterdir())
        for _, path in aged:
            if used + needed <= self.limit:
                return
            for part in (path, path.with_suffix(".stamps")):
                used -= part.stat().st_size if part.exists() else 0
                durable.remove(part)


class Decoded:
    """Contents that some set holds. A set is opened, and checked, when it is first asked for. Safe for threads."""

    def __init__(self, store: TileStore, decoding: Decoding, paths: Sequence[Path]) -> None:
        self._store, self._decoding = store, decoding
        self._lock = threading.Lock()
        self._open: dict[str, StoredSet | None] = {}
        self._place: dict[Content, tuple[str, Row]] = {}
        for path in paths:
            for content, row in _listed(path, decoding):
                self._place[content] = (path.stem, row)

    def find(self, content: Content) -> Pixels | str | None:
        """Pixels (3, S, S), the reason why there are none, or None for a content that no set holds."""
        place = self._place.get(content)
        if place is None:
            return None
        key, row = place
        with self._lock:
            if key not in self._open:
                self._open[key] = self._store.open(key, self._decoding)
            one = self._open[key]
        if one is None:
            return None
        if isinstance(row, str):
            return row
        pixels: Pixels = one.pixels[row]
        return pixels


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
        self._file = self._stack.enter_context(durable.writing(self._directory / _BUILDING))
        self._digest = self._stack.enter_context(StreamDigest())
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        durable.remove(self._directory / _BUILDING)

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
        durable.adopt(self._directory / _BUILDING, self._directory / f"{key}.tiles")
        durable.replace(self._directory / f"{key}.stamps", bytes(self._stamps))
        return key


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Say that it is the cache and what can be done, and name no path: the sentence may leave the site."""
    try:
        yield
    except (CannotWriteState, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else "the disk refuses"
        raise CannotWriteState(
            f"the cache of decoded tiles cannot be written: {reason}; free space, or change cache_dir or cache_bytes "
            "(with cache_bytes = 0 there is no cache)"
        ) from error


def _room(size: int, tiles: int) -> int:
    """Bytes that a set may take at most: pixels, index, stamps."""
    return tiles * (3 * size * size + 160) + 4096


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        # removed by the process that makes room, or unreadable: then nothing is known, and files are read
        return b""


def _listed(path: Path, decoding: Decoding) -> Iterator[tuple[Content, Row]]:
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


def _map(descriptor: int, size: int) -> StoredSet | None:
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
