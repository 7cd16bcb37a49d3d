"""The one place that writes state files, with a failpoint at each of its fsync boundaries.

Three promises, each true after `kill -9` or a power cut at any instant: a file written by `replace` holds the old or
the new bytes, never a mixture; a line that `AppendLog.append` returned from is on disk; two processes never hold the same
`lock`. A full or failing disk raises `CannotWriteState`, another user's `NotOurs`, and leaves what was there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from histofed.base import owner
from histofed.base.errors import AlreadyThere, CannotWriteState, NotOurs
from histofed.base.failpoints import failpoint

_TEMPORARY: Final = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp", re.DOTALL)
"""What `writing` calls a file that has not got its name yet."""
_BY_NUMBER: Final = re.compile(r"\..+\.[0-9]{1,7}\.tmp", re.DOTALL)
"""What it called one in earlier releases."""


@contextlib.contextmanager
def state_errors(what: str) -> Iterator[None]:
    """Turn the system's refusal to write into `CannotWriteState` with a sentence, `NotOurs` where a right is missing."""
    try:
        yield
    except PermissionError as error:
        raise owner.refused(error) or NotOurs(_unwritten(what, error, "look at who owns it, and at lsattr")) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise CannotWriteState(_unwritten(what, error, "a file is where a folder must be, name another place")) from error
    except OSError as error:
        raise CannotWriteState(_unwritten(what, error, "free space or repair the disk")) from error


def _unwritten(what: str, error: OSError, remedy: str) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"cannot write {what}: {reason}; {remedy}, nothing was acknowledged"


def fsync_directory(directory: Path) -> None:
    """Make a rename or an unlink inside `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path, mode: int = 0o700) -> Path:
    """Create `directory` and its parents (mode of the last one: `mode`), durable. Raises `CannotWriteState`."""
    with state_errors(f"directory {directory}"):
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
        for path in missing:
            fsync_directory(path.parent)
    return directory


def listing(folder: Path, pattern: str = "*") -> list[Path]:
    """What is in `folder` under such a name, by name; nothing where no folder is. Raises `CannotWriteState`.

    For whoever removes or leaves out what is not named: `Path.glob` takes a folder that cannot be read for an empty one.
    """
    with state_errors(str(folder)), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(path for path in folder.iterdir() if fnmatch.fnmatchcase(path.name, pattern))
    return []


def touch(path: Path) -> None:
    """Set the time of a file that exists to now; one that does not stays away. Raises `CannotWriteState`."""
    with state_errors(str(path)), contextlib.suppress(FileNotFoundError):
        os.utime(path)


def replace(path: Path, data: bytes, mode: int = 0o600, *, fresh: bool = False) -> None:
    """Write `data` to `path`, all or nothing, durable on return. `fresh` as in `writing`. Raises `CannotWriteState`."""
    with writing(path, mode, fresh=fresh) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path, mode: int = 0o600, *, fresh: bool = False) -> Iterator[IO[bytes]]:
    """Open a temporary file that becomes `path`, durable, when the block ends without an error.

    An error inside the block removes the temporary file and leaves `path` as it was; what a process that was killed left
    of `path` goes first. In a `fresh` folder, made for these files, there is no such thing: nobody looks through it for each
    of many files. Raises `CannotWriteState`.
    """
    with state_errors(str(path)):
        if not fresh:
            sweep(path.parent, path.name)
        temporary, descriptor = _temporary(path, mode)
        try:
            # renamed while it is open: its lock goes with it
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                failpoint("replace.before_rename")
                temporary.rename(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
        fsync_directory(path.parent)
        failpoint("replace.after_rename")


def _temporary(path: Path, mode: int) -> tuple[Path, int]:
    """A new file beside `path`, open, and locked as long as it is open. Raises `OSError`."""
    for _ in range(100):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = temporary.exists()
        except BlockingIOError:
            ours = False  # somebody sweeps, and came before the lock
        except OSError:
            ours = True  # a file system without locks: nobody sweeps there
        if ours:
            return temporary, descriptor
        os.close(descriptor)
    raise OSError(errno.EAGAIN, "another process removes each temporary file beside it")


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files that killed processes left in `folder`, of the file `name` or of any.

    Who writes one holds its lock, so one whose lock can be had is nobody's. (A process's number would not tell: containers
    share folders, and each counts its own.) Earlier releases locked none: theirs go with those of any file, which is for
    who writes there alone. What cannot be looked at, locked or removed stays.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _is_temporary(entry.name, name):
                _remove_abandoned(folder / entry.name)


def _is_temporary(entry: str, name: str | None) -> bool:
    if (found := _TEMPORARY.fullmatch(entry)) is not None:
        return name in (None, found["name"])
    return name is None and _BY_NUMBER.fullmatch(entry) is not None


def _remove_abandoned(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # nothing is lost where a power cut brings it back
            temporary.unlink()
        finally:
            os.close(descriptor)


def adopt(source: Path, target: Path) -> None:
    """Rename a complete, fsynced file into place (same file system), durable. Raises `CannotWriteState`."""
    with state_errors(str(target)):
        failpoint("adopt.before_rename")
        source.rename(target)
        fsync_directory(target.parent)
        failpoint("adopt.after_rename")


def link(source: Path, target: Path) -> None:
    """Give a complete, synced file a second name, `target`, in the place of what had it; durable. For files that nobody
    changes (ours are replaced, never written again). Raises `CannotWriteState`."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.link")
    with state_errors(str(target)):
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        failpoint("replace.before_rename")
        temporary.rename(target)
        temporary.unlink(missing_ok=True)  # it stays where both were the same file already
        fsync_directory(target.parent)
        failpoint("replace.after_rename")


