"""What a site may send, and what becomes of its task when it may not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from aggregator import events
from aggregator.engine import Engine
from aggregator.services.permissions import SitePermissions
from aggregator.space import Space
from aggregator.tasks import ANNOUNCEMENTS, TaskState
from histofed.base.errors import CannotWriteState, Stale, TooLarge, TryLater
from histofed.base.ids import Digest, SiteId, TaskKey, sha256
from histofed.pki.identity import Identity, Role
from histofed.transport.gate import Caller
from histofed.transport.store import BlobStore, owner_of
from tests.support.engine_bench import EXPERIMENT, KEY, NORTH, SOUTH, Bench, deliver, opened, running, settle

MIB = 2**20
RESERVE = 256 * MIB


def task_of(site: SiteId) -> TaskKey:
    return TaskKey(KEY, "train", site)


OWNER = owner_of(str(task_of(NORTH)))


@dataclass
class Centre:
    """An engine with two accepted tasks, and a disk of which a test says how much room it has."""

    bench: Bench
    engine: Engine
    blobs: BlobStore
    room: int = 2**40
    """Bytes that were free above the reserve before the first update came."""
    permissions: SitePermissions = field(init=False)

    def __post_init__(self) -> None:
        space = Space(self.bench.folder, RESERVE, lambda _: RESERVE + self.room - self.used())
        self.permissions = SitePermissions(self.engine, self.blobs, space, self.bench.chronicle(self.engine))

    async def announce(self, sha: Digest, size: int, site: SiteId = NORTH) -> None:
        who = Caller(Identity("test", Role.SITE, site), "01", b"", "ipv4:127.0.0.1:1")
        await self.permissions.may_upload(who, task_of(site), sha, size)

    async def send(self, data: bytes, came: int | None = None, site: SiteId = NORTH) -> Digest:
        """All of the update, or what came of it before the line was cut."""
        await self.announce(sha256(data), len(data), site)
        with contextlib.closing(self.blobs.writer(sha256(data), owner_of(str(task_of(site)))).open(len(data))) as writer:
            writer.append(writer.committed, data[writer.committed : came], sync=True)
            if came is None:
                writer.finish()
        return sha256(data)

    def files(self) -> set[str]:
        return {path.name for path in (self.bench.folder / "blobs").iterdir()}

    def used(self) -> int:
        """Bytes of updates."""
        return sum(path.stat().st_size for path in (self.bench.folder / "blobs").iterdir() if path.suffix != ".sums")


@pytest.fixture
async def centre(bench: Bench) -> AsyncIterator[Centre]:
    bench.forge.size = 128 * MIB
    async with bench.engine() as engine:
        await running(engine)
        base = engine.store.latest_model(EXPERIMENT.name)
        assert base is not None
        engine.plan(EXPERIMENT, 1, base.digest, (NORTH, SOUTH), (NORTH, SOUTH))
        for site in (NORTH, SOUTH):
            engine.dispatch(KEY, events.Accepted(site, 1))
        yield Centre(bench, engine, bench.blobs)


async def test_below_the_reserve_an_update_waits_and_its_task_stays(centre: Centre) -> None:
    centre.room = 44 * MIB
    with pytest.raises(CannotWriteState, match="300 MiB free, 100 MiB more would leave less than its reserve"):
        await centre.announce(Digest("e" * 64), 100 * MIB)
    assert centre.engine.store.round(KEY).task(NORTH).state is TaskState.ACCEPTED
    centre.room = 144 * MIB
    await centre.announce(Digest("e" * 64), 100 * MIB)
    assert centre.engine.store.round(KEY).task(NORTH).state is TaskState.UPLOADING
    centre.bench.clock.advance(EXPERIMENT.file.round.deadline_s)
    centre.bench.scheduler(centre.engine).tick()
    with pytest.raises(Stale, match="its update came too late"):
        await centre.announce(Digest("e" * 64), 10)


async def test_an_upload_is_not_in_its_own_way(centre: Centre) -> None:
    """Cut, resumed, and asked about once more: each time only what is still to come needs room."""
    centre.room, data = 5000, os.urandom(4096)
    await centre.send(data, 3000)
    await centre.send(data)
    centre.room = 0
    await centre.announce(sha256(data), len(data))


async def test_another_update_gets_the_room_of_the_one_before(centre: Centre) -> None:
    centre.room = 5000
    await centre.send(os.urandom(4096))
    await centre.send(os.urandom(4096))


async def test_room_is_promised_once(centre: Centre) -> None:
    centre.room, north, south = 20 * MIB, os.urandom(16 * MIB), os.urandom(8 * MIB)
    await centre.announce(sha256(north), len(north))
    with pytest.raises(CannotWriteState, match="8 MiB more beside the 16 MiB that other uploads still need would leave"):
        await centre.announce(sha256(south), len(south), SOUTH)
    await centre.send(north, 10 * MIB)
    with pytest.raises(CannotWriteState, match="8 MiB more beside the 6 MiB that other uploads still need would leave"):
        await centre.announce(sha256(south), len(south), SOUTH)
    await centre.send(north)
    with pytest.raises(CannotWriteState, match="260 MiB free, 8 MiB more would leave less"):
        await centre.announce(sha256(south), len(south), SOUTH)
    centre.room += 4 * MIB
    await centre.send(south, site=SOUTH)


async def test_no_site_is_promised_more_than_an_update_of_the_model_takes(centre: Centre) -> None:
    """One that promises a gigabyte and sends nothing would keep the room from the others until the deadline."""
    centre.room = 300 * MIB
    with pytest.raises(TooLarge, match=r"the update has 268435456 bytes, one of the round's model at most 135282688"):
        await centre.announce(Digest("a" * 64), 256 * MIB)
    assert centre.engine.open_rounds[0].task(NORTH).state is TaskState.REJECTED
    await centre.announce(Digest("b" * 64), 129 * MIB, SOUTH)


async def test_an_announcement_that_is_refused_for_room_costs_nothing(centre: Centre) -> None:
    sent = await centre.send(os.urandom(4096))
    centre.room = MIB
    told, files = centre.bench.actions(), centre.files()
    for number in range(2 * ANNOUNCEMENTS):
        with pytest.raises(CannotWriteState, match="2 MiB more would leave less than its reserve"):
            await centre.announce(Digest(f"{number:064x}"), 2 * MIB)
    assert (centre.bench.actions(), centre.files()) == (told, files)
    assert centre.engine.open_rounds[0].task(NORTH).weights == sent
    await centre.announce(sent, 4096)


async def test_bytes_that_another_site_sent_too_make_no_room(centre: Centre) -> None:
    data = os.urandom(4096)
    for site in (NORTH, SOUTH):
        await centre.send(data, site=site)
    centre.room = 5000
    with pytest.raises(CannotWriteState):
        await centre.announce(Digest("e" * 64), 4096)
    await centre.announce(Digest("e" * 64), 900)


async def test_where_the_disk_lost_room_uploads_end_one_after_the_other(centre: Centre) -> None:
    north, south = os.urandom(4096), os.urandom(4096)
    await centre.send(north, 1000)
    await centre.send(south, 2000, SOUTH)
    centre.room = centre.used() + 3500
    with pytest.raises(CannotWriteState):
        await centre.announce(sha256(north), len(north))
    await centre.send(south, site=SOUTH)
    centre.room = centre.used() + 3500
    await centre.send(north)


@pytest.mark.parametrize("came", [None, 1000])
async def test_another_update_takes_the_place_of_the_one_before(centre: Centre, came: int | None) -> None:
    """A site that was restored from a backup trains again, with another result."""
    await centre.send(os.urandom(4096), came)
    left = centre.blobs.writer(await centre.send(os.urandom(4096), came), OWNER).open(4096)
    now = await centre.send(os.urandom(4096))
    with contextlib.closing(left), pytest.raises(Stale, match="this site announced another update"):
        left.append(0, b"x")
    assert centre.files() == {now, f"{now}.{OWNER}.received"}


async def test_what_an_attempt_sent_goes_when_the_next_one_sends_something_else(centre: Centre) -> None:
    first = await centre.send(os.urandom(4096))
    centre.engine.dispatch(KEY, events.Failed(NORTH, 1, "killed", retryable=True))
    centre.engine.dispatch(KEY, events.Accepted(NORTH, 2))
    assert first in centre.files()
    second = await centre.send(os.urandom(4096))
    assert centre.files() == {second, f"{second}.{OWNER}.received"}


async def test_announcements_are_bounded_and_those_refused_leave_no_trace(centre: Centre) -> None:
    for number in range(ANNOUNCEMENTS - 1):
        await centre.announce(sha256(bytes([number])), 10)
    last = await centre.send(os.urandom(4096))
    told, files = centre.bench.actions(), centre.files()
    with pytest.raises(Stale, match="announced 4 different updates in attempt 1"):
        await centre.announce(Digest("e" * 64), 10)
    await centre.announce(last, 4096)
    assert (centre.bench.actions(), centre.files()) == (told, files)


async def test_an_update_that_was_received_stays_whatever_is_announced_then(centre: Centre) -> None:
    sent = await centre.send(os.urandom(4096))
    centre.engine.dispatch(KEY, events.Received(NORTH, 1, Digest("a" * 64), sent, 4096))
    with pytest.raises(Stale):
        await centre.announce(Digest("e" * 64), 10)
    assert centre.files() == {sent, f"{sent}.{OWNER}.received"}


async def test_a_site_that_was_not_met_sends_nothing(centre: Centre) -> None:
    """What it has seen may show that this state was put back: then its update belongs to another history."""
    space = Space(centre.bench.folder, RESERVE, lambda _: 2**40)
    unmet = centre.bench.chronicle(centre.engine, met=())
    centre.permissions = SitePermissions(centre.engine, centre.blobs, space, unmet)
    with pytest.raises(TryLater, match="not heard yet what site north has seen"):
        await centre.announce(sha256(b"update"), 6)
    assert centre.engine.store.round(KEY).task(NORTH).state is TaskState.ACCEPTED


async def test_a_site_compares_with_what_its_own_tasks_start_from(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)  # with north alone in the sample
        await deliver(engine, NORTH)
        await settle(engine)
        made = engine.store.latest_model(EXPERIMENT.name)
        assert made is not None and made.round == 1
        engine.plan(EXPERIMENT, 2, made.digest, (NORTH, SOUTH), (NORTH, SOUTH))
        permissions = SitePermissions(
            engine, bench.blobs, Space(bench.folder, RESERVE, lambda _: 2**40), bench.chronicle(engine)
        )
        first, second, stranger = sha256(b"0"), sha256(b"1"), sha256(b"2")
        north, south = (Caller(Identity("test", Role.SITE, site), "01", b"", "") for site in (NORTH, SOUTH))
        assert await permissions.may_compare(north, second, first)
        assert not await permissions.may_compare(south, second, first), "it had no task in round 1"
        assert not await permissions.may_compare(north, second, stranger)
        assert not await permissions.may_compare(north, first, second), "no live task starts from it"
        operator = Caller(Identity("test", Role.OPERATOR, "admin"), "02", b"", "")
        assert await permissions.may_compare(operator, second, first)
