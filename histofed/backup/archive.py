"""The file itself: an uncompressed tar (POSIX.1-2001) of manifest.json, signature.json and the members in their order.

Any tar shows what is in it; only `Archive` decides whether it may be trusted. Nothing in a file is believed before its hash
is right: members come in the manifest's order, with the manifest's lengths, as plain files, under names that the caller's
kind of state allows, and nothing follows them. Written with one rename, mode 0600.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from histofed.backup import manifest as document
from histofed.backup.manifest import CA_MEMBER, SIZE_LIMIT, Manifest, Member
from histofed.base import durable
from histofed.base.clock import from_iso
from histofed.base.errors import AlreadyThere, BadData, DigestMismatch, NotFound, UsageError
from histofed.base.ids import Digest
from histofed.pki.credentials import Credentials

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "signature.json"
CHUNK: Final = 1 << 20
_SIGNATURE_LIMIT: Final = 64 << 10


@dataclass(frozen=True)
class Source:
    """A file of the state, or the beginning of one, on its way into a backup."""

    name: str
    path: Path
    bytes: int
    sha256: Digest

    @classmethod
    def read(cls, name: str, path: Path, length: int | None = None) -> Source:
        """Hash the first `length` bytes of a file, or all of it. Raises `BadData` where it is shorter."""
        size = path.stat().st_size if length is None else length
        found = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in _chunks(file, size, name):
                found.update(chunk)
        return cls(name, path, size, Digest(found.hexdigest()))

    @property
    def member(self) -> Member:
        """As the manifest names it."""
        return Member(self.name, self.bytes, self.sha256)


def refuse_existing(target: Path) -> None:
    """A backup overwrites nothing. Raises `AlreadyThere`, and `NotFound` for a folder that is not there."""
    if target.exists() or target.is_symlink():
        raise AlreadyThere(f"{target} exists; name a new file, a backup overwrites nothing")
    if not target.absolute().parent.is_dir():
        raise NotFound(f"there is no folder {target.absolute().parent} to write the backup into: make it first")


def refuse_inside(target: Path, state: Path) -> None:
    """The daemon clears folders of its state, and needs the names of others. Raises `UsageError`."""
    # where it lies as it is typed, and where links lead
    if any(Path(real(target.parent)).is_relative_to(real(state)) for real in (os.path.abspath, os.path.realpath)):
        raise UsageError(
            f"{target} lies in the state directory {state}, with which it would be lost, and where the daemon may remove "
            "it: name a file outside"
        )


def write(
    target: Path,
    manifest: Manifest,
    sources: Sequence[Source],
    credentials: Credentials,
    written: Callable[[], None] | None = None,
) -> None:
    """Write the backup, whole or not at all, durable on return; `written` is called when its bytes are on disk, before it
    gets its name.

    Raises `AlreadyThere`, `CannotWriteState`, and `DigestMismatch` for a file whose bytes are not what its name or the
    manifest says: the disk under the state is failing.
    """
    refuse_existing(target)
    payload = document.encode(manifest)
    moment = int(from_iso(manifest.made_at).timestamp())
    with durable.writing(target) as file:
        with tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in ((MANIFEST, payload), (SIGNATURE, document.seal(payload, credentials))):
                tar.addfile(_header(name, len(data), moment), io.BytesIO(data))
            for source in sources:
                with source.path.open("rb") as reading:
                    hashed = Hashed(reading)
                    tar.addfile(_header(source.name, source.bytes, moment), hashed)
                if hashed.digest != source.sha256:
                    raise DigestMismatch(
                        f"{source.path} is not what its name says: the disk under the state is failing; "
                        "nothing was written, run doctor"
                    )
        refuse_existing(target)
        if written is not None:
            file.flush()
            os.fsync(file.fileno())
            written()


class Archive:
    """An open backup whose manifest and signature are right; its members are checked as they are read."""

    def __init__(self, tar: tarfile.TarFile, path: Path, kind: document.Kind, allowed: re.Pattern[str]) -> None:
        self._tar = tar
        self._path = path
        payload = self._document(MANIFEST, SIZE_LIMIT)
        self._signature = self._document(SIGNATURE, _SIGNATURE_LIMIT)
        self._payload = payload
        self.manifest = document.decode(payload)
        if self.manifest.kind != kind:
            raise BadData(
                f"{path} is the backup of an {self.manifest.kind}: use histofed-{self.manifest.kind} to check or restore it"
            )
        names = [member.name for member in self.manifest.members]
        strange = next((name for name in names if not allowed.fullmatch(name)), None)
        if strange is not None or len(set(names)) != len(names) or names[:1] != [CA_MEMBER]:
            raise BadData(f"the manifest of {path} names files that no backup of an {kind} has; it was not made by histofed")

    def members(self) -> Iterator[tuple[Member, Hashed]]:
        """Each member with its bytes, once, in order; read each to its end. Raises `BadData` and `DigestMismatch`."""
        for member in self.manifest.members:
            reader = Hashed(self._next(member.name, member.bytes))
            yield member, reader
            if reader.digest != member.sha256:
                raise DigestMismatch(f"{member.name} in {self._path} is not what was backed up: the file is damaged")
            if member.name == CA_MEMBER:
                document.prove(self._payload, self._signature, reader.small)
        with _tar_errors(self._path):
            if self._tar.next() is not None:
                raise BadData(f"{self._path} has more in it than its manifest names; it was changed")

    def _document(self, name: str, limit: int) -> bytes:
        return self._next(name, None, limit).read(limit)

    def _next(self, name: str, size: int | None, limit: int | None = None) -> _Member:
        with _tar_errors(self._path):
            info = self._tar.next()
            if info is None or info.name != name or not info.isreg():
                raise BadData(f"{self._path} is not a backup of histofed, or it was changed: {name} is not where it must be")
            if (size is not None and info.size != size) or (limit is not None and info.size > limit):
                raise BadData(f"{self._path} was changed or cut short: {name} does not have the length that it must have")
            opened = self._tar.extractfile(info)
            assert opened is not None, "a regular member has content"
            return _Member(opened, self._path)


@contextlib.contextmanager
def reading(path: Path, kind: document.Kind, allowed: re.Pattern[str]) -> Iterator[Archive]:
    """Open a backup; `allowed` are the names that this kind of state has.

    Raises `NotFound`, `BadData`, `VersionMismatch`.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise NotFound(f"the backup {path} cannot be read: {error.strerror}") from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(file)
        with _tar_errors(path):
            tar = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
        yield Archive(tar, path, kind, allowed)


