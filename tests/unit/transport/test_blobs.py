"""Blobs over real TLS: whole, resumed at any cut, slow, wrong, and two at a time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import grpc.aio
import pytest

from histofed.base.clock import FakeClock, SystemClock
from histofed.base.errors import (
    AggregatorUnavailable,
    BadData,
    CannotWriteState,
    DigestMismatch,
    HistofedError,
    NotAuthorised,
    NotFound,
    Stale,
    TooLarge,
)
from histofed.base.ids import Digest, TaskKey, sha256
from histofed.transport import blobs, limits
from histofed.transport.backoff import Backoff
from histofed.transport.channel import Connection, open_connection
from histofed.transport.pace import BURST_S, Pace
from histofed.transport.receiving import Upload, Writer
from histofed.transport.store import BlobStore, owner_of
from histofed.v1 import transfer_pb2, transfer_pb2_grpc
from tests.support.disk_order import disk_order
from tests.support.pki import Federation
from tests.support.wire import CuttingProxy, serving

FEDERATION = Federation()
SITE = FEDERATION.site("north")
TASK = "gan/1/train/north"
OWNER = owner_of(TASK)
BLOB = os.urandom(5 * limits.MIB + 12345)
NAME = sha256(BLOB)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "update.safetensors"
    path.write_bytes(BLOB)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


async def send(connection: Connection, source: Path, *, name: Digest = NAME, task: str = TASK, **options: object) -> None:
    await blobs.upload(
        connection,
        source,
        name,
        task=task,
        clock=FakeClock(),
        random=Random(0),
        **options,  # type: ignore[arg-type]  # what the tests choose
    )


async def fetch(connection: Connection, target: Path, *, name: Digest = NAME, **options: object) -> None:
    await blobs.download(
        connection,
        name,
        target,
        clock=FakeClock(),
        random=Random(0),
        **({"size": len(BLOB)} | options),  # type: ignore[arg-type]  # what the tests choose
    )


def put(store: BlobStore, data: bytes = BLOB) -> Digest:
    path = store.path(NAME).with_name("incoming")
    path.write_bytes(data)
    return store.import_file(path, move=True)


async def test_an_update_arrives(folder: Path, source: Path) -> None:
    heard: list[tuple[int, int]] = []
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        await send(connection, source, progress=lambda done, total: heard.append((done, total)))
        assert wire.store.path(NAME).read_bytes() == BLOB
        assert wire.store.received(NAME, OWNER)
        assert wire.permissions.complete == [(TASK, NAME)]
    assert heard[-1] == (len(BLOB), len(BLOB))
    assert heard == sorted(heard)


async def test_sending_again_sends_no_byte_and_tells_the_receiver_again(folder: Path, source: Path) -> None:
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        await send(connection, source)
        write(source, bytes(len(BLOB)))  # would be noticed
        await send(connection, source)
        assert wire.permissions.complete == [(TASK, NAME)] * 2


async def test_who_hears_again_that_all_is_here_hears_it_of_a_synced_folder(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        await send(connection, source)
        # the call that gave the blob its name may have died before its sync
        with disk_order(monkeypatch, folder) as calls:
            await send(connection, source)
    assert calls == ["sync ."]


async def test_an_empty_blob_arrives(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        await send(connection, empty, name=sha256(b""))
        wire.permissions.released.add(sha256(b""))
        await fetch(connection, tmp_path / "back", name=sha256(b""), size=0)
    assert (tmp_path / "back").read_bytes() == b""


async def test_a_model_arrives(folder: Path, tmp_path: Path) -> None:
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        wire.permissions.released.add(put(wire.store))
        await fetch(connection, tmp_path / "model")
        assert (tmp_path / "model").read_bytes() == BLOB
        assert not (tmp_path / "model.part").exists()
        wire.store.remove(NAME)
        await fetch(connection, tmp_path / "model")  # it is there already: nothing is asked


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


CUTS = [60_000, 700_000, 1_200_000, 2 * limits.MIB, 5 * limits.MIB]


@pytest.mark.parametrize("cut", CUTS)
async def test_an_upload_survives_a_cut_anywhere(folder: Path, source: Path, cut: int) -> None:
    async with (
        serving(folder, FEDERATION) as wire,
        CuttingProxy(wire.port, [cut, cut]) as proxy,
        open_connection(f"localhost:{proxy.port}", SITE) as connection,
    ):
        await send(connection, source)
        assert wire.store.path(NAME).read_bytes() == BLOB
        assert proxy.connections >= 2


@pytest.mark.parametrize("cut", CUTS)
async def test_a_download_survives_a_cut_anywhere(folder: Path, tmp_path: Path, cut: int) -> None:
    async with (
        serving(folder, FEDERATION) as wire,
        CuttingProxy(wire.port, [cut, cut]) as proxy,
        open_connection(f"localhost:{proxy.port}", SITE) as connection,
    ):
        wire.permissions.released.add(put(wire.store))
        await fetch(connection, tmp_path / "model")
        assert proxy.connections >= 2
    assert (tmp_path / "model").read_bytes() == BLOB


async def test_a_cut_handshake_is_tried_again(folder: Path, source: Path) -> None:
    async with (
        serving(folder, FEDERATION) as wire,
        CuttingProxy(wire.port, [500]) as proxy,
        open_connection(f"localhost:{proxy.port}", SITE) as connection,
    ):
        await blobs.upload(connection, source, NAME, task=TASK, clock=SystemClock(), random=Random(0))
        assert wire.store.has(NAME)


async def test_a_refused_upload_leaves_no_task_behind(folder: Path, source: Path, caplog: pytest.LogCaptureFixture) -> None:
    """asyncio complains of one that is destroyed while it waits, at length, in a hospital's log."""
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        with pytest.raises(NotAuthorised):
            await send(connection, source, task="gan/1/train/south")
        for _ in range(3):
            await asyncio.sleep(0.01)
            gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def test_bytes_that_arrived_are_not_sent_again(folder: Path, source: Path) -> None:
    done = 4 * limits.MIB + 777
    write(folder / f"{NAME}.{OWNER}.part", BLOB[:done])
    async with (
        serving(folder, FEDERATION) as wire,
        CuttingProxy(wire.port, [len(BLOB) - done + 100_000]) as proxy,
        open_connection(f"localhost:{proxy.port}", SITE) as connection,
    ):
        stub = transfer_pb2_grpc.BlobServiceStub(connection.channel)
        wanted = transfer_pb2.GetUploadRequest(task=TASK, sha256=NAME, bytes=len(BLOB))
        assert (await connection.call(stub.GetUpload, wanted)).committed == done
        await send(connection, source)
        answer = await connection.call(stub.GetUpload, wanted)
        assert (answer.committed, answer.complete) == (len(BLOB), True)
        assert proxy.connections == 1, "the rest fitted into one connection's budget"


