"""The receiving end over real TLS: wrong requests, full disks, and two who come at a time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest

from histofed.base.errors import (
    BadData,
    CannotWriteState,
    HistofedError,
    NotAuthorised,
    Stale,
    TooLarge,
)
from histofed.base.ids import TaskKey, sha256
from histofed.transport import limits
from histofed.transport.backoff import Backoff
from histofed.transport.channel import open_connection
from histofed.transport.receiving import Upload, Writer
from histofed.v1 import transfer_pb2, transfer_pb2_grpc
from tests.support.blob_calls import BLOB, FEDERATION, NAME, OWNER, SITE, TASK, fetch, names, put, send, write
from tests.support.disk_order import disk_order
from tests.support.wire import serving


async def test_who_hears_again_that_all_is_here_hears_it_of_a_synced_folder(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        await send(connection, source)
        # the call that gave the blob its name may have died before its sync
        with disk_order(monkeypatch, folder) as calls:
            await send(connection, source)
    assert calls == ["sync ."]


async def test_a_full_disk_at_the_aggregator_loses_nothing(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SYNC_EVERY", limits.MIB)
    write = os.pwrite

    def full_after_two_pieces(descriptor: int, data: bytes, offset: int) -> int:
        if offset >= 2 * limits.MIB:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, data, offset)

    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        with monkeypatch.context() as disk:
            disk.setattr(os, "pwrite", full_after_two_pieces)
            with pytest.raises(CannotWriteState, match="No space left on device"):
                await send(connection, source)
            assert wire.store.committed(NAME, OWNER) == 2 * limits.MIB
        await send(connection, source)
        assert wire.store.path(NAME).read_bytes() == BLOB


async def test_the_later_of_two_connections_wins(folder: Path, source: Path) -> None:
    class Halting:
        """Holds the first upload in its middle until the second is done."""

        def __init__(self) -> None:
            self.halted = asyncio.Event()
            self.go_on = asyncio.Event()

        async def requests(self) -> object:
            yield transfer_pb2.UploadRequest(
                blob=transfer_pb2.GetUploadRequest(task=TASK, sha256=NAME, bytes=len(BLOB)), data=BLOB[: limits.MIB]
            )
            self.halted.set()
            await self.go_on.wait()
            yield transfer_pb2.UploadRequest(offset=limits.MIB, data=BLOB[limits.MIB : 2 * limits.MIB])

    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        halting = Halting()
        first = connection.stream(
            lambda requests, **options: transfer_pb2_grpc.BlobServiceStub(connection.channel).Upload(requests, **options),
            halting.requests(),
        )
        await anext(first)
        await halting.halted.wait()
        await send(connection, source)
        halting.go_on.set()
        with pytest.raises(Stale, match="another connection of this site"):
            await anext(first)
        assert wire.store.path(NAME).read_bytes() == BLOB


async def test_who_opens_one_upload_many_times_leaves_others_the_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open is to hash what is there: seconds of a thread, of which there are a few."""
    calls, hashed, came = 40, threading.Event(), asyncio.Semaphore(0)
    hand_over = Upload.hand_over

    def hash_for_long(upload: Upload, writer: Writer, size: int) -> None:
        hashed.wait(30)
        hand_over(upload, writer, size)

    async def base_of(task: TaskKey) -> None:
        came.release()

    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        put(wire.store, other := os.urandom(1000))
        name = sha256(other)
        wire.permissions.released.add(name)
        monkeypatch.setattr(Upload, "hand_over", hash_for_long)
        monkeypatch.setattr(wire.permissions, "base_of", base_of)

        async def begin() -> None:
            wanted = transfer_pb2.GetUploadRequest(task=TASK, sha256=NAME, bytes=len(BLOB))
            call = transfer_pb2_grpc.BlobServiceStub(connection.channel).Upload()
            await call.write(transfer_pb2.UploadRequest(blob=wanted))
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()

        async with asyncio.TaskGroup() as uploads:
            for _ in range(calls):
                uploads.create_task(begin())
            for _ in range(calls):
                await came.acquire()
            try:
                async with asyncio.timeout(10), open_connection(wire.address, FEDERATION.site("south")) as another:
                    await fetch(another, tmp_path / "fetched", name=name, size=len(other))
            finally:
                hashed.set()
    assert (tmp_path / "fetched").read_bytes() == other


