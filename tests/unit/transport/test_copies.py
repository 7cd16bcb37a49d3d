"""What the other end holds does not travel: over real TLS, with the bytes on the wire counted, cut anywhere, and damaged."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from histofed.base.clock import FakeClock
from histofed.base.errors import BadData, NotFound, TryLater
from histofed.base.ids import Digest, TaskKey, sha256
from histofed.transport import blobs, comparisons, limits, sending
from histofed.transport.channel import Connection, open_connection
from histofed.transport.held import Held
from histofed.transport.store import owner_of, read_errors
from histofed.transport.unchanged import Stretch, unchanged
from tests.support.failing_disk import lose
from tests.support.pki import Federation
from tests.support.wire import CuttingProxy, Wire, serving

FEDERATION = Federation()
SITE = FEDERATION.site("north")
TASK = "gan/1/train/north"
FROZEN = os.urandom(3 * limits.MIB + 4321)
"""A tensor that no round changes, between two that every round does."""
BASE = os.urandom(600_000) + FROZEN + os.urandom(500_000)
NEXT = os.urandom(600_000) + FROZEN + os.urandom(500_000)
OVERHEAD = 150_000
"""Bytes of handshake, HTTP/2 and answers at most."""


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    async with serving(tmp_path / "blobs", FEDERATION) as running:
        keep(running, BASE)
        running.permissions.known.add(sha256(BASE))
        running.permissions.bases[TASK] = sha256(BASE)
        running.permissions.released.add(keep(running, NEXT))
        yield running


@pytest.fixture
def held(tmp_path: Path) -> Held:
    (tmp_path / "base").write_bytes(BASE)
    return Held(sha256(BASE), tmp_path / "base")


def keep(wire: Wire, data: bytes) -> Digest:
    path = wire.store.path(sha256(data)).with_name("incoming")
    path.write_bytes(data)
    return wire.store.import_file(path, move=True)


def content(path: Path) -> bytes:
    return path.read_bytes()


async def fetch(connection: Connection, target: Path, held: Held | None) -> None:
    size = len(NEXT)
    await blobs.download(connection, sha256(NEXT), target, size=size, held=held, clock=FakeClock(), random=Random(0))
    assert content(target) == NEXT


async def send(
    connection: Connection, folder: Path, data: bytes, held: Held | None, *, stall_s: float = limits.STALL_S
) -> None:
    (source := folder / "update").write_bytes(data)
    options = {"task": TASK, "held": held, "clock": FakeClock(), "random": Random(0), "stall_s": stall_s}
    await blobs.upload(connection, source, sha256(data), **options)  # type: ignore[arg-type]  # as they are named


async def test_a_frozen_tensor_is_fetched_once(wire: Wire, held: Held, tmp_path: Path) -> None:
    async with CuttingProxy(wire.port, []) as proxy, open_connection(f"localhost:{proxy.port}", SITE) as connection:
        await fetch(connection, tmp_path / "model", held)
        assert len(NEXT) - len(FROZEN) < proxy.passed < len(NEXT) - len(FROZEN) + OVERHEAD


async def test_a_frozen_tensor_is_never_sent(wire: Wire, held: Held, tmp_path: Path) -> None:
    update = os.urandom(600_000) + FROZEN + os.urandom(500_000)
    async with CuttingProxy(wire.port, []) as proxy, open_connection(f"localhost:{proxy.port}", SITE) as connection:
        await send(connection, tmp_path, update, held)
        assert len(update) - len(FROZEN) < proxy.passed < len(update) - len(FROZEN) + OVERHEAD
    assert wire.store.path(sha256(update)).read_bytes() == update
    assert wire.store.received(sha256(update), owner_of(TASK))


CUTS = [60_000, 500_000, 650_000, 900_000]


@pytest.mark.parametrize("cut", CUTS)
async def test_copies_survive_a_cut_anywhere(wire: Wire, held: Held, tmp_path: Path, cut: int) -> None:
    async with (
        CuttingProxy(wire.port, [cut, cut]) as proxy,
        open_connection(f"localhost:{proxy.port}", SITE) as connection,
    ):
        await fetch(connection, tmp_path / "model", held)
        await send(connection, tmp_path, NEXT, held)
        assert proxy.connections >= 2
    assert wire.store.path(sha256(NEXT)).read_bytes() == NEXT


@pytest.mark.parametrize("done", [1, 600_000, 600_001, 2_000_000, 600_000 + len(FROZEN) - 1, len(NEXT) - 1])
async def test_a_transfer_goes_on_in_the_middle_of_what_is_unchanged(
    wire: Wire, held: Held, tmp_path: Path, done: int
) -> None:
    update = os.urandom(600_000) + FROZEN + os.urandom(500_000)
    (tmp_path / "model.part").write_bytes(NEXT[:done])
    wire.store.path(sha256(update)).with_name(f"{sha256(update)}.{owner_of(TASK)}.part").write_bytes(update[:done])
    async with CuttingProxy(wire.port, []) as proxy, open_connection(f"localhost:{proxy.port}", SITE) as connection:
        await fetch(connection, tmp_path / "model", held)
        await send(connection, tmp_path, update, held)
        assert proxy.passed < 2 * (len(NEXT) - len(FROZEN)) + OVERHEAD
    assert wire.store.path(sha256(update)).read_bytes() == update


@pytest.mark.parametrize("left", [len(BASE), 1_000_000, 0])
async def test_a_damaged_copy_at_the_site_is_fetched_instead(
    wire: Wire, held: Held, tmp_path: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    held.path.write_bytes(bytes(left))
    async with open_connection(wire.address, SITE) as connection:
        await fetch(connection, tmp_path / "model", held)
    assert "what is unchanged is fetched after all" in caplog.text


@pytest.mark.parametrize("begins", ["to be opened", "at its first byte", "in the middle"])
async def test_a_copy_at_the_site_that_the_disk_does_not_give_is_fetched_instead(
    wire: Wire, held: Held, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    """It only saves bytes: neither this round nor a later one, which would meet the same copy, may end for it."""
    struck, opened, pread = held.path.stat().st_ino, os.open, os.pread
    whole = 0 if begins == "at its first byte" else 2 * limits.MIB

    def refuse(path: os.PathLike[str] | str, *how: int, **further: int) -> int:
        if path == held.path and begins == "to be opened":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *how, **further)

    def read(descriptor: int, size: int, offset: int) -> bytes:
        if os.fstat(descriptor).st_ino == struck and offset + size > whole:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "pread", read)
    async with open_connection(wire.address, SITE) as connection:
        await fetch(connection, tmp_path / "model", held)
    if begins != "to be opened":  # then it is not offered as held at all
        assert re.search("what is unchanged is fetched after all.*Input/output error", caplog.text)
    assert str(tmp_path) not in caplog.text
    assert not (tmp_path / "model.part").exists()


async def test_a_damaged_base_at_the_aggregator_is_sent_instead(
    wire: Wire, held: Held, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wire.store.path(sha256(BASE)).write_bytes(bytes(len(BASE)))
    async with open_connection(wire.address, SITE) as connection:
        await send(connection, tmp_path, NEXT[:-1], held)
    assert "what is unchanged is sent after all" in caplog.text


async def test_what_is_gone_at_either_end_travels(wire: Wire, held: Held, tmp_path: Path) -> None:
    wire.store.remove(sha256(BASE))
    async with open_connection(wire.address, SITE) as connection:
        await fetch(connection, tmp_path / "model", held)
        await send(connection, tmp_path, NEXT[:-1], held)
        held.path.unlink()
        await fetch(connection, tmp_path / "again", held)
        await send(connection, tmp_path, NEXT[:-2], held)


async def test_what_the_aggregator_cannot_read_to_compare_or_to_copy_travels(
    wire: Wire, held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lose(monkeypatch, wire.store.path(sha256(BASE)))
    async with open_connection(wire.address, SITE) as connection:
        await fetch(connection, tmp_path / "model", held)
        assert "nothing is taken as unchanged" in caplog.text
        await send(connection, tmp_path, NEXT[:-1], held)
        assert "what is unchanged is sent after all" in caplog.text
    assert content(tmp_path / "model") == NEXT


async def test_what_the_aggregator_may_not_open_travels(wire: Wire, held: Held, tmp_path: Path) -> None:
    """As root may open everything, something that nobody can open is in its place."""
    place = wire.store.path(sha256(BASE))
    place.unlink()
    place.symlink_to(place)
    async with open_connection(wire.address, SITE) as connection:
        await fetch(connection, tmp_path / "model", held)
        await send(connection, tmp_path, NEXT[:-1], held)


async def test_a_file_that_shrinks_while_it_is_compared_costs_no_download(
    wire: Wire, held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shrinks(new: int, old: int) -> tuple[Stretch, ...]:
        raise BadData("a file became shorter while it was read")

    monkeypatch.setattr(comparisons, "unchanged", shrinks)
    async with open_connection(wire.address, SITE) as connection:
        await fetch(connection, tmp_path / "model", held)


async def test_a_blob_that_goes_while_it_is_compared_is_not_found(
    wire: Wire, held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its round has ended, and the retention takes it."""

    def compare(new: int, old: int) -> tuple[Stretch, ...]:
        wire.store.remove(sha256(NEXT))
        return unchanged(new, old)

    monkeypatch.setattr(comparisons, "unchanged", compare)
    async with open_connection(wire.address, SITE) as connection:
        with pytest.raises(NotFound, match=r"there is no blob \w+… here"):
            await fetch(connection, tmp_path / "model", held)


