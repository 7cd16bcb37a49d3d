"""The sets of decoded tiles in one folder: what was decoded once is not decoded again.

A set (`stored_set.py`) is found by its key from any run, folder or process. Names of files are nowhere in the cache; the
pictures are, so its folder is for its owner alone (0700).

Invariants: the sets never grow beyond their limit; what somebody else left in the folder is neither counted nor touched. One
process builds at a time, under a lock; the others go on without the cache. A set that is damaged counts as absent.
`cache.py` alone fills and reads it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from histofed.base import durable
from histofed.base.errors import AlreadyThere, CannotWriteState
from histofed.tiles.decode import Pixels
from histofed.tiles.stored_set import (
    BUILDING,
    Builder,
    Content,
    Decoding,
    Row,
    Stamp,
    StoredSet,
    listed,
    map_set,
    room,
)

log = logging.getLogger(__name__)

DEFAULT_BYTES: Final = 10 * 1024**3
"""Four sets of TCGA-CRC-DX at 224 pixels."""

_NAME: Final = re.compile(r"[0-9a-f]{64}\Z")


def default_directory(environ: Mapping[str, str]) -> Path:
    """Where a person's cache lies: `$XDG_CACHE_HOME/histofed/tiles`, else `~/.cache/histofed/tiles`."""
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path(environ.get("HOME", "/")) / ".cache") / "histofed" / "tiles"


class TileStore:
    """A folder of decoded sets that never take more than `limit` bytes; the least recently used set goes first."""

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
                found = map_set(file.fileno(), decoding.size)
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
        needed = room(decoding.size, tiles)
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
        """Half-built files and stamps without a set, of processes that died: the lock is ours, so nobody is writing them."""
        alone = (path for path in self.directory.glob("*.stamps") if not path.with_suffix(".tiles").exists())
        stamps = [path for path in alone if _NAME.match(path.stem)]
        for path in [*self.directory.glob(".*.tmp"), self.directory / BUILDING, *stamps]:
            durable.remove(path)

    def _make_room(self, needed: int) -> None:
        """Remove sets, least recently used first, until `needed` bytes fit under the limit."""
        aged = sorted((path.stat().st_mtime_ns, path) for path in self._sets())
        used = sum(_bytes(path) for _, path in aged)
        for _, path in aged:
            if used + needed <= self.limit:
                return
            used -= _bytes(path)
            # the set last: by its name both are found again after a crash in between
            durable.remove(path.with_suffix(".stamps"))
            durable.remove(path)


class Decoded:
    """Contents that some set holds. A set is opened, and checked, when it is first asked for. Safe for threads."""

    def __init__(self, store: TileStore, decoding: Decoding, paths: Sequence[Path]) -> None:
        self._store, self._decoding = store, decoding
        self._lock = threading.Lock()
        self._open: dict[str, StoredSet | None] = {}
        self._place: dict[Content, tuple[str, Row]] = {}
        for path in paths:
            for content, row in listed(path, decoding):
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


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Say that it is the cache and what can be done, and name no path: the sentence may leave the site."""
    try:
        yield
    except (CannotWriteState, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else "the disk refuses"
        raise CannotWriteState(
            f"the cache of decoded tiles cannot be written: {reason}; free space, or keep them elsewhere (an agent: "
            "cache_dir, or no cache with cache_bytes = 0; `histofed train`: --cache)"
        ) from error


def _bytes(path: Path) -> int:
    """What a set and its stamps take."""
    return sum(part.stat().st_size for part in (path, path.with_suffix(".stamps")) if part.exists())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        # removed by the process that makes room, or unreadable: then nothing is known, and files are read
        return b""
