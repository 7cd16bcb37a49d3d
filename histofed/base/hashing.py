"""SHA-256 of a stream beside the work that makes it: hashing has a thread of its own.

Without SHA instructions a core hashes about 0.2 GB/s, several times slower than weights are averaged or written. hashlib
releases the interpreter's lock, so that the digest of a new model is ready a moment after its last byte. Used by
`histofed/weights` for everything it writes.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from pathlib import Path
from types import TracebackType
from typing import Final

from histofed.base.ids import Digest

_CHUNK: Final = 1 << 18
"""Bytes handed over at a time; copied, so that the caller may reuse its buffer."""
_WAITING: Final = 8
"""Chunks that may wait; more would only be memory."""


class StreamDigest:
    """The digest of everything passed to `update`, in order. A context manager: the thread ends with the block.

    A stream shorter than a chunk is hashed where it is: most files are small, and a thread costs more than they do.
    """

    def __init__(self) -> None:
        self._hasher = hashlib.sha256()
        self._few = bytearray()
        self._chunks: queue.Queue[bytearray | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None

    def update(self, data: memoryview) -> None:
        """Add bytes; waits when hashing is more than 2 MiB behind. Few bytes wait for more: waking a thread costs too."""
        for begin in range(0, len(data), _CHUNK):
            self._few += data[begin : begin + _CHUNK]
            if len(self._few) >= _CHUNK:
                self._hand_over()

    def finish(self) -> Digest:
        """Wait for the last byte. Nothing may be added afterwards."""
        self._end()
        self._hasher.update(self._few)
        return Digest(self._hasher.hexdigest())

    def _hand_over(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._hash, name="sha256", daemon=True)
            self._thread.start()
        self._chunks.put(self._few)
        self._few = bytearray()

    def _hash(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            self._hasher.update(chunk)

    def _end(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._chunks.put(None)
            self._thread.join()

    def __enter__(self) -> StreamDigest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()


def sha256_file(path: Path) -> Digest:
    """The digest of a file on disk. Raises `OSError`."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())
