"""Comparisons: one pair after the other, none for a call that has gone, one at a time for each site."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from histofed.base.clock import SystemClock
from histofed.base.ids import Digest, sha256
from histofed.transport import blobs, comparisons, limits
from histofed.transport.channel import open_connection
from histofed.transport.comparisons import Comparisons
from histofed.transport.gate import Caller
from histofed.transport.held import Held
from histofed.transport.store import BlobStore
from histofed.transport.unchanged import Stretch, unchanged
from histofed.v1 import transfer_pb2, transfer_pb2_grpc
from tests.support.pki import Federation
from tests.support.wire import Wire, serving

FEDERATION = Federation()
NEW = os.urandom(3 * limits.COPY_LEAST)
OLD = [NEW[: 2 * limits.COPY_LEAST] + os.urandom(number) for number in range(1, 9)]
"""Each of another length, by which a comparison is told."""


class Reader:
    """Compares, while the gate is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began = asyncio.Event()
        self.gate = threading.Event()
        self.compared: list[int] = []
        """Numbers of the old blobs."""
        self.at_once = self._inside = 0
        self._loop = asyncio.get_running_loop()
        monkeypatch.setattr(comparisons, "unchanged", self._compare)

    def _compare(self, new: int, old: int) -> tuple[Stretch, ...]:
        self._inside += 1
        self.at_once = max(self.at_once, self._inside)
        self.compared.append(os.fstat(old).st_size - 2 * limits.COPY_LEAST - 1)
        self._loop.call_soon_threadsafe(self.began.set)
        assert self.gate.wait(10), "nobody opened the gate"
        found = unchanged(new, old)
        self._inside -= 1
        return found


@pytest.fixture
async def reader(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reader]:
    reader = Reader(monkeypatch)
    yield reader
    reader.gate.set()


@pytest.fixture
async def store(tmp_path: Path) -> BlobStore:
    store = BlobStore(tmp_path / "blobs")
    for data in (NEW, *OLD):
        keep(store, data)
    return store


@pytest.fixture
async def wire(store: BlobStore, tmp_path: Path) -> AsyncIterator[Wire]:
    async with serving(tmp_path / "blobs", FEDERATION) as running:
        running.permissions.released.add(sha256(NEW))
        running.permissions.known |= {sha256(data) for data in OLD}
        yield running


def keep(store: BlobStore, data: bytes) -> None:
    path = store.path(sha256(data)).with_name("incoming")
    path.write_bytes(data)
    store.import_file(path, move=True)


async def result(found: Comparisons, site: str, number: int) -> int:
    """Bytes that the new blob has in common with an old one, as the site hears."""
    with found.asked(site, sha256(NEW), sha256(OLD[number])) as comparison:
        return sum(stretch.size for stretch in await comparison)


async def test_a_site_that_asks_for_much_at_once_has_one_pair_compared(
    wire: Wire, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Digest]()

    async def may_compare(who: Caller, sha: Digest, held: Digest) -> bool:
        asked.append(held)
        if len(asked) == len(OLD):
            reader.gate.set()
        return True

    monkeypatch.setattr(wire.permissions, "may_compare", may_compare)
    async with open_connection(wire.address, FEDERATION.site("north")) as connection:

        async def fetch(number: int) -> bytes:
            target, mine = tmp_path / f"model-{number}", tmp_path / f"old-{number}"
            mine.write_bytes(OLD[number])
            held = Held(sha256(OLD[number]), mine)
            options = {"size": len(NEW), "held": held, "clock": SystemClock(), "random": Random(0)}
            await blobs.download(connection, sha256(NEW), target, **options)  # type: ignore[arg-type]  # as they are named
            return target.read_bytes()

        assert await asyncio.gather(*map(fetch, range(len(OLD)))) == [NEW] * len(OLD)
    assert len(reader.compared) == 1


async def test_a_download_that_waits_for_a_comparison_hears_so(
    wire: Wire, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOOK_S", 0.01)
    request = transfer_pb2.DownloadRequest(sha256=sha256(NEW), held=sha256(OLD[0]))
    async with open_connection(wire.address, FEDERATION.site("north")) as connection, asyncio.timeout(10):
        frames = aiter(transfer_pb2_grpc.BlobServiceStub(connection.channel).Download(request))
        assert await anext(frames) == transfer_pb2.DownloadResponse(bytes=len(NEW))
        reader.gate.set()
        assert [frame.copy.bytes async for frame in frames if frame.copy.bytes] == [2 * limits.COPY_LEAST]


async def test_what_nobody_waits_for_any_more_is_not_compared(store: BlobStore, reader: Reader) -> None:
    found = Comparisons(store)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(result(found, "north", 0))
        await reader.began.wait()
        for number in (1, 2, 3):
            with found.asked("east", sha256(NEW), sha256(OLD[number])):
                await asyncio.sleep(0)  # in the queue now
        group.create_task(result(found, "south", 4))
        reader.gate.set()
    assert (reader.compared, reader.at_once) == ([0, 4], 1)


async def test_a_pair_is_compared_once_for_all_who_ask_and_stays_when_one_leaves(store: BlobStore, reader: Reader) -> None:
    found = Comparisons(store)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(result(found, "north", 0))
        await reader.began.wait()
        with found.asked("east", sha256(NEW), sha256(OLD[1])):
            rest = [group.create_task(result(found, site, 1)) for site in ("east", "south", "west")]
            await asyncio.sleep(0)
        reader.gate.set()
    assert [task.result() for task in rest] == [2 * limits.COPY_LEAST] * 3
    assert reader.compared == [0, 1]


async def test_what_began_is_kept_for_the_call_that_comes_again(store: BlobStore, reader: Reader) -> None:
    found = Comparisons(store)
    async with asyncio.timeout(10):
        with found.asked("north", sha256(NEW), sha256(OLD[0])):
            await reader.began.wait()
        reader.gate.set()
        assert await result(found, "north", 0) == await result(found, "south", 0) == 2 * limits.COPY_LEAST
    assert reader.compared == [0]


async def test_a_site_that_waited_may_ask_again(store: BlobStore, reader: Reader) -> None:
    found = Comparisons(store)
    async with asyncio.timeout(10):
        with found.asked("north", sha256(NEW), sha256(OLD[0])):
            assert await result(found, "north", 1) == 0, "it waits for another pair"
        reader.gate.set()
        assert await result(found, "north", 1) == 2 * limits.COPY_LEAST
