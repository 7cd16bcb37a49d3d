"""A peer that is frozen in mid-transfer (SIGSTOP, real processes): noticed by lack of progress, broken off, resumed.

Each test starts a process, which takes a second or two.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import grpc.aio
import pytest

from histofed.base.clock import SystemClock
from histofed.base.errors import AggregatorUnavailable, TryLater
from histofed.base.ids import sha256
from histofed.transport import blobs, limits
from histofed.transport.backoff import Backoff
from histofed.transport.channel import open_connection
from histofed.transport.pace import Pace
from histofed.v1 import transfer_pb2, transfer_pb2_grpc
from tests.support.pki import Federation
from tests.support.transfer_peer import TASK
from tests.support.wire import serving

FEDERATION = Federation()
BLOB = os.urandom(3 * limits.MIB + 77)
NAME = sha256(BLOB)
STALL_S = 1.0
PACE = 4 * limits.MIB
"""Bytes per second: slow enough that there is a middle."""
PATIENT = Backoff(first_s=0.1, most_s=0.5, attempts=200)


@asynccontextmanager
async def peer(*arguments: object) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.transfer_peer", *map(str, arguments), stdout=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def hear(process: Process, wanted: Callable[[str], bool]) -> str:
    """The first line that is as wanted."""
    assert process.stdout is not None
    async for line in process.stdout:
        if wanted(line.decode()):
            return line.decode().strip()
    raise AssertionError("the process ended before that")


async def said(log: pytest.LogCaptureFixture, words: str) -> None:
    while words not in log.text:  # noqa: ASYNC110  # a log line has no event
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("way", ["upload", "download"])
async def test_a_frozen_aggregator_is_left_and_the_transfer_goes_on_when_it_is_back(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (source := tmp_path / "source").write_bytes(BLOB)
    FEDERATION.aggregator().save(tmp_path / "aggregator.pem")
    (tmp_path / "blobs").mkdir()
    if way == "download":
        (tmp_path / "blobs" / NAME).write_bytes(BLOB)
    middle, clock = asyncio.Event(), SystemClock()

    def progress(done: int, total: int) -> None:
        if 0 < done < total:
            middle.set()

    async with peer("serve", tmp_path / "blobs", FEDERATION.name, tmp_path / "aggregator.pem", 60) as process:
        port = (await hear(process, lambda line: line.startswith("port "))).split()[1]
        async with open_connection(f"localhost:{port}", FEDERATION.site("north")) as connection:
            options = {
                "clock": clock,
                "random": Random(0),
                "pace": Pace(clock, PACE),
                "stall_s": STALL_S,
                "progress": progress,
                "backoff": PATIENT,
            }
            moving = asyncio.create_task(
                blobs.upload(connection, source, NAME, task=TASK, **options)  # type: ignore[arg-type]  # each has its type
                if way == "upload"
                else blobs.download(connection, NAME, tmp_path / "back", size=len(BLOB), **options)  # type: ignore[arg-type]  # as above
            )
            await middle.wait()
            process.send_signal(signal.SIGSTOP)
            with caplog.at_level(logging.WARNING):
                await said(caplog, "no byte moved to or from")
            process.send_signal(signal.SIGCONT)
            await moving
    arrived = tmp_path / "back" if way == "download" else tmp_path / "blobs" / NAME
    assert arrived.read_bytes() == BLOB
    assert "stands at byte 0," not in caplog.text, "it goes on where it was"


async def test_attempts_at_an_aggregator_that_stays_frozen_are_bounded(tmp_path: Path) -> None:
    FEDERATION.aggregator().save(tmp_path / "aggregator.pem")
    (source := tmp_path / "source").write_bytes(BLOB)
    async with peer("serve", tmp_path / "blobs", FEDERATION.name, tmp_path / "aggregator.pem", 60) as process:
        port = (await hear(process, lambda line: line.startswith("port "))).split()[1]
        async with open_connection(f"localhost:{port}", FEDERATION.site("north")) as connection:
            process.send_signal(signal.SIGSTOP)
            few = Backoff(first_s=0.01, most_s=0.01, attempts=2)
            with pytest.raises(AggregatorUnavailable, match="no byte moved"):
                await blobs.upload(
                    connection, source, NAME, task=TASK, clock=SystemClock(), random=Random(0), stall_s=0.2, backoff=few
                )


@pytest.mark.parametrize("way", ["upload", "download"])
async def test_a_frozen_site_is_left_and_resumes_when_it_is_back(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ACK_EVERY_S", -1.0)
    (tmp_path / "source").write_bytes(BLOB)
    FEDERATION.site("north").save(tmp_path / "site.pem")
    async with serving(tmp_path / "blobs", FEDERATION, stall_s=STALL_S) as wire:
        size = len(BLOB)
        if way == "download":
            # long enough that it does not fit into the buffers between the two
            with (tmp_path / "long").open("wb") as file:
                file.truncate(size := 64 * limits.MIB)
            name = wire.store.import_file(tmp_path / "long")
            wire.permissions.released.add(name)
            words = ("download", wire.port, tmp_path / "site.pem", tmp_path / "back", name, size, 0, STALL_S)
        else:
            words = ("upload", wire.port, tmp_path / "site.pem", tmp_path / "source", NAME, size, PACE, STALL_S)
        async with peer(*words) as process:
            await hear(process, lambda line: line.startswith("at ") and 0 < int(line.split()[1]) < size)
            process.send_signal(signal.SIGSTOP)
            with caplog.at_level(logging.WARNING):
                await said(caplog, f"an {way} is broken off" if way == "upload" else "a download is broken off")
            process.send_signal(signal.SIGCONT)
            await hear(process, lambda line: line == "done\n")
        if way == "upload":
            assert wire.store.path(NAME).read_bytes() == BLOB
        else:
            assert sha256((tmp_path / "back").read_bytes()) == name


async def test_a_site_that_answers_pings_but_takes_nothing_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        serving(tmp_path / "blobs", FEDERATION, stall_s=0.3) as wire,
        open_connection(wire.address, FEDERATION.site("north")) as connection,
    ):
        with (tmp_path / "long").open("wb") as file:
            file.truncate(64 * limits.MIB)
        name = wire.store.import_file(tmp_path / "long")
        wire.permissions.released.add(name)
        stub = transfer_pb2_grpc.BlobServiceStub(connection.channel)
        call = stub.Download(transfer_pb2.DownloadRequest(sha256=name))
        await call.read()
        with caplog.at_level(logging.WARNING):
            await said(caplog, "a download is broken off")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while isinstance(await call.read(), transfer_pb2.DownloadResponse):
                pass
        error = await connection.explain(ended.value)
        assert isinstance(error, TryLater) and "nothing was taken for 0.3 seconds" in str(error)
