"""Sending and fetching blobs, the client's half: resumable, watched, at a pace, and within bounds.

Whatever cuts a transfer, the next attempt goes on at the last acknowledged byte, over the newest connection: a certificate
that is renewed in mid-transfer moves it to the new channel. Attempts are bounded only as long as nothing moves: an attempt
that brought bytes across starts the count again. A wrong digest is not retried. `sending.py` and `fetching.py` are one
attempt each.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random
from typing import BinaryIO, Final, Protocol

from histofed.base.clock import Clock
from histofed.base.errors import HistofedError
from histofed.base.ids import Digest
from histofed.transport import limits
from histofed.transport.backoff import Backoff, may_retry, retry
from histofed.transport.channel import Connection
from histofed.transport.fetching import Fetching
from histofed.transport.held import Held
from histofed.transport.pace import Pace
from histofed.transport.part import PartFile
from histofed.transport.sending import Sending, unreadable
from histofed.transport.watchdog import in_thread

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all; must be quick."""
TRANSFER: Final = Backoff(first_s=0.5, most_s=30.0, attempts=8)
_log = logging.getLogger(__name__)


class Lines(Protocol):
    """Where the connection of the moment is; a `Connection` is the line to itself."""

    def newest(self) -> AbstractAsyncContextManager[Connection]:
        """The newest connection, kept open as long as the block lasts."""
        ...


async def upload(
    lines: Lines,
    path: Path,
    sha256: Digest,
    *,
    task: str,
    clock: Clock,
    random: Random,
    held: Held | None = None,
    pace: Pace | None = None,
    progress: Progress | None = None,
    backoff: Backoff = TRANSFER,
    stall_s: float = limits.STALL_S,
) -> None:
    """Send the file at `path`, whose digest is `sha256`, as the update of `task`; returns when it is durable there.

    `held` is a blob that the aggregator may have too, the task's base: what is the same in it is not sent, if it has.
    Raises `Lost` (the file cannot be read), `Unreadable` (nor now, but soon perhaps), `DigestMismatch` (it changed),
    `NotAuthorised`, `TooLarge`, `Stale`, `AggregatorUnavailable`, ...
    """
    what = "opening what is to be sent"
    with await retry(lambda: _opened(path), what=what, backoff=backoff, clock=clock, random=random) as file:
        size = os.fstat(file.fileno()).st_size
        sending = Sending(file.fileno(), task, sha256, size, held, pace or Pace(clock), clock, progress or _quiet, stall_s)
        await _persist(
            lines, sending.attempt, lambda: sending.acknowledged, f"upload of {size} bytes", backoff, clock, random
        )


async def download(
    lines: Lines,
    sha256: Digest,
    target: Path,
    *,
    size: int,
    clock: Clock,
    random: Random,
    held: Held | None = None,
    pace: Pace | None = None,
    progress: Progress | None = None,
    backoff: Backoff = TRANSFER,
    stall_s: float = limits.STALL_S,
) -> None:
    """Fetch a blob of `size` bytes to `target`, by way of `target`.part; returns when it is durable and its digest right.

    What is the same in `held`, an earlier blob, is copied from there. A target that is there already, with the right bytes,
    is kept; one that the disk does not give is replaced.

    Raises `DigestMismatch`, `NotAuthorised`, `NotFound`, `CannotWriteState`, `AggregatorUnavailable`, ...
    """
    if await asyncio.to_thread(_is, target, sha256, size):
        return
    part = await in_thread(PartFile, target.with_name(f"{target.name}.part"), sha256, size)
    try:
        fetching = Fetching(part, sha256, held, pace or Pace(clock), progress or _quiet, stall_s)
        await _persist(lines, fetching.attempt, lambda: part.written, f"download of {size} bytes", backoff, clock, random)
        await in_thread(part.verify)
        await in_thread(part.adopt, target)
    finally:
        part.close()


async def _persist(
    lines: Lines,
    attempt: Callable[[Connection], Awaitable[None]],
    position: Callable[[], int],
    what: str,
    backoff: Backoff,
    clock: Clock,
    random: Random,
) -> None:
    """Attempt until done; bounded while nothing moves. Raises the last error."""
    delays = backoff.delays(random)
    while True:
        before = position()
        async with lines.newest() as connection:
            try:
                return await attempt(connection)
            except HistofedError as error:
                if connection.replaced.is_set():  # whatever the old one had to say
                    _log.info("%s stands at byte %d and goes on over a new connection", what, position())
                    continue
                if position() > before:
                    delays = backoff.delays(random)
                delay = next(delays, None) if may_retry(error) else None
                if delay is None:
                    raise
                _log.warning("%s stands at byte %d, trying again in %.1f s: %s", what, position(), delay, error)
        await clock.sleep(delay)


async def _opened(path: Path) -> BinaryIO:
    """What is to be sent. Raises `Lost` and `Unreadable`."""
    try:
        return path.open("rb")
    except OSError as error:
        raise unreadable(error) from error


def _is(path: Path, sha256: Digest, size: int) -> bool:
    """Whether `path` is there with these very bytes."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == size and hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False
    except (PermissionError, IsADirectoryError):
        raise  # not ours to replace
    except OSError as error:
        _log.warning("what is here of blob %s… cannot be read, and is fetched again: %s", sha256[:12], error.strerror)
        return False


def _quiet(done: int, total: int) -> None:
    """Nobody wants to know."""
