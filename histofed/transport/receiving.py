"""One upload, at the aggregator: what its connections share, and which of them may write.

It has one writer at a time: a connection that comes later takes it over, because the earlier one may be dead without
anybody knowing yet. One that is ended, because nobody wants its bytes any more, never touches its files again: whoever
ended it removes them. Thread-safe; calls may block on the disk. Used by `store.py`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from histofed.base import durable
from histofed.base.errors import DigestMismatch, Stale
from histofed.base.ids import Digest
from histofed.transport import limits
from histofed.transport.part import PartFile


class Upload:
    """The part, its lock, and who may write."""

    def __init__(self, sha: Digest, path: Path, target: Path, receipt: Path, names: threading.Lock) -> None:
        self.lock = threading.Lock()
        self.names = names
        """Of the folder: taken after `lock`."""
        self.opening = asyncio.Lock()
        """Held by the connection that opens, so that however many there are, one thread waits for `lock`."""
        self.users = 0
        self.part: PartFile | None = None
        self.writer: Writer | None = None
        self.unwanted = ""
        """Why nobody wants it any more."""
        self.target = target
        self.receipt = receipt
        self._sha = sha
        self._path = path

    def hand_over(self, writer: Writer, size: int) -> None:
        """The writer before finds itself refused. Raises `CannotWriteState`, `Stale`."""
        with self.lock:
            self.check_wanted()
            if self.part is not None and self.part.size != size:
                self._close()
            if self.part is None:
                self.part = PartFile(self._path, self._sha, size, check_wanted=self.check_wanted)
            self.part.commit()
            self.writer = writer

    def let_go(self, writer: Writer) -> None:
        """The writer's connection is over; what it wrote stays, and stays hashed for who waits to go on with it."""
        if self.writer is not writer:
            return  # and it will not be: its own `hand_over` is over. No thread needs to wait for another one's
        with self.lock:
            if self.writer is writer:
                self.writer = None

    def check_wanted(self) -> None:
        """Raises `Stale` once it was ended."""
        if self.unwanted:
            raise Stale(self.unwanted)

    def end(self, reason: str) -> None:
        """Nobody wants it any more: what is being written is waited for, and nothing is written after it.

        Waits for one write or one chunk that is hashed, never for the file: the daemon's loop calls it.
        """
        self.unwanted = reason  # before the lock, so that whoever hashes under it stops
        with self.lock:
            self.writer = None
            self._close()

    def close(self) -> None:
        """The last of its connections has left."""
        with self.lock:
            self._close()

    def drop(self) -> None:
        """With the lock: its file is no part any more, so a connection that comes now begins another one."""
        self._close()

    def _close(self) -> None:
        if self.part is not None:
            part, self.part = self.part, None
            part.close()


class Writer:
    """One connection of an upload: once it is open it may append, until a later one is, or the upload is ended."""

    def __init__(self, upload: Upload, on_close: Callable[[], None]) -> None:
        self._upload = upload
        self._on_close = on_close

    def open(self, size: int) -> Writer:
        """Become the upload's writer, from its committed offset on; hashes what is there.

        Raises `CannotWriteState`, `Stale` (it was ended).
        """
        self._upload.hand_over(self, size)
        return self

    @property
    def opening(self) -> asyncio.Lock:
        """To be held around `open` on a daemon's loop: it hashes in a thread, and a site may open any number of times."""
        return self._upload.opening

    @property
    def committed(self) -> int:
        """Bytes on disk. Never waits, for the daemon's loop asks. Raises `Stale`."""
        return self._held().committed

    def append(self, offset: int, data: bytes | memoryview, *, sync: bool = False) -> int:
        """Add the next bytes; sync when asked or when a stretch is full. Returns the bytes on disk.

        Raises `Stale` (a later connection writes now, or nobody wants the upload any more), `TryLater` (not the next byte),
        `TooLarge`, `CannotWriteState`.
        """
        self._held()  # before the lock too: who is refused waits for nobody
        with self._upload.lock:
            part = self._held()
            part.append(offset, data)
            if sync or part.written - part.committed >= limits.SYNC_EVERY:
                part.commit()
            return part.committed

    def finish(self) -> None:
        """The upload becomes a blob, with a receipt. Raises `BadData`, `DigestMismatch`, `CannotWriteState`, `Stale`."""
        with self._upload.lock:
            part = self._held()
            try:
                part.verify()
            except DigestMismatch:
                self._upload.drop()
                raise
            # whoever removes the same bytes of another owner sees receipt and blob, or neither
            with self._upload.names:
                with durable.state_errors("the receipt of a blob"):
                    self._upload.receipt.touch(mode=0o600)  # the sync of the directory below makes it durable too
                try:
                    part.adopt(self._upload.target)
                finally:
                    self._upload.drop()

    def close(self) -> None:
        """Let go; call it once."""
        self._upload.let_go(self)
        self._on_close()

    def _held(self) -> PartFile:
        self._upload.check_wanted()
        part = self._upload.part
        if self._upload.writer is not self or part is None:
            raise Stale("another connection of this site sends the same blob now; this one stops")
        return part
