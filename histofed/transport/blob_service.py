"""BlobService, the aggregator's half of transfers. What may be read and written is asked of `Permissions`.

An upload's first message names the blob; the answer is the committed offset, and the sender goes on from there. Bytes
are acknowledged when they are on disk. What the other end holds already is copied there instead of sent; nobody is told
about a blob that is not its own business: it is compared with, or copied from, the task's base and earlier models alone. A
transfer in which nothing moves is broken off; one that waits for its turn (`turns.py`) says so every ten seconds. The disk
is touched in threads, so that one slow disk does not stop the others' beats.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from typing import Any, Protocol

from histofed.base.clock import Clock
from histofed.base.errors import BadData, NotFound, TooLarge, TryLater
from histofed.base.heap import Heap
from histofed.base.ids import Digest, TaskKey, digest
from histofed.telemetry import attributes as names
from histofed.telemetry.logs import fields
from histofed.telemetry.metrics import Metrics, NoMetrics
from histofed.transport import limits
from histofed.transport.comparisons import Comparisons
from histofed.transport.frames import DownloadFrame, Frame, UploadFrame
from histofed.transport.gate import Caller, answer, caller
from histofed.transport.held import opened
from histofed.transport.pace import Pace, Paces
from histofed.transport.receiving import Writer
from histofed.transport.store import BlobStore, owner_of, read_errors
from histofed.transport.turns import Turn, Turns
from histofed.transport.unchanged import Piece, Stretch, copied, digest_of, pieces
from histofed.transport.watchdog import Alarm, in_thread
from histofed.v1 import transfer_pb2

_log = logging.getLogger(__name__)


class Permissions(Protocol):
    """Who may send and read which blob; the aggregator answers from its tasks and models."""

    async def may_upload(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None:
        """Raises `NotAuthorised` (not the caller's live task), `TooLarge`, `Stale` (the round is over)."""
        ...

    async def received(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None:
        """The blob is complete and durable; called before the sender hears of it, again if it asks again."""
        ...

    async def base_of(self, task: TaskKey) -> Digest | None:
        """What the task starts from, so that both ends have it; asked after `may_upload`. None where it has no base."""
        ...

    async def may_download(self, who: Caller, sha256: Digest) -> None:
        """Raises `NotAuthorised`, or `NotFound`."""
        ...

    async def may_compare(self, who: Caller, sha256: Digest, held: Digest) -> bool:
        """Whether the caller, who may read `sha256`, may hear what it has in common with `held`."""
        ...


class BlobService:
    """The servicer, for `frames.serve`; stands behind a member gate."""

    def __init__(
        self,
        store: BlobStore,
        permissions: Permissions,
        clock: Clock,
        *,
        metrics: Metrics | None = None,
        stall_s: float = limits.STALL_S,
        bytes_per_second: int = 0,
        turns: Turns | None = None,
    ) -> None:
        """`bytes_per_second`: of each site, in each direction; 0 is no cap."""
        self._store = store
        self._permissions = permissions
        self._clock = clock
        self._metrics = metrics or NoMetrics()
        self._stall_s = stall_s
        self._paces = Paces(clock, bytes_per_second)
        self._turns = Turns(clock) if turns is None else turns
        self._heap = Heap()
        self._comparisons = Comparisons(store)
        self._leaving: set[asyncio.Task[None]] = set()
        """Calls that were broken off and whose status is on its way; they end with the connection at the latest."""

    def cap(self, bytes_per_second: int) -> None:
        """From the next piece on; 0 is no cap."""
        self._paces.set(bytes_per_second)

    async def GetUpload(self, request: transfer_pb2.GetUploadRequest, context: Any) -> transfer_pb2.GetUploadResponse:  # noqa: N802
        """How much of the blob is here."""
        who = caller(context)
        task, sha = _named(request)
        await self._permissions.may_upload(who, task, sha, request.bytes)
        committed = await asyncio.to_thread(self._store.committed, sha, owner_of(str(task)))
        complete = await self._complete(who, task, sha)
        return transfer_pb2.GetUploadResponse(committed=committed, complete=complete)

    async def Upload(  # noqa: N802
        self, requests: AsyncIterator[UploadFrame], context: Any
    ) -> AsyncIterator[transfer_pb2.UploadResponse]:
        """Receive a blob from the committed offset on."""
        who = caller(context)
        incoming = aiter(requests)
        first = await self._next(who, incoming)
        if first is None or not first.head.HasField("blob"):
            raise BadData("the first message of an upload must say which blob it is")
        size = first.head.blob.bytes
        task, sha = _named(first.head.blob)
        writer = self._store.writer(sha, owner_of(str(task)))
        try:
            await self._permissions.may_upload(who, task, sha, size)
            if await self._complete(who, task, sha):
                yield transfer_pb2.UploadResponse(committed=self._store.size(sha), complete=True)
                return
            base = await self._permissions.base_of(task)
            async with writer.opening:
                await in_thread(writer.open, size)
            with opened(self._store.path(base) if base else None) as held, self._turns.queue(who.name) as turn:
                # what a site sends before it is read would lie here, some MiB of each that waits
                while writer.committed < size and not await turn.came():
                    yield self._first_answer(writer.committed, base, held, waiting=True)
                yield self._first_answer(writer.committed, base, held)
                async for committed in self._receive(who, writer, first, incoming, held, turn):
                    yield transfer_pb2.UploadResponse(committed=committed)
            await in_thread(writer.finish)
        finally:
            await in_thread(writer.close)
            self._heap.give_back()
        await self._permissions.received(who, task, sha, size)
        yield transfer_pb2.UploadResponse(committed=size, complete=True)

    def _first_answer(
        self, committed: int, base: Digest | None, held: int | None, *, waiting: bool = False
    ) -> transfer_pb2.UploadResponse:
        """Whole also while the site waits: one of an older version takes the first that comes, and begins."""
        return transfer_pb2.UploadResponse(
            committed=committed,
            held=base if base and held is not None else "",
            max_bytes_per_second=self._paces.bytes_per_second,
            waiting=waiting,
        )

    async def _receive(
        self,
        who: Caller,
        writer: Writer,
        first: UploadFrame,
        incoming: AsyncIterator[UploadFrame],
        held: int | None,
        turn: Turn,
    ) -> AsyncIterator[int]:
        """Append one piece after the other; yields each new committed offset."""
        acknowledged, heard = writer.committed, self._clock.monotonic()
        piece: UploadFrame | None = first
        while piece is not None:
            if piece.data or piece.head.HasField("copy"):
                slow = self._clock.monotonic() - heard > limits.ACK_EVERY_S
                committed = await in_thread(_append, writer, piece, held, slow)
                self._count("upload", piece, turn)
                if committed > acknowledged:
                    acknowledged, heard = committed, self._clock.monotonic()
                    self._heap.give_back()
                    yield committed
            if piece.head.offset + (len(piece.data) or piece.head.copy.bytes) >= first.head.blob.bytes:
                return
            piece = await self._next(who, incoming)

    async def _next(self, who: Caller, incoming: AsyncIterator[UploadFrame]) -> UploadFrame | None:
        """The next message; None at the end. Raises `TryLater` for a sender that sends nothing any more."""
        try:
            async with asyncio.timeout(self._stall_s):
                return await anext(incoming, None)
        except TimeoutError as error:
            _log.warning("an upload is broken off: nothing came", extra=fields(site=who.name, seconds=self._stall_s))
            raise TryLater(f"no byte came for {self._stall_s:g} seconds, so the upload was broken off; resume it") from error

    async def Download(  # noqa: N802
        self, request: transfer_pb2.DownloadRequest, context: Any
    ) -> AsyncIterator[DownloadFrame]:
        """Send a blob from an offset on, with copies of what the caller holds."""
        who, sha = caller(context), digest(request.sha256)
        await self._permissions.may_download(who, sha)
        size = self._store.size(sha)
        if not 0 <= request.offset <= size:
            raise BadData(f"offset {request.offset} is not inside the blob of {size} bytes")
        own, asked = self._paces.of(who.name), Pace(self._clock, request.max_bytes_per_second)
        held = digest(request.held) if request.held else None
        stretches: tuple[Stretch, ...] = ()
        if held and request.offset < size and await self._permissions.may_compare(who, sha, held):
            with self._comparisons.asked(who.name, sha, held) as comparison:
                while not (await asyncio.wait({comparison}, timeout=limits.LOOKS * limits.LOOK_S))[0]:
                    yield Frame(transfer_pb2.DownloadResponse(offset=request.offset, bytes=size))
                stretches = comparison.result()
        with read_errors(sha):
            descriptor = os.open(self._store.path(sha), os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self._turns.queue(who.name) as turn:
                while request.offset < size and not await turn.came():
                    yield Frame(transfer_pb2.DownloadResponse(offset=request.offset, bytes=size))
                with self._alarm(who, context) as alarm:
                    if request.offset == size:
                        yield Frame(transfer_pb2.DownloadResponse(offset=size, bytes=size))
                    for piece in pieces(size, stretches, request.offset, min(own.piece, asked.piece)):
                        if not piece.is_copy:
                            await own.take(piece.size)
                            await asked.take(piece.size)
                        with read_errors(sha):
                            frame = await in_thread(_read, descriptor, piece)
                        frame.head.bytes = size
                        yield frame
                        alarm.put_off()
                        self._count("download", frame, turn)
                        if not piece.is_copy and len(frame.data) < piece.size:
                            raise NotFound(f"blob {sha[:12]}… is shorter than it was: the disk may be damaged")
        finally:
            os.close(descriptor)
            self._heap.give_back()

    def _alarm(self, who: Caller, context: Any) -> Alarm:
        """Ends the call of a site that takes nothing any more; gRPC itself waits for a reader for ever."""
        handler, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert handler is not None, "a call is a task"

        def broken_off() -> None:
            _log.warning("a download is broken off: nothing is taken", extra=fields(site=who.name, seconds=self._stall_s))
            # the status lies behind what was written, for the site to find when it wakes up; nobody waits for that
            words = f"nothing was taken for {self._stall_s:g} seconds, so the download was broken off; resume it"
            leaving = loop.create_task(answer(context, TryLater(words)))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._left)
            loop.call_soon(handler.cancel)

        return Alarm(self._stall_s, broken_off)

    def _left(self, leaving: asyncio.Task[None]) -> None:
        self._leaving.discard(leaving)
        if not leaving.cancelled():
            leaving.exception()  # an answer of this kind ends with gRPC's own error

    def _count(self, direction: str, frame: UploadFrame | DownloadFrame, turn: Turn) -> None:
        """What moved, for the metrics and for those who wait."""
        turn.moved(len(frame.data))
        size, how = (frame.head.copy.bytes, "copied") if frame.head.HasField("copy") else (len(frame.data), "sent")
        self._metrics.count(names.TRANSFER_BYTES_TOTAL, size, direction=direction, how=how)

    async def _complete(self, who: Caller, task: TaskKey, sha: Digest) -> bool:
        """Whether this task's upload was finished before; then its receiver is told again, it may have crashed."""
        if not self._store.received(sha, owner_of(str(task))):
            return False
        # it may have got its name from a call that could not make that durable
        await in_thread(self._store.settle)
        await self._permissions.received(who, task, sha, self._store.size(sha))
        return True


def _named(wanted: transfer_pb2.GetUploadRequest) -> tuple[TaskKey, Digest]:
    """The task and the blob that an upload is about. Raises `BadData`."""
    task, sha = TaskKey.parse(wanted.task), digest(wanted.sha256)
    if wanted.bytes < 0:
        raise BadData("a blob cannot have a negative length")
    return task, sha


def _append(writer: Writer, piece: UploadFrame, held: int | None, sync: bool) -> int:
    """Add what a message brought or named; returns the bytes on disk."""
    head, data = piece.head, piece.data
    if len(data) > limits.CHUNK:
        raise TooLarge(f"a piece of a blob has {len(data)} bytes, at most {limits.CHUNK} are allowed")
    if not head.HasField("copy"):
        return writer.append(head.offset, data, sync=sync)
    if data or held is None:
        raise BadData("a copy comes without data, and only where the first answer named what it is taken from")
    committed, offset = writer.committed, head.offset
    for part in copied(held, offset, head.copy.bytes, head.copy.sha256):
        committed = writer.append(offset, part, sync=sync)
        offset += len(part)
    return committed


def _read(descriptor: int, piece: Piece) -> DownloadFrame:
    """The piece as a message; less data than it should have where the file is shorter."""
    if not piece.is_copy:
        data = os.pread(descriptor, piece.size, piece.offset)
        return Frame(transfer_pb2.DownloadResponse(offset=piece.offset), data)
    sha256 = piece.sha256 or digest_of(descriptor, piece.offset, piece.size)
    copy = transfer_pb2.Copy(bytes=piece.size, sha256=sha256)
    return Frame(transfer_pb2.DownloadResponse(offset=piece.offset, copy=copy))
