"""The enrolment port opens and closes with the tokens, and its troubles stay its own."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

import grpc.aio
import pytest

from aggregator.database import Database
from aggregator.door import EnrolmentDoor
from aggregator.members import Members
from histofed.base.clock import FakeClock
from histofed.base.errors import AlreadyThere
from histofed.base.ids import SiteId


class Port:
    """The port, as the door sees it; `taken` is what another program makes of it."""

    def __init__(self) -> None:
        self.taken = False
        self.opened = asyncio.Event()
        self.refused = asyncio.Event()

    async def open(self) -> grpc.aio.Server:
        if self.taken:
            self.refused.set()
            raise AlreadyThere("cannot listen on 127.0.0.1:8444: another process does")
        server = grpc.aio.server()
        await server.start()
        self.opened.set()
        return server


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_a_port_that_is_taken_is_said_and_tried_again(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aggregator.door.CHECK_S", 0.01)
    database, port, drain = Database(tmp_path / "state.db"), Port(), asyncio.Event()
    members = Members(database, clock)
    members.create_token("hmac", SiteId("north"), clock.now() + timedelta(minutes=30))
    door = EnrolmentDoor(members, b"key", port.open)
    port.taken = True
    with caplog.at_level(logging.ERROR):
        watching = asyncio.create_task(door.run(drain))
        await asyncio.wait_for(port.refused.wait(), 10)
        port.taken = False
        await asyncio.wait_for(port.opened.wait(), 10)
    assert "the enrolment port cannot be opened or closed" in caplog.text
    drain.set()
    await watching
    database.close()
