"""Files named by their SHA-256, and the uploads that are on their way to become one.

    <sha256>                     a complete blob, never changed
    <sha256>.<owner>.part        an upload; one per owner, so that nobody can spoil another's (.part.sums: see `sums.py`)
    <sha256>.<owner>.received    this owner sent all of it: knowing a digest is not having the bytes

An upload has one writer at a time: a connection that comes later takes it over, because the earlier one may be dead
without anybody knowing yet. Thread-safe; calls may block on the disk. Used by the aggregator.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from histofed.base import durable
from histofed.base.errors import NotFound, Stale
from histofed.base.ids import Digest, digest, sha256
from histofed.transport import limits
from histofed.transport.part import PartFile


def owner_of(task: str) -> str:
    """How a task, and so its site, is written in a file's name."""
    return sha256(task.encode())[:16]


class BlobStore:
    """One folder of blobs."""

    def __init__(self, directory: Path) -> None:
        """Raises `CannotWriteState`."""
        self._directory = durable.make_directory(directory)
        self._lock = threading.Lock()
        self._uploads: dict[tuple[Digest, str], _Upload] = {}

    def path(self, sha: str) -> Path:
        """Where the blob is or would be. Raises `BadData` for anything but a digest, so for every path."""
        return self._directory / digest(sha)

    def has(self, sha: str) -> bool:
        """Whether the blob is complete here."""
        return self.path(sha).is_file()

    def size(self, sha: str) -> int:
        """Length in bytes. Raises `NotFound`."""
        try:
            return self.path(sha).stat().st_size
        except FileNotFoundError as error:
            raise NotFound(f"there is no blob {sha[:12]}… here") from error

    def digests(self) -> set[Digest]:
        """Every complete blob."""
        return {Digest(path.name) for path in self._directory.iterdir() if len(path.name) == 64}

    def received(self, sha: str, owner: str) -> bool:
        """Whether the blob is complete and `owner` sent all of it."""
        return self.has(sha) and self._receipt(sha, owner).exists()

    def committed(self, sha: str, owner: str) -> int:
        """Bytes of `owner`'s upload that are here; the whole length when it is complete."""
        if self.received(sha, owner):
            return self.size(sha)
        with contextlib.suppress(FileNotFoundError):
            return self._part(sha, owner).stat().st_size
        return 0

    def adopt(self, path: Path, sha: Digest) -> None:
        """Take over a complete, synced file of this machine whose digest was found while it was written; durable.

        Raises `CannotWriteState`.
        """
        durable.adopt(path, self.path(sha))

    def import_file(self, path: Path, *, move: bool = False) -> Digest:
        """Take in a file of this machine, copied or moved; durable. Raises `CannotWriteState`."""
        incoming = path if move else self._directory / f".import-{secrets.token_hex(8)}"
        with durable.state_errors("a blob"):
            try:
                name = _hash_and_sync(path) if move else _copy(path, incoming)
                durable.adopt(incoming, self.path(name))
            finally:
                if not move:
                    incoming.unlink(missing_ok=True)
        return name

    def remove(self, sha: str) -> None:
        """Drop the blob, its receipts and its uploads. Raises `CannotWriteState`."""
        for path in (self.path(sha), *self._directory.glob(f"{digest(sha)}.*")):
            durable.remove(path)

    def forget(self, owners: Collection[str], keep: Callable[[Digest], bool]) -> None:
        """Drop everything that `owners` sent: their round is over. Raises `CannotWriteState`.

        A blob goes with its last receipt, unless `keep` wants it: another owner may have sent the same bytes. One look at
        the folder and one sync of it, however many owners there are.
        """
        sent: dict[Digest, list[Path]] = {}
        kept: set[Digest] = set()
        with durable.state_errors("what a round left"):
            for path in sorted(self._directory.iterdir()):
                name, _, rest = path.name.partition(".")
                owner, _, kind = rest.partition(".")
                if kind in ("part", "part.sums") and owner in owners:
                    path.unlink(missing_ok=True)
                elif kind == "received":
                    if owner in owners:
                        sent.setdefault(digest(name), []).append(path)
                    else:
                        kept.add(digest(name))
            for name, receipts in sent.items():
                for path in receipts:
                    path.unlink(missing_ok=True)
                if name not in kept and not keep(name):
                    self.path(name).unlink(missing_ok=True)
            durable.fsync_directory(self._directory)

    def sweep(self, keep: Callable[[Digest], bool], most: int) -> int:
        """Remove up to `most` complete blobs that nobody sent and that `keep` does not want; how many there were.

        Raises `CannotWriteState`. Not for a moment at which a blob was imported and its row is not written yet.
        """
        found = sorted(self.digests())
        # after the blobs: an upload that completes meanwhile writes its receipt first
        receipts = {path.name.partition(".")[0] for path in self._directory.glob("*.received")}
        strays = [name for name in found if name not in receipts and not keep(name)][:most]
        for name in strays:
            durable.remove(self.path(name))
        return len(strays)

    def owners(self) -> set[str]:
        """Everybody who sent something that is still here."""
        return {path.name.split(".")[1] for pattern in ("*.part", "*.received") for path in self._directory.glob(pattern)}

    def open_upload(self, sha: str, size: int, owner: str) -> Writer:
        """Become the writer of `owner`'s upload, from its committed offset on; hashes what is there. Close it.

        Raises `CannotWriteState`.
        """
        key = digest(sha), owner
        with self._lock:
            shared = self._uploads.setdefault(
                key, _Upload(digest(sha), self._part(*key), self.path(sha), self._receipt(*key))
            )
            shared.users += 1
        try:
            return shared.hand_over(size, on_close=lambda: self._leave(key))
        except BaseException:
            self._leave(key)
            raise

    def _leave(self, key: tuple[Digest, str]) -> None:
        with self._lock:
            shared = self._uploads[key]
            shared.users -= 1
            if shared.users == 0:
                del self._uploads[key]

    def _part(self, sha: str, owner: str) -> Path:
        return self._directory / f"{digest(sha)}.{owner}.part"

    def _receipt(self, sha: str, owner: str) -> Path:
        return self._directory / f"{digest(sha)}.{owner}.received"


