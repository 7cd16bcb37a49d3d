"""Every tile of a site, decoded once: into memory, or into a memory-mapped file that the next run finds again.

Decoding costs more per epoch than a fast GPU's arithmetic. Decoded tiles take N x 3 x S x S bytes: 19,557 tiles are 0.24 GB
at 64 px, 0.96 GB at 128, 2.94 GB at 224. What `load` gives is the same with and without a store, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from histofed.tiles.decode import MINIMUM_EDGE, Pixels, Refused, decode_tile, read_bytes, suspicion_is_enough
from histofed.tiles.store import Decoded, TileStore
from histofed.tiles.stored_set import Content, Decoding, Row, Stamp, StoredSet, stamp
from histofed.tiles.tileset import Tile, TileSet, check_classes, narrow

_THREADS: Final = 8
"""Pillow decodes without the interpreter's lock; beyond this many threads the disk is the limit."""


@dataclass(frozen=True)
class TileCache:
    """Decoded tiles in the order of `tileset.tiles`."""

    tileset: TileSet
    """Only what could be decoded; its refusals include those of decoding."""
    pixels: Pixels
    """uint8 (N, 3, S, S); read-only where it is a mapped file."""
    labels: npt.NDArray[np.int64]
    """Class indices, (N,)."""
    pixels_sha256: str | None = None
    """SHA-256 of the pixels where a store knows it."""

    def fingerprint(self) -> str:
        """SHA-256 over pixels and labels: a checkpoint made of other tiles is not resumed."""
        digest = self.pixels_sha256 or hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest()
        hasher = hashlib.sha256(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        hasher.update(str((self.pixels.shape, digest)).encode())
        return hasher.hexdigest()


def load(tileset: TileSet, size: int, minimum_edge: int = MINIMUM_EDGE, store: TileStore | None = None) -> TileCache:
    """Decode every tile to `size` x `size`, or take it from `store`. Unusable files are counted by reason, not fatal.

    Raises `BadData` when a class is left without a tile, `CannotWriteState` when the store's disk refuses.
    """
    decoding = Decoding(size, minimum_edge)
    with suspicion_is_enough():
        if store is None or store.limit <= 0:
            return _into_memory(tileset, decoding)
        return _through_store(tileset, decoding, store)


@dataclass(frozen=True)
class _Read:
    """One file: what it holds and what became of it."""

    stamp: Stamp | None
    content: Content | None
    """None for a file that could not be read at all, whose content nobody knows."""
    decoded: Pixels | str
    """Pixels (3, S, S), or the reason why there are none."""


def _into_memory(tileset: TileSet, decoding: Decoding) -> TileCache:
    pixels = np.empty((len(tileset.tiles), 3, decoding.size, decoding.size), np.uint8)
    rows: list[Row] = []
    count = 0
    for read in _decode_all(tileset.tiles, decoding, None):
        if isinstance(read.decoded, str):
            rows.append(read.decoded)
        else:
            pixels[count] = read.decoded
            rows.append(count)
            count += 1
    return _finished(tileset, pixels[:count], rows)


def _through_store(tileset: TileSet, decoding: Decoding, store: TileStore) -> TileCache:
    untouched = _stored_untouched(tileset, decoding, store)
    if untouched is not None:
        return _finished(tileset, untouched.pixels, untouched.rows, untouched.sha256)
    with store.building(decoding, len(tileset.tiles)) as builder:
        if builder is None:
            return _into_memory(tileset, decoding)
        rows: list[Row] = []
        count = 0
        for read in _decode_all(tileset.tiles, decoding, store.decoded(decoding)):
            if isinstance(read.decoded, str):
                rows.append(read.decoded)
            else:
                rows.append(count)
                count += 1
            if read.content is not None:
                builder.add(read.stamp, read.content, read.decoded)
        key = builder.finish()
    stored = store.open(key, decoding)
    if stored is None:  # somebody emptied the cache at this moment
        return _into_memory(tileset, decoding)
    return _finished(tileset, stored.pixels, rows, stored.sha256)


def _stored_untouched(tileset: TileSet, decoding: Decoding, store: TileStore) -> StoredSet | None:
    """The set of these files when none was touched since they were decoded."""
    known = store.known()
    contents: list[Content] = []
    for tile in tileset.tiles:
        mark = _stamp(tile)
        content = None if mark is None else known.get(mark)
        if content is None:
            return None
        contents.append(content)
    return store.open(decoding.key(contents), decoding)


def _decode_all(tiles: Sequence[Tile], decoding: Decoding, stored: Decoded | None) -> Iterator[_Read]:
    """Every tile in its order, decoded by a few threads that are never more than a handful of tiles ahead."""
    threads = min(_THREADS, len(os.sched_getaffinity(0)))
    if threads == 1:
        # nothing to overlap, and handing each tile over costs a tenth of decoding it
        yield from (_decode(tile, decoding, stored) for tile in tiles)
        return
    with ThreadPoolExecutor(threads, "decode") as pool:
        ahead: deque[Future[_Read]] = deque()
        for tile in tiles:
            ahead.append(pool.submit(_decode, tile, decoding, stored))
            if len(ahead) > 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _decode(tile: Tile, decoding: Decoding, stored: Decoded | None) -> _Read:
    """Without a store nothing is hashed."""
    mark = None if stored is None else _stamp(tile)
    content: Content | None = None
    try:
        data = read_bytes(tile.path)
        if stored is not None:
            content = hashlib.sha256(data).digest()
            if (found := stored.find(content)) is not None:
                return _Read(mark, content, found)
        return _Read(mark, content, decode_tile(data, decoding.size, decoding.minimum_edge))
    except Refused as reason:
        return _Read(mark, content, str(reason))


def _stamp(tile: Tile) -> Stamp | None:
    """None for a file that is not there; decoding finds out and counts it."""
    try:
        return stamp(tile.path)
    except OSError:
        return None


def _finished(tileset: TileSet, pixels: Pixels, rows: Sequence[Row], sha256: str | None = None) -> TileCache:
    kept = [tile for tile, row in zip(tileset.tiles, rows, strict=True) if not isinstance(row, str)]
    usable = narrow(tileset, kept, Counter(row for row in rows if isinstance(row, str)))
    check_classes(usable)
    return TileCache(usable, pixels, np.array([tile.class_index for tile in kept], np.int64), sha256)
