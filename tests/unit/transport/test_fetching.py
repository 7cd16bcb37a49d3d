"""A blob fetched over real TLS: whole, resumed at any cut, slow, wrong."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from histofed.base.clock import FakeClock
from histofed.base.errors import (
    AggregatorUnavailable,
    BadData,
    DigestMismatch,
    NotFound,
)
from histofed.base.ids import sha256
from histofed.transport import limits
from histofed.transport.backoff import Backoff
from histofed.transport.channel import open_connection
from histofed.transport.pace import BURST_S, Pace
from tests.support.blob_calls import BLOB, CUTS, FEDERATION, NAME, SITE, fetch, names, put, send, write
from tests.support.wire import CuttingProxy, serving


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
