"""One download, an attempt at a time: from the last byte that is here, with copies from a blob that is held.

Used by `blobs.py`; the part file is the caller's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from histofed.base.errors import AggregatorUnavailable, BadData, DigestMismatch
from histofed.base.ids import Digest
from histofed.transport import limits
from histofed.transport.channel import Connection
from histofed.transport.frames import Data, DownloadFrame, download_call
from histofed.transport.held import Held, opened
from histofed.transport.pace import Pace
from histofed.transport.part import PartFile
from histofed.transport.unchanged import copied
from histofed.transport.watchdog import in_thread, watchdog
from histofed.v1 import transfer_pb2

_log = logging.getLogger(__name__)


class Fetching:
    """One download over as many connections as it takes."""

    def __init__(
        self,
        part: PartFile,
        sha256: Digest,
        held: Held | None,
        pace: Pace,
        progress: Callable[[int, int], None],
        stall_s: float,
    ) -> None:
        self._part = part
        self._sha256 = sha256
        self._held = held
        self._pace = pace
        self._progress = progress
        self._stall_s = stall_s

    async def attempt(self, connection: Connection) -> None:
        """One stream; a second one without copies where the held blob has other bytes, or the disk does not give them.

        Raises a `HistofedError`.
        """
        try:
            await self._stream(connection, self._held)
        except (DigestMismatch, OSError) as error:
            if self._held is None:
                raise
            reason = error.strerror if isinstance(error, OSError) else error
            _log.warning("what is unchanged is fetched after all: %s", reason)
            self._held = None
            await self._stream(connection, None)
        if self._part.written < self._part.size:
            raise AggregatorUnavailable(f"the aggregator at {connection.address} ended the download in the middle")

    async def _stream(self, connection: Connection, held: Held | None) -> None:
        with opened(held.path if held else None) as base:
            request = transfer_pb2.DownloadRequest(
                sha256=self._sha256,
                offset=self._part.written,
                held=held.sha256 if held and base is not None else "",
                max_bytes_per_second=self._pace.bytes_per_second,
            )
            try:
                async with watchdog(self._stall_s, connection.replaced) as alive:
                    frames = connection.stream(download_call(connection.channel), request)
                    async with contextlib.aclosing(frames):
                        async for frame in frames:
                            alive()
                            await in_thread(self._take, frame, base)
                            self._progress(self._part.written, self._part.size)
            except TimeoutError as error:
                raise connection.stalled(self._stall_s) from error

    def _take(self, frame: DownloadFrame, base: int | None) -> None:
        head = frame.head
        if head.bytes != self._part.size:
            raise BadData(f"the blob has {head.bytes} bytes, {self._part.size} were expected")
        if head.HasField("copy"):
            if base is None:
                raise BadData("the aggregator names bytes to be copied from a blob that this side does not hold")
            offset = head.offset
            for data in copied(base, offset, head.copy.bytes, head.copy.sha256):
                self._append(offset, data)
                offset += len(data)
        else:
            self._append(head.offset, frame.data)

    def _append(self, offset: int, data: Data) -> None:
        self._part.append(offset, data)
        if self._part.written - self._part.committed >= limits.SYNC_EVERY:
            self._part.commit()
