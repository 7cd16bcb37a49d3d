"""A file sent over real TLS: whole, resumed at any cut, slow, wrong."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from histofed.base.clock import SystemClock
from histofed.base.errors import (
    AggregatorUnavailable,
    BadData,
    DigestMismatch,
    NotAuthorised,
    TryLater,
)
from histofed.transport import blobs, limits
from histofed.transport.backoff import Backoff
from histofed.transport.channel import open_connection
from histofed.v1 import transfer_pb2, transfer_pb2_grpc
from tests.support.blob_calls import BLOB, CUTS, FEDERATION, NAME, OWNER, SITE, TASK, names, send, write
from tests.support.wire import CuttingProxy, serving


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


@pytest.mark.parametrize("call", ["open", "pread"])
async def test_a_file_that_is_not_given_for_a_moment_is_read_again(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    passing = [OSError(errno.ETIMEDOUT, "Connection timed out")] * 2
    fail(monkeypatch, source, call, passing)
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        await send(connection, source)
        assert wire.store.path(NAME).read_bytes() == BLOB
    assert passing == []


@pytest.mark.parametrize("call", ["open", "pread"])
async def test_a_file_that_is_not_given_for_long_is_told_and_not_given_up(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    fail(monkeypatch, source, call, [OSError(errno.ETIMEDOUT, "Connection timed out")] * 99)
    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        with pytest.raises(TryLater, match="cannot be read now: Connection timed out; it stays"):
            await send(connection, source)


def fail(disk: pytest.MonkeyPatch, source: Path, call: str, errors: list[OSError]) -> None:
    """The next calls for the bytes of `source` fail so."""
    opened, read = Path.open, os.pread

    def opening(path: Path, *arguments: Any, **options: Any) -> Any:
        if errors and path == source:
            raise errors.pop()
        return opened(path, *arguments, **options)

    def reading(descriptor: int, size: int, offset: int) -> bytes:
        if errors:
            raise errors.pop()
        return read(descriptor, size, offset)

    if call == "open":
        disk.setattr(Path, "open", opening)
    else:
        disk.setattr(os, "pread", reading)


async def test_a_file_that_shrinks_on_the_way(folder: Path, source: Path) -> None:
    def shrink(done: int, total: int) -> None:
        os.truncate(source, 100)

    async with serving(folder, FEDERATION) as wire, open_connection(wire.address, SITE) as connection:
        with pytest.raises(BadData, match="it is not complete"):
            await send(connection, source, progress=shrink)


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
