"""Connections that are replaced or not needed any more are closed, and none that is in use."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import cast

import pytest

from agent.line import Line
from histofed.transport.channel import Connection


class Dialled:
    """What a line asks of a connection."""

    def __init__(self) -> None:
        self.replaced = asyncio.Event()
        self.closed = False

    async def close(self) -> None:
        self.closed = True


class Exchange:
    """Every connection that was made, in order."""

    def __init__(self) -> None:
        self.made: list[Dialled] = []

    def __call__(self) -> Connection:
        self.made.append(Dialled())
        return cast("Connection", self.made[-1])

    @property
    def closed(self) -> list[bool]:
        return [one.closed for one in self.made]


async def test_a_line_that_lasts_keeps_its_connection() -> None:
    dial = Exchange()
    line = Line(dial, lasting=True)
    for _ in range(2):
        async with line.newest():
            pass
    assert dial.closed == [False]
    await line.close()
    assert dial.closed == [True]


async def test_one_that_does_not_is_shared_and_hung_up_after_its_last_use() -> None:
    dial = Exchange()
    line = Line(dial, lasting=False)
    assert dial.made == [], "nobody wants it yet"
    async with line.newest() as first:
        async with line.newest() as second:
            assert first is second
        assert dial.closed == [False]
    assert dial.closed == [True]
    async with line.newest():
        assert dial.closed == [True, False]
    assert dial.closed == [True, True]
    await line.close()


async def test_an_error_hangs_up_too() -> None:
    dial = Exchange()
    with pytest.raises(OSError, match="cut"):
        async with Line(dial, lasting=False).newest():
            raise OSError("cut")
    assert dial.closed == [True]


@pytest.mark.parametrize("lasting", [True, False])
async def test_who_is_in_the_middle_of_something_is_told_to_move(lasting: bool) -> None:
    dial = Exchange()
    line = Line(dial, lasting=lasting)
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(line.newest())
        await line.replace()
        assert old.replaced.is_set()
        async with line.newest() as new:
            assert new is not old
            assert not new.replaced.is_set()
        assert dial.closed == [False, not lasting]
    assert dial.closed == [True, not lasting]
