"""The agent's transfers over real TLS: a certificate that is renewed in mid-transfer, and the site's caps."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from agent.link import Link
from histofed.base.clock import SystemClock
from histofed.base.ids import ExperimentId, RoundKey, SiteId, TaskKey, sha256
from histofed.pki.credentials import Credentials
from histofed.telemetry.tracing import Tracing
from histofed.transport import limits
from tests.support.pki import Federation
from tests.support.wire import Wire, serving

FEDERATION = Federation()
TASK = TaskKey(RoundKey(ExperimentId("gan"), 1), "train", SiteId("north"))
BLOB = os.urandom(3 * limits.MIB)
NAME = sha256(BLOB)
PACE = 4 * limits.MIB


@pytest.fixture
async def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wire]:
    monkeypatch.setattr(limits, "ACK_EVERY_S", -1.0)
    async with serving(tmp_path / "blobs", FEDERATION) as running:
        (tmp_path / "blob").write_bytes(BLOB)
        yield running


@pytest.fixture
async def link(wire: Wire, tmp_path: Path) -> AsyncIterator[Link]:
    FEDERATION.site("north").save(tmp_path / "agent.pem")
    found = Link(wire.address, tmp_path / "agent.pem", SystemClock(), Random(0), Tracing.off())
    yield found
    await found.close()


@pytest.mark.parametrize("way", ["upload", "download"])
async def test_a_transfer_goes_on_over_a_new_channel_when_the_certificate_is_renewed(
    wire: Wire, link: Link, tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    middle, old = asyncio.Event(), link.credentials

    def progress(done: int, total: int) -> None:
        if 0 < done < total:
            middle.set()

    link.cap(PACE, PACE)
    if way == "download":
        wire.permissions.released.add(wire.store.import_file(tmp_path / "blob"))
        moving = asyncio.create_task(link.download(NAME, len(BLOB), tmp_path / "back", None, progress))
    else:
        moving = asyncio.create_task(link.upload(tmp_path / "blob", TASK, NAME, None, progress))
    await middle.wait()
    with caplog.at_level(logging.INFO):
        renewed: Credentials = FEDERATION.site("north")
        renewed.save(tmp_path / "agent.pem")
        await link.reload_identity()
        wire.denied.add(old.serial)
        await moving
    arrived = tmp_path / "back" if way == "download" else wire.store.path(NAME)
    assert arrived.read_bytes() == BLOB
    found = re.search(r"stands at byte (\d+) and goes on over a new connection", caplog.text)
    assert found is not None and 0 < int(found[1]) < len(BLOB), "it did not begin again"
    assert "trying again" not in caplog.text, "a renewal is no failure: nothing is waited for"


async def test_the_connection_that_moved_weights_is_hung_up(wire: Wire, link: Link, tmp_path: Path) -> None:
    during = list[int]()
    await link.upload(tmp_path / "blob", TASK, NAME, None, lambda done, total: during.append(connections_to(wire.address)))
    assert max(during) == 1
    async with asyncio.timeout(10):
        while connections_to(wire.address):  # noqa: ASYNC110  # the kernel's table has no event to wait for
            await asyncio.sleep(0.01)


def connections_to(address: str) -> int:
    """Established ones of this machine."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    tables = [Path(f"/proc/self/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables for row in table]
    return sum(row[2].endswith(port) and row[3] == "01" for row in rows)


@pytest.mark.parametrize("way", ["upload", "download"])
async def test_a_site_stays_below_its_cap(wire: Wire, link: Link, tmp_path: Path, way: str) -> None:
    clock, heard = SystemClock(), list[tuple[float, int]]()

    def progress(done: int, total: int) -> None:
        heard.append((clock.monotonic(), done))

    link.cap(PACE, PACE)
    begin = clock.monotonic()
    if way == "download":
        wire.permissions.released.add(wire.store.import_file(tmp_path / "blob"))
        await link.download(NAME, len(BLOB), tmp_path / "back", None, progress)
    else:
        await link.upload(tmp_path / "blob", TASK, NAME, None, progress)
    assert all(done <= PACE * (moment - begin + 0.25) + limits.MIB for moment, done in heard)
    assert clock.monotonic() - begin >= len(BLOB) / PACE - 0.5


async def test_a_site_keeps_the_pace_that_the_aggregator_asks_for(link: Link, tmp_path: Path) -> None:
    clock = SystemClock()
    (tmp_path / "blob").write_bytes(BLOB)
    async with serving(tmp_path / "others", FEDERATION, bytes_per_second=PACE) as slow:
        there = Link(slow.address, tmp_path / "agent.pem", clock, Random(0), Tracing.off())
        begin = clock.monotonic()
        await there.upload(tmp_path / "blob", TASK, NAME, None, lambda done, total: None)
        assert clock.monotonic() - begin >= len(BLOB) / PACE - 0.5
        slow.permissions.released.add(NAME)
        begin = clock.monotonic()
        await there.download(NAME, len(BLOB), tmp_path / "back", None, lambda done, total: None)
        assert clock.monotonic() - begin >= len(BLOB) / PACE - 0.5
        await there.close()
