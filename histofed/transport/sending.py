"""One upload, an attempt at a time: from where the aggregator stands, never more than a window ahead of it.

The first answer says how far the aggregator is, whether it has the task's base, and how fast this site should send; it comes
when it is this site's turn. What the file has in common with the base is named instead of sent. Used by `blobs.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc.aio

from histofed.base.clock import Clock
from histofed.base.errors import AggregatorUnavailable, DigestMismatch, HistofedError, Lost, Unreadable, passes
from histofed.base.ids import Digest
from histofed.telemetry.logs import fields
from histofed.transport import limits
from histofed.transport.channel import Connection
from histofed.transport.frames import Frame, UploadFrame, upload_call
from histofed.transport.held import Held, opened
from histofed.transport.pace import Pace
from histofed.transport.unchanged import Piece, Stretch, digest_of, pieces, unchanged
from histofed.transport.watchdog import in_thread, watchdog
from histofed.v1 import transfer_pb2

_log = logging.getLogger(__name__)


class Sending:
    """One upload over as many connections as it takes. The file stays open as long as it lasts."""

    def __init__(
        self,
        descriptor: int,
        task: str,
        sha256: Digest,
        size: int,
        held: Held | None,
        pace: Pace,
        clock: Clock,
        progress: Callable[[int, int], None],
        stall_s: float,
    ) -> None:
        self._descriptor = descriptor
        self._wanted = transfer_pb2.GetUploadRequest(task=task, sha256=sha256, bytes=size)
        self._size = size
        self._held = held
        self._pace = pace
        self._clock = clock
        self._progress = progress
        self._stall_s = stall_s
        self._comparing: asyncio.Task[tuple[Stretch, ...]] | None = None
        self._copied = False
        self.acknowledged = 0
        """Bytes that are on the aggregator's disk."""

    async def attempt(self, connection: Connection) -> None:
        """One stream; a second one without copies where the aggregator's base has other bytes. Raises a `HistofedError`."""
        try:
            await self._stream(connection)
        except DigestMismatch as error:
            if not self._copied:
                raise
            _log.warning("what is unchanged is sent after all: %s", error)
            self._held, self._copied = None, False
            await self._stream(connection)

    async def _stream(self, connection: Connection) -> None:
        answers, complete = _Answers(), False
        try:
            async with watchdog(self._stall_s, connection.replaced) as alive:
                call = upload_call(connection.channel)(self._requests(answers, alive))
                try:
                    async for answer in call:
                        alive()
                        self._hear(answer, answers)
                        complete = answer.complete
                except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                    # gRPC ends a call whose requests fail, and keeps the reason to itself
                    task = asyncio.current_task()
                    if (failure := answers.failure) is not None and not (task and task.cancelling()):
                        raise failure from error
                    if isinstance(error, grpc.aio.AioRpcError):
                        raise await connection.explain(error) from error
                    raise
                finally:
                    call.cancel()
                    answers.end()
        except TimeoutError as error:
            raise connection.stalled(self._stall_s) from error
        if answers.failure is not None:
            raise answers.failure
        if not complete:
            raise AggregatorUnavailable(f"the aggregator at {connection.address} ended the upload in the middle")

    def _hear(self, answer: transfer_pb2.UploadResponse, answers: _Answers) -> None:
        self.acknowledged = answer.committed
        told = fields(task=self._wanted.task, blob=self._wanted.sha256, bytes=self._size, offset=answer.committed)
        _log.debug("an upload goes on" if answers.first is None else "an upload is kept so far", extra=told)
        answers.tell(answer)
        self._progress(answer.committed, self._size)

    async def _requests(self, answers: _Answers, alive: Callable[[], None]) -> AsyncIterator[UploadFrame]:
        """The frames; where the file does not give them, `answers` has the error, and the stream ends."""
        try:
            async for frame in self._frames(answers, alive):
                yield frame
        except OSError as error:
            answers.failure = unreadable(error)
        except HistofedError as error:
            answers.failure = error

    async def _frames(self, answers: _Answers, alive: Callable[[], None]) -> AsyncIterator[UploadFrame]:
        """The blob's name, then its bytes."""
        yield Frame(transfer_pb2.UploadRequest(blob=self._wanted))
        first = await answers.at_least(0)
        if first is None:
            return
        asked = Pace(self._clock, first.max_bytes_per_second)
        stretches = await self._in_common(first.held)
        for piece in pieces(self._size, stretches, first.committed, min(self._pace.piece, asked.piece)):
            if await answers.at_least(piece.offset - limits.WINDOW + limits.CHUNK) is None:
                return
            if piece.is_copy:
                self._copied = True
                yield await self._copy(piece)
            else:
                await self._pace.take(piece.size)
                await asked.take(piece.size)
                data = await in_thread(os.pread, self._descriptor, piece.size, piece.offset)
                yield Frame(transfer_pb2.UploadRequest(offset=piece.offset), data)
                if len(data) < piece.size:
                    return  # the file shrank; the aggregator misses bytes and says so
            alive()

    async def _in_common(self, held: str) -> tuple[Stretch, ...]:
        """What the file has in common with the blob that both ends hold; compared once, over however many connections."""
        if self._held is None or self._held.sha256 != held:
            return ()
        if self._comparing is None:
            self._comparing = asyncio.create_task(self._compare(self._held.path))
        return await asyncio.shield(self._comparing)

    async def _compare(self, held: Path) -> tuple[Stretch, ...]:
        try:
            # a descriptor of its own: the upload may end while the thread reads
            with os.fdopen(os.dup(self._descriptor), "rb") as own, opened(held) as base:
                return () if base is None else await in_thread(unchanged, own.fileno(), base)
        except OSError as error:
            _log.warning("nothing is taken as unchanged, for what is held cannot be read: %s", error.strerror)
            return ()

    async def _copy(self, piece: Piece) -> UploadFrame:
        sha256 = piece.sha256 or await in_thread(digest_of, self._descriptor, piece.offset, piece.size)
        copy = transfer_pb2.Copy(bytes=piece.size, sha256=sha256)
        return Frame(transfer_pb2.UploadRequest(offset=piece.offset, copy=copy))


def unreadable(error: OSError) -> Unreadable | Lost:
    """The file that was to be sent: `Lost` where another try reads no more of it, `Unreadable` where it may."""
    if passes(error):
        return Unreadable(f"what is to be sent cannot be read now: {error.strerror}; it stays, and is tried again")
    return Lost(f"what was to be sent cannot be read from this machine's disk: {error.strerror}; it has to be made anew")


class _Answers:
    """What the aggregator said last; the sender waits for it to go on."""

    def __init__(self) -> None:
        self.failure: HistofedError | None = None
        """Why no further request came."""
        self.first: transfer_pb2.UploadResponse | None = None
        """The first that does not say that this site waits."""
        self._committed = -1
        self._ended = False
        self._came = asyncio.Event()

    def tell(self, answer: transfer_pb2.UploadResponse) -> None:
        if answer.waiting:
            return
        self.first = self.first or answer
        self._committed = answer.committed
        self._came.set()

    def end(self) -> None:
        """No answer will come any more: whoever waits for one goes home. gRPC forgets its sender when a call fails."""
        self._ended = True
        self._came.set()

    async def at_least(self, committed: int) -> transfer_pb2.UploadResponse | None:
        """The first answer, as soon as one came and so much is on disk; None when the stream is over."""
        while not self._ended and (self.first is None or self._committed < committed):
            self._came.clear()
            await self._came.wait()
        return None if self._ended else self.first
