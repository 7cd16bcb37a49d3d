"""A file that grows towards a known digest: the receiving half of every transfer, on both ends.

Bytes are appended in order, hashed as they come and synced in stretches; what `commit` returned is on disk. When the disk
refuses, the file goes back to what was committed. A part that was left behind is hashed again when it is opened, and
compared with the digests of its synced stretches (`sums.py`): the first one that is not what it was, or that the disk does
not give any more, is dropped with what follows. Journaling file systems grow a file only after its data, so the rest is
trustworthy; if it is not, the digest of the whole finds out and the part is thrown away, so that the next attempt starts
from nothing instead of failing for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from histofed.base import durable
from histofed.base.errors import BadData, DigestMismatch, TooLarge, TryLater, passes
from histofed.base.failpoints import failpoint
from histofed.base.ids import Digest
from histofed.telemetry.logs import fields
from histofed.transport import limits
from histofed.transport.sums import Sum, Sums

_log = logging.getLogger(__name__)


class PartFile:
    """One growing file. Not thread-safe: whoever shares it locks."""

    def __init__(self, path: Path, expected: Digest, size: int, *, check_wanted: Callable[[], None] = lambda: None) -> None:
        """Open or create `path`, to become `size` bytes with digest `expected`; hashes what is there.

        `check_wanted` is asked at each chunk of that: what it raises ends it. Raises `CannotWriteState`.
        """
        self.size = size
        self._path = path
        self._expected = expected
        self._check_wanted = check_wanted
        self._what = f"blob {expected[:12]}…"
        self._hash = hashlib.sha256()
        self._sums = Sums(path)
        with durable.state_errors(self._what):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self.written = self._recover()
            except BaseException:
                os.close(self._descriptor)
                raise
        self.committed = self.written
        self._committed_hash = self._hash.copy()
        _log.debug("a part is opened", extra=self._told())

    def _told(self) -> dict[str, object]:
        return fields(blob=self._expected, bytes=self.size, offset=self.committed)

    def _recover(self) -> int:
        """Hash what an earlier process left; returns its length."""
        length = os.fstat(self._descriptor).st_size
        if length > self.size:
            os.ftruncate(self._descriptor, 0)  # cannot be a beginning of this blob
            length = 0
        os.fdatasync(self._descriptor)
        known = self._sums.read(length)
        offset, end, good, at_good = 0, length, 0, self._hash.copy()
        for stretch in known:
            offset = self._hash_until(offset, stretch.length)
            if offset < stretch.length or self._hash.hexdigest() != stretch.sha256:
                self._hash, offset, end = at_good, good, good
                break
            good, at_good = offset, self._hash.copy()
        kept = self._hash_until(offset, end)
        if kept < length:
            _log.warning(
                "%s: of %d bytes that were here %d are good, the others were damaged and come again",
                self._what,
                length,
                kept,
            )
            os.ftruncate(self._descriptor, kept)
        self._sums.start_with([each for each in known if each.length <= good])
        if kept:
            failpoint("blob.taken_up")
        return kept

    def _hash_until(self, offset: int, end: int) -> int:
        """Add the file's bytes from `offset` on to the digest; returns where it ended.

        That is before `end` in a shorter file, and where the disk does not give the next byte.
        """
        while offset < end and (data := self._read(min(limits.CHUNK, end - offset), offset)):
            self._check_wanted()
            self._hash.update(data)
            offset += len(data)
        return offset

    def _read(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            if passes(error):
                raise
            # it would be met by each process that goes on with this file; what was sent once can be sent again
            return b""

    def append(self, offset: int, data: bytes | memoryview) -> None:
        """Add the next bytes. Raises `TryLater` (not the next byte), `TooLarge`, or `CannotWriteState` (then back at
        `committed`)."""
        if offset != self.written:
            raise TryLater(f"{self._what}: the next byte is {self.written}, not {offset}; resume from there")
        if offset + len(data) > self.size:
            raise TooLarge(f"{self._what}: more bytes came than the {self.size} that were announced")
        with durable.state_errors(self._what):
            try:
                done = os.pwrite(self._descriptor, data, offset)
                while done < len(data):
                    done += os.pwrite(self._descriptor, memoryview(data)[done:], offset + done)
                failpoint("blob.chunk_written")
            except OSError:
                self._take_back()
                raise
        self._hash.update(data)
        self.written += len(data)

    def commit(self) -> int:
        """Make everything written durable; returns how much that is. Raises `CannotWriteState`."""
        if self.committed != self.written:
            with durable.state_errors(self._what):
                try:
                    os.fdatasync(self._descriptor)
                    failpoint("blob.chunk_synced")
                    if self.written < self.size:
                        self._sums.add(Sum(self.written, self._hash.hexdigest()))
                except OSError:
                    self._take_back()
                    raise
            self.committed = self.written
            self._committed_hash = self._hash.copy()
            _log.debug("a part is kept so far", extra=self._told())
        return self.committed

    def _take_back(self) -> None:
        """Forget what was not committed, on disk and in the digest."""
        with contextlib.suppress(OSError):  # a disk that refuses this too leaves a tail, which the digest catches
            os.ftruncate(self._descriptor, self.committed)
        self.written = self.committed
        self._hash = self._committed_hash.copy()

    def verify(self) -> None:
        """Commit, then check length and digest.

        Raises `BadData` (bytes are missing; the part stays), `DigestMismatch` (the part is gone), `CannotWriteState`.
        """
        self.commit()
        if self.written != self.size:
            raise BadData(f"{self._what} has {self.written} of {self.size} bytes: it is not complete")
        if self._hash.hexdigest() != self._expected:
            with durable.state_errors(self._what):
                self._sums.remove()
            durable.remove(self._path)
            raise DigestMismatch(
                f"{self._what}: the bytes have SHA-256 {self._hash.hexdigest()[:12]}…, they were dropped; "
                "check the file, then send it again from the beginning"
            )

    def adopt(self, target: Path) -> None:
        """Rename what was verified into place, durable. Raises `CannotWriteState`."""
        with durable.state_errors(self._what):
            failpoint("blob.before_complete")
            self._path.rename(target)
            self._sums.remove()
            durable.fsync_directory(target.parent)
            failpoint("blob.complete")

    def close(self) -> None:
        """Release the file; what was written stays."""
        os.close(self._descriptor)