async def test_a_restarted_agent_goes_on_with_its_download(folder: Path, tmp_path: Path) -> None:
    done = 4 * limits.MIB + 777
    (tmp_path / "model.part").write_bytes(BLOB[:done])
    async with (
        serving(folder, FEDERATION) as wire,
        CuttingProxy(wire.port, [len(BLOB) - done + 100_000]) as proxy,
        open_connection(f"localhost:{proxy.port}", SITE) as connection,
    ):
        wire.permissions.released.add(put(wire.store))
        await fetch(connection, tmp_path / "model")
        assert proxy.connections == 1
    assert (tmp_path / "model").read_bytes() == BLOB


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_frozen_peer_is_left_after_a_while(folder: Path, source: Path, tmp_path: Path, direction: str) -> None:
    async with (
        serving(folder, FEDERATION) as wire,
        CuttingProxy(wire.port, [1_000_000] * 9, freeze=True) as proxy,
        open_connection(f"localhost:{proxy.port}", SITE) as connection,
    ):
        wire.permissions.released.add(put(wire.store))
        transfer = send(connection, source, stall_s=0.2, backoff=Backoff(attempts=1))
        if direction == "down":
            transfer.close()
            transfer = fetch(connection, tmp_path / "model", stall_s=0.2, backoff=Backoff(attempts=1))
        with pytest.raises(AggregatorUnavailable, match=r"no byte moved to or from .* for 0\.2 seconds"):
            await transfer


async def test_attempts_are_bounded_only_while_nothing_moves(folder: Path, source: Path) -> None:
    every_megabyte = [2_300_000] * 20
    async with (
        serving(folder, FEDERATION) as wire,
        CuttingProxy(wire.port, every_megabyte) as proxy,
        open_connection(f"localhost:{proxy.port}", SITE) as connection,
    ):
        await send(connection, source, backoff=Backoff(attempts=1))
        assert proxy.connections >= 3
        assert wire.store.has(NAME)
    async with open_connection(f"localhost:{proxy.port}", SITE) as connection:
        with pytest.raises(AggregatorUnavailable, match="nobody listens"):
            await send(connection, source, backoff=Backoff(attempts=2))


async def test_a_file_that_changed_is_told_apart(folder: Path, source: Path) -> None:
    write(source, bytes(len(BLOB)))
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        with pytest.raises(DigestMismatch, match="they were dropped; check the file"):
            await send(connection, source)
        assert names(folder) == []
        write(source, BLOB)
        await send(connection, source)
        assert wire.store.received(NAME, OWNER)