class _Upload:
    """What the connections of one upload share: the part, its lock, and which of them may write."""

    def __init__(self, sha: Digest, path: Path, target: Path, receipt: Path) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.part: PartFile | None = None
        self.writer: Writer | None = None
        self.target = target
        self.receipt = receipt
        self._sha = sha
        self._path = path

    def hand_over(self, size: int, on_close: Callable[[], None]) -> Writer:
        """A new writer; the one before finds itself refused. Raises `CannotWriteState`."""
        with self.lock:
            if self.part is not None and self.part.size != size:
                self._close()
            if self.part is None:
                self.part = PartFile(self._path, self._sha, size)
            self.part.commit()
            self.writer = Writer(self, on_close)
            return self.writer

    def let_go(self, writer: Writer) -> None:
        """The writer's connection is over; what it wrote stays."""
        with self.lock:
            if self.writer is writer:
                self.writer = None
                self._close()

    def _close(self) -> None:
        if self.part is not None:
            part, self.part = self.part, None
            part.close()


class Writer:
    """The right of one connection to append to an upload, until a later connection takes it."""

    def __init__(self, upload: _Upload, on_close: Callable[[], None]) -> None:
        self._upload = upload
        self._on_close = on_close

    @property
    def committed(self) -> int:
        """Bytes on disk. Raises `Stale`."""
        with self._upload.lock:
            return self._held().committed

    def append(self, offset: int, data: bytes | memoryview, *, sync: bool = False) -> int:
        """Add the next bytes; sync when asked or when a stretch is full. Returns the bytes on disk.

        Raises `Stale` (a later connection writes now), `TryLater` (not the next byte), `TooLarge`, `CannotWriteState`.
        """
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
            part.verify()
            with durable.state_errors("the receipt of a blob"):
                self._upload.receipt.touch(mode=0o600)  # the sync of the directory below makes it durable too
            part.adopt(self._upload.target)

    def close(self) -> None:
        """Let go; call it once."""
        self._upload.let_go(self)
        self._on_close()

    def _held(self) -> PartFile:
        if self._upload.writer is not self or self._upload.part is None:
            raise Stale("another connection of this site sends the same blob now; this one stops")
        return self._upload.part


def _hash_and_sync(path: Path) -> Digest:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return Digest(found)


def _copy(source: Path, target: Path) -> Digest:
    found = hashlib.sha256()
    with source.open("rb") as reading, durable.writing(target) as writing:
        while data := reading.read(limits.CHUNK):
            found.update(data)
            writing.write(data)
    return Digest(found.hexdigest())