async def test_what_is_hashed_for_longer_than_a_sender_waits_is_hashed_once(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection that hashes is cut off before it has done so, and the next one is there by then."""
    write(folder / f"{NAME}.{OWNER}.part", BLOB[: 4 * limits.MIB])
    calls, came_again, hand_over = list[TaskKey](), threading.Semaphore(0), Upload.hand_over

    def hash_for_long(upload: Upload, writer: Writer, size: int) -> None:
        hashed = upload.part is not None
        hand_over(upload, writer, size)
        assert hashed or came_again.acquire(timeout=10), "nobody came again"

    async def base_of(task: TaskKey) -> None:
        if calls:
            came_again.release()
        calls.append(task)

    monkeypatch.setattr(Upload, "hand_over", hash_for_long)
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        monkeypatch.setattr(wire.permissions, "base_of", base_of)
        await send(connection, source, stall_s=0.5, backoff=Backoff(attempts=3))
        assert wire.store.path(NAME).read_bytes() == BLOB


@pytest.mark.parametrize("when", ["before the first byte", "in the middle"])
async def test_a_round_that_ends_meanwhile_is_told_and_leaves_nothing(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(limits, "WINDOW", limits.CHUNK)
    monkeypatch.setattr(limits, "SYNC_EVERY", limits.CHUNK)
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:

        async def base_of(task: TaskKey) -> None:
            if when == "before the first byte":
                wire.store.forget({OWNER}, lambda _: False)

        def progress(done: int, total: int) -> None:
            if done:
                wire.store.forget({OWNER}, lambda _: False)

        monkeypatch.setattr(wire.permissions, "base_of", base_of)
        with pytest.raises(Stale, match="the round has ended"):
            await send(connection, source, progress=progress)
        assert names(folder) == []


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda piece: piece.ClearField("blob"), BadData, "first message of an upload must say"),
        (lambda piece: setattr(piece.blob, "bytes", -1), BadData, "negative length"),
        (lambda piece: setattr(piece.blob, "sha256", "../x"), BadData, "not a SHA-256 digest"),
        (lambda piece: setattr(piece.blob, "task", "gan/1/train"), BadData, "is not a task"),
        (lambda piece: setattr(piece.blob, "task", "gan/1/train/south"), NotAuthorised, "not a task of north"),
        (lambda piece: setattr(piece.blob, "bytes", 1 << 40), TooLarge, "the experiment allows"),
        (lambda piece: setattr(piece, "data", bytes(limits.CHUNK + 1)), TooLarge, "at most 1048576 are allowed"),
    ],
)
async def test_a_wrong_first_message_is_refused(
    folder: Path, change: Callable[[transfer_pb2.UploadRequest], None], error: type[HistofedError], words: str
) -> None:
    piece = transfer_pb2.UploadRequest(
        blob=transfer_pb2.GetUploadRequest(task=TASK, sha256=NAME, bytes=len(BLOB)), data=b"x"
    )
    change(piece)

    async def requests() -> object:
        yield piece

    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        upload = transfer_pb2_grpc.BlobServiceStub(connection.channel).Upload
        with pytest.raises(error, match=words):
            async for _ in connection.stream(upload, requests()):
                pass


async def test_nothing_sent_is_told(folder: Path) -> None:
    async def nothing() -> object:
        return
        yield

    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        upload = transfer_pb2_grpc.BlobServiceStub(connection.channel).Upload
        with pytest.raises(BadData, match="first message of an upload must say"):
            async for _ in connection.stream(upload, nothing()):
                pass


@pytest.mark.parametrize("offset", [-1, len(BLOB) + 1])
async def test_an_offset_outside_the_blob_is_refused(folder: Path, offset: int) -> None:
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        wire.permissions.released.add(put(wire.store))
        stub = transfer_pb2_grpc.BlobServiceStub(connection.channel)
        with pytest.raises(BadData, match="is not inside the blob"):
            await anext(connection.stream(stub.Download, transfer_pb2.DownloadRequest(sha256=NAME, offset=offset)))