async def test_a_disk_that_does_not_give_the_file_is_told_and_not_taken_for_a_broken_line(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.pread

    def broken(descriptor: int, size: int, offset: int) -> bytes:
        if offset >= limits.MIB:
            raise OSError(errno.EIO, "Input/output error")
        return read(descriptor, size, offset)

    words = "cannot be read from this machine's disk: Input/output error; it has to be made anew"
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        with monkeypatch.context() as disk, pytest.raises(BadData, match=words):
            disk.setattr(os, "pread", broken)
            await send(connection, source)
        with pytest.raises(BadData, match="cannot be read from this machine's disk: No such file"):
            await send(connection, source.with_name("gone"))


async def test_a_file_that_shrinks_on_the_way(folder: Path, source: Path) -> None:
    def shrink(done: int, total: int) -> None:
        os.truncate(source, 100)

    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        with pytest.raises(BadData, match="it is not complete"):
            await send(connection, source, progress=shrink)


async def test_a_damaged_blob_is_not_adopted(folder: Path, tmp_path: Path) -> None:
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        wire.permissions.released.add(put(wire.store))
        wire.store.path(NAME).write_bytes(bytes(len(BLOB)))
        with pytest.raises(DigestMismatch):
            await fetch(connection, tmp_path / "model")
    assert names(tmp_path) == ["blobs"]


async def test_a_blob_that_is_here_and_that_the_disk_does_not_give_is_fetched_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "model", BLOB)
    damaged = (tmp_path / "model").stat().st_ino

    def broken(file: object, digest: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        wire.permissions.released.add(put(wire.store))
        monkeypatch.setattr(hashlib, "file_digest", broken)
        await fetch(connection, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == BLOB
    assert (tmp_path / "model").stat().st_ino != damaged
    assert "cannot be read, and is fetched again: Input/output error" in caplog.text


async def test_a_folder_in_the_place_of_a_blob_is_nothing_to_replace(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        wire.permissions.released.add(put(wire.store))
        with pytest.raises(IsADirectoryError):
            await fetch(connection, tmp_path / "model")
    assert names(tmp_path) == ["blobs", "model"], "nothing was fetched"


@pytest.mark.parametrize("whose", ["the site's", "the aggregator's", "the lower of both"])
async def test_a_download_takes_as_long_as_its_cap_says(folder: Path, tmp_path: Path, whose: str) -> None:
    clock, cap = FakeClock(), limits.MIB
    own = {"the site's": cap, "the aggregator's": 0, "the lower of both": cap}[whose]
    others = {"the site's": 0, "the aggregator's": cap, "the lower of both": 2 * cap}[whose]
    async with (
        serving(folder, FEDERATION, clock=clock, bytes_per_second=others) as wire,
        open_connection(wire.address, SITE) as connection,
    ):
        wire.permissions.released.add(put(wire.store))
        begin = clock.monotonic()
        await fetch(connection, tmp_path / "model", pace=Pace(clock, own))
        # the first piece goes at once, and a burst with it
        assert len(BLOB) / cap - 2 * BURST_S <= clock.monotonic() - begin <= len(BLOB) / cap


async def test_a_blob_of_another_length_is_refused(folder: Path, tmp_path: Path) -> None:
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        wire.permissions.released.add(put(wire.store))
        with pytest.raises(BadData, match=f"the blob has {len(BLOB)} bytes, 7 were expected"):
            await fetch(connection, tmp_path / "model", size=7)


async def test_a_blob_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        with pytest.raises(NotFound):
            await fetch(connection, tmp_path / "model")
        wire.permissions.released.add(NAME)
        with pytest.raises(NotFound, match="there is no blob"):
            await fetch(connection, tmp_path / "model")


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


async def test_a_slow_link_is_acknowledged_by_time(folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACK_EVERY_S", -1.0)
    heard: list[int] = []
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        await send(connection, source, progress=lambda done, total: heard.append(done))
    assert [each // limits.MIB for each in heard] == [0, 1, 2, 3, 4, 5, 5, 5]


async def test_a_sender_stays_within_its_window(folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The aggregator syncs never; the sender must stop a window behind, and the watchdog ends it."""
    monkeypatch.setattr(limits, "WINDOW", 2 * limits.MIB)
    read: list[int] = []
    pread = os.pread

    def watched(descriptor: int, length: int, offset: int) -> bytes:
        read.append(offset)
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", watched)
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        with pytest.raises(AggregatorUnavailable, match="no byte moved"):
            await send(connection, source, stall_s=0.3, backoff=Backoff(attempts=0))
    assert max(read) == limits.MIB, "two pieces of one MiB are a window"
