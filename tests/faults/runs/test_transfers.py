"""What the product logs of its transfers is what the judge reads: facts, and parts that were opened again."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from histofed.base.clock import FakeClock
from histofed.base.ids import TaskKey, sha256
from histofed.telemetry.logs import JsonFormatter
from histofed.transport import blobs, limits
from histofed.transport.channel import open_connection
from histofed.transport.part import PartFile
from tests.faults.facts import BytesKept, Restored, ResumedFrom
from tests.faults.promises import bytes_were_kept
from tests.faults.runs import transfers
from tests.faults.runs.daemon import STRETCH
from tests.support.pki import Federation
from tests.support.wire import CuttingProxy, serving

TASK = "seed-1/1/train/north"
BLOB = os.urandom(10 * STRETCH)
NAME = sha256(BLOB)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a daemon of the rig prints of its transfers; they are as small as there."""
    monkeypatch.setattr(limits, "CHUNK", STRETCH)
    monkeypatch.setattr(limits, "SYNC_EVERY", STRETCH)
    monkeypatch.setattr(limits, "WINDOW", 2 * STRETCH)
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    loud = [logging.getLogger(f"histofed.transport.{name}") for name in ("sending", "part")]
    for logger in loud:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    yield written
    for logger in loud:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)


async def test_an_upload_that_was_cut_tells_what_was_kept_and_where_it_went_on(tmp_path: Path, log: io.StringIO) -> None:
    (tmp_path / "update").write_bytes(BLOB)
    federation = Federation()
    async with (
        serving(tmp_path / "blobs", federation) as wire,
        CuttingProxy(wire.port, [len(BLOB) // 2]) as proxy,
        open_connection(f"localhost:{proxy.port}", federation.site("north")) as connection,
    ):
        await blobs.upload(connection, tmp_path / "update", NAME, task=TASK, clock=FakeClock(), random=Random(0))
    told = transfers.told(log.getvalue().encode(), None)
    mine = [fact for fact in told if isinstance(fact, BytesKept | ResumedFrom) and fact.task == TaskKey.parse(TASK)]
    first, again = (fact.offset for fact in mine if isinstance(fact, ResumedFrom))
    assert (first, mine[-1]) == (0, BytesKept(TaskKey.parse(TASK), NAME, len(BLOB)))
    assert 3 * STRETCH <= again < len(BLOB), "no more than the window was on its way"
    assert list(bytes_were_kept(told)) == []


def test_a_download_that_was_killed_tells_what_was_kept_and_where_it_went_on(tmp_path: Path, log: io.StringIO) -> None:
    path = tmp_path / "model.part"
    part = PartFile(path, NAME, len(BLOB))
    part.append(0, BLOB[:STRETCH])
    part.commit()
    part.close()
    PartFile(path, NAME, len(BLOB)).close()
    path.unlink()
    PartFile(path, NAME, len(BLOB)).close()
    told = transfers.told(log.getvalue().encode(), None)
    assert told == [
        ResumedFrom(None, NAME, 0),
        BytesKept(None, NAME, STRETCH),
        ResumedFrom(None, NAME, STRETCH),
        ResumedFrom(None, NAME, 0),
    ]
    (lost,) = bytes_were_kept(told)
    assert str(lost) == f"byte-lost: the download of {NAME[:12]}: 65536 bytes were acknowledged, it was to go on from 0"
    assert transfers.reopened(log.getvalue().encode()) == 1


def line(message: str, offset: int) -> bytes:
    return json.dumps({"msg": message, "task": TASK, "blob": NAME, "bytes": len(BLOB), "offset": offset}).encode() + b"\n"


def test_words_of_a_history_that_is_no_more_are_not_held_against_the_next_one() -> None:
    before = line("an upload goes on", 0) + line("an upload is kept so far", 5)
    late = line("an upload is kept so far", 7) + line("an upload goes on", 0)
    noticed = b'{"msg": "the aggregator was restored from a backup; what it forgot is done again"}\n'
    after = line("an upload goes on", 2) + line("an upload goes on", 1)
    whole = before + late + noticed + after
    assert len(list(bytes_were_kept(transfers.told(whole, None)))) == 2
    told = transfers.told(whole, len(before))
    assert told[2] == Restored(0)
    assert [each.what for each in bytes_were_kept(told)] == [f"{TASK}: 2 bytes were acknowledged, it was to go on from 1"]
    assert transfers.told(before + late, len(before)) == [*transfers.told(before, None), Restored(0)]


def test_a_line_that_a_kill_cut_short_is_none() -> None:
    good = line("an upload is kept so far", 5)
    torn = good + b'{"msg": "an upload is k' + good + b"\xff\n7\n" + good
    assert transfers.told(torn, None) == [BytesKept(TaskKey.parse(TASK), NAME, 5)] * 2


def test_parts_are_counted_where_bytes_were_there_and_not_all() -> None:
    log = b"".join(line("a part is opened", offset) for offset in (0, 1, len(BLOB) - 1, len(BLOB)))
    assert transfers.reopened(log) == 2
    assert str(transfers.Resumed(1, 2) + transfers.Resumed(3)) == "resumed 4 uploads, 2 downloads"