def remove(path: Path) -> None:
    """Delete a file or a folder if it is there; the removal is durable. Raises `CannotWriteState`."""
    with state_errors(str(path)):
        there = os.path.lexists(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        # also of one that is gone: who removed it may have died before this
        if path.parent.exists():
            fsync_directory(path.parent)
        if there:
            failpoint("remove.after_unlink")


def free_bytes(folder: Path) -> int:
    """What this process may still write to the disk that `folder` is on. Raises `CannotWriteState`."""
    with state_errors(str(folder)):
        found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class AppendLog:
    """A file that only grows: each `append` is on disk when it returns.

    A torn last line, left by a crash in the middle of a write, is cut off when the file is opened again: it was never
    acknowledged. A failed write is taken back, so that the next append does not follow half a line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with state_errors(str(path)):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fsync_directory(path.parent)
                size = os.fstat(self._descriptor).st_size
                self._end = _end_of_last_line(self._descriptor, size)
                if self._end != size:
                    os.ftruncate(self._descriptor, self._end)
                    os.fsync(self._descriptor)
            except OSError:
                os.close(self._descriptor)
                raise

    @property
    def size(self) -> int:
        """Bytes that are acknowledged."""
        return self._end

    def append(self, line: bytes) -> None:
        """Add one line (without its newline). Raises `CannotWriteState`; then nothing was added."""
        data = line + b"\n"
        with state_errors(str(self.path)):
            # a failed append whose half line could not be taken back then must not stay behind this one
            if os.fstat(self._descriptor).st_size != self._end:
                os.ftruncate(self._descriptor, self._end)
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(self._descriptor, data[written:], self._end + written)
                failpoint("journal.before_fsync")
                os.fdatasync(self._descriptor)
                failpoint("journal.after_fsync")
            except OSError:
                os.ftruncate(self._descriptor, self._end)
                raise
        self._end += len(data)

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)


def _end_of_last_line(descriptor: int, size: int) -> int:
    """The offset just behind the last newline; 0 when there is none."""
    end = size
    while end > 0:
        begin = max(0, end - 65536)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


@contextlib.contextmanager
def lock(path: Path, holder: str) -> Iterator[None]:
    """Hold `path` alone as long as the block lasts; the kernel lets go when the process dies.

    Raises `AlreadyThere` with the holder's name and process when somebody else holds it.
    """
    with state_errors(str(path)):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            raise AlreadyThere(
                f"another process uses {path.parent} ({other or 'unknown'}); stop it first, two would corrupt the state"
            ) from error
        with state_errors(str(path)):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{holder}, process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)
