"""Turns: a few transfers at once, more where the line has room, nobody for ever."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from histofed.base.clock import FakeClock, SystemClock
from histofed.base.ids import sha256
from histofed.transport import blobs, limits
from histofed.transport.channel import open_connection
from histofed.transport.turns import Turn, Turns
from tests.support.agent_site import until
from tests.support.pki import Federation
from tests.support.wire import CuttingProxy, serving

FEDERATION = Federation()
BLOB = os.urandom(2 * limits.MIB + 5)
NAME = sha256(BLOB)
AT_ONCE, LINE = 3, 1000.0


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(limits, "LOOK_S", 0.01)
    yield


class Queue(RuleBasedStateMachine):
    """Transfers that come, move bytes, end or give up in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.turns = Turns(self.clock, AT_ONCE, LINE)
        self.places: list[tuple[ExitStack, Turn]] = []
        """In the order in which they came."""
        self.moved = 0
        """Since the last look, or since somebody waits."""

    @property
    def waiting(self) -> int:
        return len(self.places) - self.turns.inside

    @rule(site=st.sampled_from(["east", "north", "south"]))
    def comes(self, site: str) -> None:
        if not self.waiting:
            self.moved = 0
        stack = ExitStack()
        self.places.append((stack, stack.enter_context(self.turns.queue(site))))

    @precondition(lambda self: self.places)
    @rule(which=st.integers(0, 1000))
    def goes(self, which: int) -> None:
        stack, _ = self.places.pop(which % len(self.places))
        stack.close()

    @precondition(lambda self: self.places)
    @rule(size=st.integers(0, 2000))
    def a_second_passes(self, size: int) -> None:
        self.places[0][1].moved(size)
        self.moved += size
        self.clock.advance(limits.LOOK_S)
        if not self.waiting:
            return
        room = self.moved < LINE * limits.LOOK_S
        expected = min(len(self.places), self.turns.inside * (2 if room else 1))
        self.turns.look()
        self.moved = 0
        assert self.turns.inside == expected

    @invariant()
    def those_who_may_are_the_first_of_their_site(self) -> None:
        for site in ("east", "north", "south"):
            come = [turn.has_come for _, turn in self.places if turn.site == site]
            assert come == sorted(come, reverse=True)

    @invariant()
    def as_many_as_may_are_inside(self) -> None:
        inside = sum(turn.has_come for _, turn in self.places)
        assert inside == self.turns.inside >= min(len(self.places), AT_ONCE)
        assert len(self.turns) == len(self.places)


TestQueue = Queue.TestCase


def test_a_full_line_lets_nobody_in_and_an_idle_one_doubles() -> None:
    clock = FakeClock()
    turns = Turns(clock, 2, LINE)
    with ExitStack() as stack:
        places = [stack.enter_context(turns.queue(f"site-{number}")) for number in range(20)]
        for _ in range(5):
            places[0].moved(int(LINE * limits.LOOK_S) + 1)
            clock.advance(limits.LOOK_S)
            turns.look()
            assert turns.inside == 2
        for expected in (4, 8, 16, 20):
            clock.advance(limits.LOOK_S)
            turns.look()
            assert turns.inside == expected
        # what moved before anybody waited is no reason to keep somebody waiting, nor to let somebody in
    turns_again = Turns(clock, 1, LINE)
    with turns_again.queue("east") as first:
        clock.advance(1000)
        with turns_again.queue("west") as second:
            turns_again.look()
            assert first.has_come and not second.has_come


def test_a_site_that_asks_a_hundred_times_waits_behind_one_that_asks_once() -> None:
    turns = Turns(FakeClock(), 2, LINE)
    with ExitStack() as stack:
        first = ExitStack()
        greedy = [first.enter_context(turns.queue("greedy"))]
        greedy += [stack.enter_context(turns.queue("greedy")) for _ in range(100)]
        others = [stack.enter_context(turns.queue(site)) for site in ("east", "west")]
        assert [turn.has_come for turn in greedy[:3] + others] == [True, True, False, False, False]
        first.close()
        assert [turn.has_come for turn in greedy[1:3] + others] == [True, False, True, False]