async def test_a_blob_that_the_aggregators_disk_does_not_give_is_not_found(
    wire: Wire, held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lose(monkeypatch, wire.store.path(sha256(NEXT)))
    async with open_connection(wire.address, SITE) as connection:
        for asked in (held, None):
            with pytest.raises(
                NotFound, match=r"cannot be read \(Input/output error\): the aggregator's disk may be damaged"
            ):
                await fetch(connection, tmp_path / "model", asked)
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 2, "its administrator reads it too"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE])
def test_a_want_that_passes_is_no_lost_blob(number: int) -> None:
    with pytest.raises(TryLater, match=f"cannot be read now: {os.strerror(number)}"), read_errors("a" * 64):
        raise OSError(number, os.strerror(number))


async def test_what_is_compared_for_longer_than_the_sender_waits_is_compared_once(
    wire: Wire, held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, came_again, compared = list[TaskKey](), threading.Event(), list[int]()

    def compare_for_long(new: int, old: int) -> tuple[Stretch, ...]:
        compared.append(new)
        assert came_again.wait(10), "nobody came again"
        return unchanged(new, old)

    async def base_of(task: TaskKey) -> Digest:
        came.append(task)
        if len(came) > 1:
            came_again.set()
        return sha256(BASE)

    monkeypatch.setattr(sending, "unchanged", compare_for_long)
    monkeypatch.setattr(wire.permissions, "base_of", base_of)
    async with CuttingProxy(wire.port, []) as proxy, open_connection(f"localhost:{proxy.port}", SITE) as connection:
        await send(connection, tmp_path, NEXT[:-1], held, stall_s=0.5)
        assert proxy.passed < len(NEXT) - len(FROZEN) + OVERHEAD
    assert len(compared) == 1


async def test_an_upload_that_ends_while_it_compares_waits_for_no_disk(
    wire: Wire, held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A round that closes, or an agent that stops: the thread reads files of its own, which it closes."""
    comparing, ended, sizes = asyncio.Event(), threading.Event(), asyncio.Queue[int]()
    loop = asyncio.get_running_loop()

    def compare_for_long(new: int, old: int) -> tuple[Stretch, ...]:
        loop.call_soon_threadsafe(comparing.set)
        assert ended.wait(10), "the upload did not end"
        loop.call_soon_threadsafe(sizes.put_nowait, os.fstat(new).st_size + os.fstat(old).st_size)
        return ()

    monkeypatch.setattr(sending, "unchanged", compare_for_long)
    async with open_connection(wire.address, SITE) as connection:
        upload = asyncio.create_task(send(connection, tmp_path, NEXT[:-1], held))
        await comparing.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        ended.set()
        async with asyncio.timeout(10):
            assert await sizes.get() == len(NEXT) - 1 + len(BASE)
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
