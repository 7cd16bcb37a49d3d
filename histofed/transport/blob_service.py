"""BlobService, the aggregator's half of transfers. What may be read and written is asked of `Permissions`.

An upload's first message names the blob; the answer is the committed offset, and the sender goes on from there. Bytes
are acknowledged when they are on disk. The disk is touched in threads, so that one slow disk does not stop the others'
beats.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, Protocol

from histofed.base.clock import Clock
from histofed.base.errors import BadData, NotFound, TooLarge
from histofed.base.ids import Digest, TaskKey, digest
from histofed.transport import limits
from histofed.transport.gate import Caller, caller
from histofed.transport.store import BlobStore, Writer, owner_of
from histofed.v1 import transfer_pb2, transfer_pb2_grpc


class Permissions(Protocol):
    """Who may send and read which blob; the aggregator answers from its tasks and models."""

    async def may_upload(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None:
        """Raises `NotAuthorised` (not the caller's live task), `TooLarge`, `Stale` (the round is over)."""
        ...

    async def received(self, who: Caller, task: TaskKey, sha256: Digest, size: int) -> None:
        """The blob is complete and durable; called before the sender hears of it, again if it asks again."""
        ...

    async def may_download(self, who: Caller, sha256: Digest) -> None:
        """Raises `NotAuthorised`, or `NotFound`."""
        ...


class BlobService(transfer_pb2_grpc.BlobServiceServicer):
    """The servicer; stands behind a member gate."""

    def __init__(self, store: BlobStore, permissions: Permissions, clock: Clock) -> None:
        self._store = store
        self._permissions = permissions
        self._clock = clock

    async def GetUpload(self, request: transfer_pb2.GetUploadRequest, context: Any) -> transfer_pb2.GetUploadResponse:  # noqa: N802
        """How much of the blob is here."""
        who = caller(context)
        task, sha = await self._admit(who, request)
        committed = await asyncio.to_thread(self._store.committed, sha, owner_of(str(task)))
        complete = await self._complete(who, task, sha)
        return transfer_pb2.GetUploadResponse(committed=committed, complete=complete)

    async def Upload(  # noqa: N802
        self, requests: AsyncIterator[transfer_pb2.UploadRequest], context: Any
    ) -> AsyncIterator[transfer_pb2.UploadResponse]:
        """Receive a blob from the committed offset on."""
        who = caller(context)
        pieces = aiter(requests)
        first = await anext(pieces, None)
        if first is None or not first.HasField("blob"):
            raise BadData("the first message of an upload must say which blob it is")
        task, sha = await self._admit(who, first.blob)
        if await self._complete(who, task, sha):
            yield transfer_pb2.UploadResponse(committed=self._store.size(sha), complete=True)
            return
        writer = await self._open(sha, first.blob.bytes, owner_of(str(task)))
        try:
            yield transfer_pb2.UploadResponse(committed=writer.committed)
            async for committed in self._receive(writer, first, pieces):
                yield transfer_pb2.UploadResponse(committed=committed)
            await asyncio.to_thread(writer.finish)
        finally:
            await asyncio.to_thread(writer.close)
        await self._permissions.received(who, task, sha, first.blob.bytes)
        yield transfer_pb2.UploadResponse(committed=first.blob.bytes, complete=True)

    async def _open(self, sha: Digest, size: int, owner: str) -> Writer:
        """Opening may hash a long part, in a thread; a call that is cancelled meanwhile leaves no writer behind."""
        opening = asyncio.create_task(asyncio.to_thread(self._store.open_upload, sha, size, owner))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(lambda done: None if done.exception() else done.result().close())
            raise

    async def _receive(
        self, writer: Writer, first: transfer_pb2.UploadRequest, pieces: AsyncIterator[transfer_pb2.UploadRequest]
    ) -> AsyncIterator[int]:
        """Append piece after piece; yields each new committed offset."""
        acknowledged, heard = writer.committed, self._clock.monotonic()
        piece: transfer_pb2.UploadRequest | None = first
        while piece is not None:
            if len(piece.data) > limits.CHUNK:
                raise TooLarge(f"a piece of a blob has {len(piece.data)} bytes, at most {limits.CHUNK} are allowed")
            if piece.data:
                slow = self._clock.monotonic() - heard > limits.ACK_EVERY_S
                committed = await asyncio.to_thread(writer.append, piece.offset, piece.data, sync=slow)
                if committed > acknowledged:
                    acknowledged, heard = committed, self._clock.monotonic()
                    yield committed
            if piece.offset + len(piece.data) >= first.blob.bytes:
                return
            piece = await anext(pieces, None)

    async def Download(  # noqa: N802
        self, request: transfer_pb2.DownloadRequest, context: Any
    ) -> AsyncIterator[transfer_pb2.DownloadResponse]:
        """Send a blob from an offset on."""
        sha = digest(request.sha256)
        await self._permissions.may_download(caller(context), sha)
        size = self._store.size(sha)
        if not 0 <= request.offset <= size:
            raise BadData(f"offset {request.offset} is not inside the blob of {size} bytes")
        descriptor = os.open(self._store.path(sha), os.O_RDONLY | os.O_CLOEXEC)
        try:
            offset = request.offset
            while True:
                data = await asyncio.to_thread(os.pread, descriptor, limits.CHUNK, offset)
                yield transfer_pb2.DownloadResponse(offset=offset, data=data, bytes=size)
                offset += len(data)
                if offset >= size:
                    return
                if not data:
                    raise NotFound(f"blob {sha[:12]}… is shorter than it was: the disk may be damaged")
        finally:
            os.close(descriptor)

    async def _admit(self, who: Caller, wanted: transfer_pb2.GetUploadRequest) -> tuple[TaskKey, Digest]:
        """Parse and ask the permissions. Raises `BadData` and what they raise."""
        task, sha = TaskKey.parse(wanted.task), digest(wanted.sha256)
        if wanted.bytes < 0:
            raise BadData("a blob cannot have a negative length")
        await self._permissions.may_upload(who, task, sha, wanted.bytes)
        return task, sha

    async def _complete(self, who: Caller, task: TaskKey, sha: Digest) -> bool:
        """Whether this task's upload was finished before; then its receiver is told again, it may have crashed."""
        if not self._store.received(sha, owner_of(str(task))):
            return False
        await self._permissions.received(who, task, sha, self._store.size(sha))
        return True