async def test_who_waits_is_told_in_time_that_it_lives(quick_looks: None) -> None:
    turns = Turns(SystemClock(), 1, 0.0)
    with turns.queue("east") as first, turns.queue("west") as second:
        assert await first.came()
        assert not await second.came(looks=2)
    assert turns.inside == 0


def test_who_waits_hears_of_it_long_before_it_gives_up() -> None:
    assert limits.LOOKS * limits.LOOK_S < limits.STALL_S / 2


async def test_transfers_of_many_sites_take_turns_and_all_arrive(tmp_path: Path, quick_looks: None) -> None:
    source = tmp_path / "update"
    source.write_bytes(BLOB)
    turns = Turns(SystemClock(), 1, 0.0)
    async with serving(tmp_path / "blobs", FEDERATION, turns=turns) as wire:
        wire.store.adopt(_copy(tmp_path), NAME)
        wire.permissions.released.add(NAME)
        seen = 0

        async def site(name: str) -> None:
            nonlocal seen
            async with open_connection(wire.address, FEDERATION.site(name)) as connection:
                options = {"clock": FakeClock(), "random": Random(0)}

                def at(done: int, total: int) -> None:
                    nonlocal seen
                    seen = max(seen, turns.inside)

                await blobs.upload(connection, source, NAME, task=f"gan/1/train/{name}", progress=at, **options)  # type: ignore[arg-type]  # each has its type
                target = tmp_path / f"{name}.model"
                await blobs.download(connection, NAME, target, size=len(BLOB), progress=at, **options)  # type: ignore[arg-type]  # as above
                assert target.read_bytes() == BLOB

        # another transfer goes on until all of them were told that they wait
        with turns.queue("mine") as mine:
            assert mine.has_come
            sites = [asyncio.create_task(site(f"site-{number}")) for number in range(5)]
            await until(lambda: len(turns) == 6)
            await asyncio.sleep(limits.LOOK_S * (limits.LOOKS + 5))
            assert not wire.permissions.complete and seen <= 1
        await asyncio.gather(*sites)
        assert len(wire.permissions.complete) == 5 and seen == 1
    assert turns.inside == 0


async def test_a_site_sends_nothing_while_it_waits(tmp_path: Path, quick_looks: None) -> None:
    source = tmp_path / "update"
    source.write_bytes(BLOB)
    turns = Turns(SystemClock(), 1, 0.0)
    async with (
        serving(tmp_path / "blobs", FEDERATION, turns=turns) as wire,
        CuttingProxy(wire.port, []) as proxy,
        open_connection(f"localhost:{proxy.port}", FEDERATION.site("north")) as connection,
    ):
        heard: list[int] = []
        with turns.queue("mine"):
            sending = asyncio.create_task(
                blobs.upload(
                    connection,
                    source,
                    NAME,
                    task="gan/1/train/north",
                    clock=FakeClock(),
                    random=Random(0),
                    progress=lambda done, total: heard.append(done),
                )
            )
            await until(lambda: len(heard) >= 2)
            assert heard == [0] * len(heard)
            assert proxy.passed < 40_000, "handshake and words, not the 64 KiB that gRPC takes unread"
        await sending
        assert proxy.passed > len(BLOB)


async def test_a_frozen_transfer_keeps_nobody_out(tmp_path: Path, quick_looks: None) -> None:
    source = tmp_path / "update"
    source.write_bytes(BLOB)
    turns = Turns(SystemClock(), 1, math.inf)
    async with serving(tmp_path / "blobs", FEDERATION, turns=turns) as wire:
        with turns.queue("mine"):
            async with open_connection(wire.address, FEDERATION.site("north")) as connection:
                await blobs.upload(connection, source, NAME, task="gan/1/train/north", clock=FakeClock(), random=Random(0))
    assert [task for task, _ in wire.permissions.complete] == ["gan/1/train/north"]


def _copy(folder: Path) -> Path:
    path = folder / "model"
    path.write_bytes(BLOB)
    return path
