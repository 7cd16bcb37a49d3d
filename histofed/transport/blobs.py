"""Sending and fetching blobs, the client's half: resumable, watched, and within bounds.

Whatever cuts a transfer, the next attempt goes on at the last acknowledged byte. Attempts are bounded only as long as
nothing moves: an attempt that brought bytes across starts the count again. A wrong digest is not retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import grpc.aio

from histofed.base.clock import Clock
from histofed.base.errors import AggregatorUnavailable, BadData, HistofedError
from histofed.base.ids import Digest
from histofed.transport import limits
from histofed.transport.backoff import Backoff, may_retry
from histofed.transport.channel import Connection
from histofed.transport.part import PartFile
from histofed.v1 import transfer_pb2, transfer_pb2_grpc

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all; must be quick."""
TRANSFER: Final = Backoff(first_s=0.5, most_s=30.0, attempts=8)
_log = logging.getLogger(__name__)


async def upload(
    connection: Connection,
    path: Path,
    sha256: Digest,
    *,
    task: str,
    clock: Clock,
    random: Random,
    progress: Progress | None = None,
    backoff: Backoff = TRANSFER,
    stall_s: float = limits.STALL_S,
) -> None:
    """Send the file at `path`, whose digest is `sha256`, as the update of `task`; returns when it is durable there.

    Raises `DigestMismatch` (the file changed), `NotAuthorised`, `TooLarge`, `Stale`, `AggregatorUnavailable`, ...
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        sending = _Sending(connection, file.fileno(), task, sha256, size, progress or _quiet, stall_s)
        await _persist(sending.attempt, lambda: sending.acknowledged, f"upload of {size} bytes", backoff, clock, random)


async def download(
    connection: Connection,
    sha256: Digest,
    target: Path,
    *,
    size: int,
    clock: Clock,
    random: Random,
    progress: Progress | None = None,
    backoff: Backoff = TRANSFER,
    stall_s: float = limits.STALL_S,
) -> None:
    """Fetch a blob of `size` bytes to `target`, by way of `target`.part; returns when it is durable and its digest right.

    A target that is there already, with the right bytes, is kept. Raises `DigestMismatch`, `NotAuthorised`, `NotFound`,
    `CannotWriteState`, `AggregatorUnavailable`, ...
    """
    if await asyncio.to_thread(_is, target, sha256, size):
        return
    part = await asyncio.to_thread(PartFile, target.with_name(f"{target.name}.part"), sha256, size)
    try:
        fetching = _Fetching(connection, part, sha256, progress or _quiet, stall_s)
        await _persist(fetching.attempt, lambda: part.written, f"download of {size} bytes", backoff, clock, random)
        await asyncio.to_thread(part.verify)
        await asyncio.to_thread(part.adopt, target)
    finally:
        part.close()


async def _persist(
    attempt: Callable[[], Awaitable[None]],
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
        try:
            return await attempt()
        except HistofedError as error:
            if position() > before:
                delays = backoff.delays(random)
            delay = next(delays, None) if may_retry(error) else None
            if delay is None:
                raise
            _log.warning("%s stands at byte %d, trying again in %.1f s: %s", what, position(), delay, error)
        await clock.sleep(delay)


class _Sending:
    """One upload over as many connections as it takes."""

    def __init__(
        self,
        connection: Connection,
        descriptor: int,
        task: str,
        sha256: Digest,
        size: int,
        progress: Progress,
        stall_s: float,
    ) -> None:
        self._connection = connection
        self._descriptor = descriptor
        self._wanted = transfer_pb2.GetUploadRequest(task=task, sha256=sha256, bytes=size)
        self._size = size
        self._progress = progress
        self._stall_s = stall_s
        self.acknowledged = 0
        """Bytes that are on the aggregator's disk."""

    async def attempt(self) -> None:
        """One stream. Raises a `HistofedError`."""
        heard, complete = _Latest(), False
        async with _watchdog(self._connection, self._stall_s) as alive:
            pieces = self._pieces(heard, alive)
            call = transfer_pb2_grpc.BlobServiceStub(self._connection.channel).Upload(pieces)
            try:
                async for answer in call:
                    alive()
                    self.acknowledged = answer.committed
                    heard.tell(answer.committed)
                    self._progress(answer.committed, self._size)
                    complete = answer.complete
            except grpc.aio.AioRpcError as error:
                raise await self._connection.explain(error) from error
            finally:
                call.cancel()
        if not complete:
            raise AggregatorUnavailable(f"the aggregator at {self._connection.address} ended the upload in the middle")

    async def _pieces(self, heard: _Latest, alive: Callable[[], None]) -> AsyncIterator[transfer_pb2.UploadRequest]:
        """The blob's name, then its bytes from where the aggregator stands, never more than a window ahead of it."""
        yield transfer_pb2.UploadRequest(blob=self._wanted)
        offset = await heard.at_least(0)
        while offset < self._size:
            await heard.at_least(offset - limits.WINDOW + limits.CHUNK)
            data = await asyncio.to_thread(os.pread, self._descriptor, limits.CHUNK, offset)
            yield transfer_pb2.UploadRequest(offset=offset, data=data)
            alive()
            if not data:
                return  # the file shrank; the aggregator misses bytes and says so
            offset += len(data)


