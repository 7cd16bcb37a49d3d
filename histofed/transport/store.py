"""Files named by their SHA-256, and the uploads that are on their way to become one.

    <sha256>                     a complete blob, never changed
    <sha256>.<owner>.part        an upload; one per owner, so that nobody can spoil another's (.part.sums: see `sums.py`)
    <sha256>.<owner>.received    this owner sent all of it: knowing a digest is not having the bytes

Thread-safe; calls may block on the disk. Used by the aggregator.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from histofed.base import durable
from histofed.base.errors import NotFound, TryLater, passes
from histofed.base.failpoints import failpoint
from histofed.base.ids import Digest, digest, sha256
from histofed.transport import limits
from histofed.transport.receiving import Upload, Writer

_log = logging.getLogger(__name__)

_ROUND_ENDED: Final = "the round has ended: what this site sends for it is not wanted any more"
_ANOTHER: Final = "this site announced another update of the task: what it sends of this one is not wanted any more"


def owner_of(task: str) -> str:
    """How a task, and so its site, is written in a file's name."""
    return sha256(task.encode())[:16]


@contextlib.contextmanager
def read_errors(sha: str) -> Iterator[None]:
    """A blob that is gone, or that the disk does not give, is `NotFound`: whoever asks may have another way.

    What passes, a want of descriptors or of memory, is `TryLater`.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"there is no blob {sha[:12]}… here") from error
    except OSError as error:
        if passes(error):
            raise TryLater(f"blob {sha[:12]}… cannot be read now: {error.strerror}") from error
        _log.error("blob %s… cannot be read: %s; repair the disk", sha[:12], error.strerror)
        raise NotFound(
            f"blob {sha[:12]}… cannot be read ({error.strerror}): the aggregator's disk may be damaged"
        ) from error


class BlobStore:
    """One folder of blobs."""

    def __init__(self, directory: Path) -> None:
        """Raises `CannotWriteState`."""
        self._directory = durable.make_directory(directory)
        self._lock = threading.Lock()
        self._names = threading.Lock()
        """Which files there are is looked at and acted upon by one thread at a time."""
        self._uploads: dict[tuple[Digest, str], Upload] = {}
        self._adopted: set[Digest] = set()
        """Made here in this life: whoever sent the same bytes takes none of them along, also before a row names them."""

    def path(self, sha: str) -> Path:
        """Where the blob is or would be. Raises `BadData` for anything but a digest, so for every path."""
        return self._directory / digest(sha)

    def has(self, sha: str) -> bool:
        """Whether the blob is complete here."""
        return self.path(sha).is_file()

    def size(self, sha: str) -> int:
        """Length in bytes. Raises `NotFound`."""
        with read_errors(sha):
            return self.path(sha).stat().st_size

    def digests(self) -> set[Digest]:
        """Every complete blob. Raises `CannotWriteState`."""
        return _digests(durable.listing(self._directory))

    def received(self, sha: str, owner: str) -> bool:
        """Whether the blob is complete and `owner` sent all of it."""
        return self.has(sha) and self._receipt(sha, owner).exists()

    def settle(self) -> None:
        """Every blob and receipt that is here stays here. Raises `CannotWriteState`."""
        with durable.state_errors("what was received"):
            durable.fsync_directory(self._directory)

    def committed(self, sha: str, owner: str) -> int:
        """Bytes of `owner`'s upload that are here; the whole length when it is complete."""
        if self.received(sha, owner):
            return self.size(sha)
        return _length(self._part(sha, owner))

    def adopt(self, path: Path, sha: Digest) -> None:
        """Take over a complete, synced file of this machine whose digest was found while it was written; durable.

        From here on it goes by `sweep` or `remove` alone. Raises `CannotWriteState`.
        """
        with self._names:
            self._adopted.add(sha)
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
        with self._names:
            for path in (self.path(sha), *durable.listing(self._directory, f"{digest(sha)}.*")):
                durable.remove(path)
            self._adopted.discard(digest(sha))

    def forget(self, owners: Collection[str], keep: Callable[[Digest], bool]) -> None:
        """Drop everything that `owners` sent, and end what they are sending: their round is over.

        A blob goes with its last receipt, unless `keep` wants it: another owner may have sent the same bytes. One look at
        the folder and one sync of it, however many owners there are. Raises `CannotWriteState`.
        """
        self._drop(lambda _, owner: owner in owners, keep, _ROUND_ENDED)

    def forget_others(self, owner: str, sha: Digest, keep: Callable[[Digest], bool]) -> None:
        """The same for what `owner` sent, or is sending, of any other blob than `sha`. Raises `CannotWriteState`."""
        self._drop(_others(owner, sha), keep, _ANOTHER)

    def bytes_of_others(self, owner: str, sha: Digest, keep: Callable[[Digest], bool]) -> int:
        """What `forget_others` would give back to the disk. Raises `CannotWriteState`."""
        with self._names, durable.state_errors("what a site sent before"):
            return sum(map(_length, self._leaving(_others(owner, sha), keep)))

    def _drop(self, unwanted: Callable[[str, str], bool], keep: Callable[[Digest], bool], reason: str) -> None:
        self._end(unwanted, reason)
        with self._names:
            self._remove(unwanted, lambda name: name in self._adopted or keep(name))

    def _remove(self, unwanted: Callable[[str, str], bool], keep: Callable[[Digest], bool]) -> None:
        with durable.state_errors("what a round left"):
            for path in self._leaving(unwanted, keep):
                path.unlink(missing_ok=True)
                failpoint("remove.after_unlink")
            durable.fsync_directory(self._directory)

    def _leaving(self, unwanted: Callable[[str, str], bool], keep: Callable[[Digest], bool]) -> list[Path]:
        """The files of these uploads, each blob that nobody else sent behind its receipts."""
        gone: list[Path] = []
        sent: dict[Digest, list[Path]] = {}
        kept: set[Digest] = set()
        for path in sorted(self._directory.iterdir()):
            name, _, rest = path.name.partition(".")
            owner, _, kind = rest.partition(".")
            if kind in ("part", "part.sums") and unwanted(name, owner):
                gone.append(path)
            elif kind == "received":
                if unwanted(name, owner):
                    sent.setdefault(digest(name), []).append(path)
                else:
                    kept.add(digest(name))
        for name, receipts in sent.items():
            gone += receipts
            if name not in kept and not keep(name):
                gone.append(self.path(name))
        return gone

    def sweep(self, keep: Callable[[Digest], bool], most: int) -> int:
        """Remove up to `most` complete blobs that nobody sent and that `keep` does not want; how many there were.

        Raises `CannotWriteState`. Not for a moment at which a blob was imported and its row is not written yet.
        """
        with self._names:
            here = durable.listing(self._directory)
            receipts = {path.name.partition(".")[0] for path in here if path.suffix == ".received"}
            strays = [name for name in sorted(_digests(here) - receipts) if not keep(name)][:most]
            for name in strays:
                durable.remove(self.path(name))
                self._adopted.discard(name)
        return len(strays)

    def owners(self) -> set[str]:
        """Everybody who sent something that is still here. Raises `CannotWriteState`."""
        left = (".part", ".part.sums", ".received")
        return {path.name.split(".")[1] for path in durable.listing(self._directory) if path.name.endswith(left)}

    def writer(self, sha: str, owner: str) -> Writer:
        """A connection of `owner`'s upload; `open` it to write, close it in the end.

        From here on whoever forgets the owner ends it too: ask whether the upload is wanted after this, and before `open`.
        """
        key = digest(sha), owner
        with self._lock:
            upload = self._uploads.setdefault(key, self._upload(*key))
            upload.users += 1
        return Writer(upload, on_close=lambda: self._leave(key, upload))

    def _upload(self, sha: Digest, owner: str) -> Upload:
        return Upload(sha, self._part(sha, owner), self.path(sha), self._receipt(sha, owner), self._names)

    def _leave(self, key: tuple[Digest, str], upload: Upload) -> None:
        with self._lock:
            upload.users -= 1
            last = upload.users == 0
            if last and self._uploads.get(key) is upload:
                del self._uploads[key]
        if last:
            upload.close()

    def _end(self, unwanted: Callable[[str, str], bool], reason: str) -> None:
        """No connection of these uploads writes any more; one that comes later begins anew."""
        with self._lock:
            ended = [self._uploads.pop(key) for key in tuple(self._uploads) if unwanted(*key)]
        for upload in ended:
            upload.end(reason)

    def _part(self, sha: str, owner: str) -> Path:
        return self._directory / f"{digest(sha)}.{owner}.part"

    def _receipt(self, sha: str, owner: str) -> Path:
        return self._directory / f"{digest(sha)}.{owner}.received"


def _digests(here: Iterable[Path]) -> set[Digest]:
    """Those of these files that are complete blobs."""
    return {Digest(path.name) for path in here if len(path.name) == 64}


def _others(owner: str, sha: Digest) -> Callable[[str, str], bool]:
    """What `owner` sends of any other blob than `sha`."""
    return lambda name, sender: sender == owner and name != sha


def _length(path: Path) -> int:
    """Bytes of a file; none where it is not there."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


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