def check(path: Path, kind: document.Kind, allowed: re.Pattern[str]) -> Manifest:
    """Read everything and write nothing. Raises what `reading` and `Archive.members` raise."""
    with reading(path, kind, allowed) as archive:
        for _, content in archive.members():
            while content.read(CHUNK):
                pass
        return archive.manifest


def unpack(archive: Archive, folder: Path, prepare: Callable[[Manifest], None]) -> None:
    """Write every member below the new `folder`, each synced and proven; `prepare` may refuse before the first byte.

    Raises what `Archive.members` raises and `CannotWriteState`; then the folder holds a part, for the caller to remove.
    """
    prepare(archive.manifest)
    for member, content in archive.members():
        target = folder / member.name
        durable.make_directory(target.parent)
        with durable.writing(target, fresh=True) as file:
            while data := content.read(CHUNK):
                file.write(data)


class _Member:
    """A member's content whose damage is told in words."""

    def __init__(self, inner: IO[bytes], path: Path) -> None:
        self._inner = inner
        self._path = path

    def read(self, count: int = -1) -> bytes:
        with _tar_errors(self._path):
            return self._inner.read(count)


class Hashed:
    """Bytes that are hashed as they are read."""

    def __init__(self, inner: IO[bytes] | _Member) -> None:
        self._inner = inner
        self._hash = hashlib.sha256()
        self.small = b""
        """The beginning: what a certificate's file holds."""

    def read(self, count: int = -1) -> bytes:
        """The next bytes."""
        data = self._inner.read(count)
        self._hash.update(data)
        if len(self.small) < _SIGNATURE_LIMIT:
            self.small += data[:_SIGNATURE_LIMIT]
        return data

    @property
    def digest(self) -> Digest:
        """Of what was read so far."""
        return Digest(self._hash.hexdigest())


def _chunks(file: IO[bytes], size: int, name: str) -> Iterator[bytes]:
    left = size
    while left:
        data = file.read(min(CHUNK, left))
        if not data:
            raise BadData(f"{name} became shorter while it was read; the disk may be failing")
        left -= len(data)
        yield data


def _header(name: str, size: int, moment: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = size, 0o600, moment
    return header


@contextlib.contextmanager
def _tar_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise BadData(f"{path} is not a backup of histofed, or it is damaged or cut short ({error})") from error