class _Fetching:
    """One download over as many connections as it takes."""

    def __init__(self, connection: Connection, part: PartFile, sha256: Digest, progress: Progress, stall_s: float) -> None:
        self._connection = connection
        self._part = part
        self._sha256 = sha256
        self._progress = progress
        self._stall_s = stall_s

    async def attempt(self) -> None:
        """One stream. Raises a `HistofedError`."""
        stub = transfer_pb2_grpc.BlobServiceStub(self._connection.channel)
        request = transfer_pb2.DownloadRequest(sha256=self._sha256, offset=self._part.written)
        async with _watchdog(self._connection, self._stall_s) as alive:
            messages = self._connection.stream(stub.Download, request)
            async with contextlib.aclosing(messages):  # type: ignore[type-var]  # an async generator
                async for message in messages:
                    alive()
                    await asyncio.to_thread(self._take, message)
                    self._progress(self._part.written, self._part.size)
        if self._part.written < self._part.size:
            raise AggregatorUnavailable(f"the aggregator at {self._connection.address} ended the download in the middle")

    def _take(self, message: Any) -> None:
        if message.bytes != self._part.size:
            raise BadData(f"the blob has {message.bytes} bytes, {self._part.size} were expected")
        self._part.append(message.offset, message.data)
        if self._part.written - self._part.committed >= limits.SYNC_EVERY:
            self._part.commit()


class _Latest:
    """The highest number heard so far; others wait for it to rise."""

    def __init__(self) -> None:
        self._value = -limits.WINDOW
        self._risen = asyncio.Event()

    def tell(self, value: int) -> None:
        self._value = value
        self._risen.set()

    async def at_least(self, value: int) -> int:
        while self._value < value:
            self._risen.clear()
            await self._risen.wait()
        return self._value


@contextlib.asynccontextmanager
async def _watchdog(connection: Connection, stall_s: float) -> AsyncIterator[Callable[[], None]]:
    """Ends the block when the function it hands out was not called for `stall_s` seconds."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(stall_s) as limit:
            yield lambda: limit.reschedule(loop.time() + stall_s)
    except TimeoutError as error:
        raise AggregatorUnavailable(
            f"no byte moved to or from {connection.address} for {stall_s:g} seconds; the transfer will be resumed"
        ) from error


def _is(path: Path, sha256: Digest, size: int) -> bool:
    """Whether `path` is there with these very bytes."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == size and hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


def _quiet(done: int, total: int) -> None:
    """Nobody wants to know."""
