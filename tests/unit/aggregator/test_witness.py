"""Rows that are older than the journal beside them are refused; rows that a crash or a full disk left behind it are not."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from aggregator import schema
from aggregator.database import Database
from aggregator.events import Accepted
from aggregator.lifecycle import Order
from aggregator.rounds import Round
from aggregator.store import Store
from aggregator.witness import refuse_older_rows
from histofed.audit import history
from histofed.audit.journal import Journal
from histofed.audit.record import SYSTEM
from histofed.audit.segments import segments
from histofed.base.errors import CannotWriteState, WentBack
from histofed.base.experiment import parse_experiment
from histofed.base.ids import RoundKey
from tests.support.engine_bench import (
    EXPERIMENT,
    NORTH,
    SOUTH,
    Bench,
    deliver,
    opened,
    recover,
    running,
    settle,
    steer,
    submit,
)

OTHER = parse_experiment('name = "other"\nrecipe = "mean"\nrounds = 2\n')
REFUSAL = r"older than the audit journal beside it: .*; put back the database .*--replace.*restore --in-place"


def kept(bench: Bench, name: str) -> Path:
    """The database as it is now, such as somebody copies it by hand."""
    copy = bench.folder / name
    with (
        contextlib.closing(sqlite3.connect(bench.folder / "state.db")) as reading,
        contextlib.closing(sqlite3.connect(copy)) as writing,
    ):
        reading.backup(writing)
    return copy


def start(bench: Bench, rows: Path | None = None, journal: Path | None = None) -> None:
    """What the daemon's start looks at: the present rows, or others. Raises `WentBack`."""
    with contextlib.closing(Database(rows or bench.folder / "state.db")) as database:
        with database.reading() as connection:
            epoch = connection.execute(sa.select(sa.func.max(schema.epochs.c.number))).scalar_one() or 1
        refuse_older_rows(journal or bench.folder, Store(database, bench.clock), epoch)


def levels(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Of what it logged itself; another test may have let the engine's words through."""
    return [record.levelname for record in caplog.records if record.name == "aggregator.witness"]


async def test_of_all_copies_only_that_of_a_crash_is_gone_on_from(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are made behind each record, before its rows: as a kill leaves them."""
    written: list[tuple[str, Path]] = []
    append = Journal.append

    def watched(journal: Journal, action: str, **told: Any) -> int:
        sequence = append(journal, action, **told)
        copy = kept(bench, f"{sequence}.db")
        beside = bench.folder / f"journal-{sequence}"
        beside.mkdir()
        for segment in segments(bench.folder):
            shutil.copy(segment.path, beside)
        start(bench, copy, beside)
        written.append((action, copy))
        return sequence

    async with bench.engine() as engine:
        monkeypatch.setattr(Journal, "append", watched)
        await opened(engine)
        await deliver(engine, NORTH)
        await settle(engine)
    start(bench)
    assert [action for action, _ in written[:3]] == ["experiment.submitted", "model.created", "round.planned"]
    assert written[-1][0] == "round.aggregated"
    start(bench, written[-1][1])
    for _, copy in written[:-1]:
        with pytest.raises(WentBack, match=REFUSAL):
            start(bench, copy)


async def test_a_model_that_a_copy_lacks_is_missed_behind_all_that_another_experiment_did(bench: Bench) -> None:
    async with bench.engine() as engine:
        await opened(engine)
        submit(engine, OTHER)
        await settle(engine)
        other, base = RoundKey(OTHER.name, 1), engine.store.latest_model(OTHER.name)
        assert base is not None
        engine.plan(OTHER, 1, base.digest, (NORTH, SOUTH), (NORTH, SOUTH))
        copy = kept(bench, "copy")
        await deliver(engine, NORTH)
        await settle(engine)
        engine.dispatch(other, Accepted(NORTH, 1))
    start(bench)
    with pytest.raises(WentBack, match=r"before record \d+ \(round\.aggregated, 20"):
        start(bench, copy)


async def test_records_whose_rows_the_disk_refused_are_no_sign_of_older_rows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a first model, a round and a round's model; what happens to others meanwhile is written behind them."""

    def full(*_: object) -> None:
        raise CannotWriteState("the disk is full")

    async with bench.engine() as engine:
        with monkeypatch.context() as patched:
            patched.setattr(Store, "add_first_model", full)
            submit(engine, OTHER)
            await settle(engine)
        await opened(engine)
        base = engine.store.latest_model(EXPERIMENT.name)
        assert base is not None
        with monkeypatch.context() as patched:
            patched.setattr("aggregator.queries.insert_model", lambda *_: full())
            await deliver(engine, NORTH)
            await settle(engine)
        assert bench.actions().count("round.aggregated") > 1
        steer(engine, Order.CANCEL)
        start(bench)
    async with bench.engine() as engine:
        recover(engine)
        await settle(engine)
        base = engine.store.latest_model(OTHER.name)
        assert base is not None
        with monkeypatch.context() as patched, pytest.raises(CannotWriteState):
            patched.setattr(Store, "add_round", full)
            engine.plan(OTHER, 1, base.digest, (NORTH, SOUTH), (NORTH, SOUTH))
        engine.audit("token.created", SYSTEM, {})
    start(bench)


def restored(bench: Bench, epoch: int) -> None:
    """The record of a restore, as it is written before its rows."""
    with contextlib.closing(Journal(bench.folder, bench.clock, "test")) as journal:
        head = journal.head
        subject = history.restored(
            epoch_from=1, epoch=epoch, backup="", made_at="", backup_head=head, old_head=None, kept=""
        )
        journal.append(history.RESTORED, subject=subject)


async def test_of_a_restore_the_rows_know(bench: Bench) -> None:
    """What was written before it may be lost; a copy of before it is older, and so is one whose restore was killed."""
    async with bench.engine() as engine:
        await opened(engine)
        copy = kept(bench, "copy")
        await deliver(engine, NORTH)
        await settle(engine)
    restored(bench, 2)
    for rows in (None, copy):
        with pytest.raises(WentBack, match="its epoch is 1, and the journal tells of epoch 2"):
            start(bench, rows)
    with contextlib.closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute("INSERT INTO epochs (number, began_at) VALUES (2, '2026')")
    start(bench, copy)


async def test_a_round_of_the_lost_history_is_not_taken_for_the_one_that_has_its_number(bench: Bench) -> None:
    """Who puts back the database that a restore laid aside."""
    async with bench.engine() as engine:
        await running(engine)
        base = engine.store.latest_model(EXPERIMENT.name)
        assert base is not None
        backup = kept(bench, "backup")
        engine.plan(EXPERIMENT, 1, base.digest, (NORTH, SOUTH), (NORTH, SOUTH))
        lost = kept(bench, "lost")
    with contextlib.closing(sqlite3.connect(backup)) as connection, connection:
        connection.execute("INSERT INTO epochs (number, began_at) VALUES (2, '2026')")
    for file in bench.folder.glob("state.db*"):
        file.unlink()
    backup.rename(bench.folder / "state.db")
    restored(bench, 2)
    await bench.clock.sleep(1.0)
    async with bench.engine() as engine:
        engine.plan(EXPERIMENT, 1, base.digest, (NORTH, SOUTH), (NORTH, SOUTH))
        start(bench)
    with pytest.raises(WentBack, match="its epoch is 1, and the journal tells of epoch 2"):
        start(bench, lost)


def unreadable(segment: Path) -> None:
    """A segment on a bad sector."""
    segment.unlink(missing_ok=True)
    segment.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error"):
        segment.read_bytes()


async def test_what_was_written_before_a_round_that_the_rows_know_is_not_read(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """However long the journal is, and whatever a disk has done to it since."""
    async with bench.engine() as engine:
        await opened(engine)
        await deliver(engine, NORTH)
        await settle(engine)
    unreadable(bench.folder / "000000000000.jsonl")
    start(bench)
    assert levels(caplog) == []


async def test_what_a_disk_does_not_give_back_proves_nothing_nor_does_what_lies_before_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A restore may have been told there."""
    async with bench.engine() as engine:
        await opened(engine)
    folder, lost = bench.folder / "beside", {"experiment": "lost"}
    with contextlib.closing(Journal(folder, bench.clock, "test", segment_bytes=1)) as journal:
        for action, subject in (("experiment.paused", lost), (history.RESTORED, {"epoch": 1}), ("token.created", {})):
            journal.append(action, subject=subject)
        start(bench, journal=folder)
        unreadable(segments(folder)[1].path)
        start(bench, journal=folder)
        assert levels(caplog) == ["ERROR"]
        journal.append("experiment.paused", subject=lost)
    with pytest.raises(WentBack, match=r"before record 4 \(experiment\.paused"):
        start(bench, journal=folder)


def test_a_journal_without_a_record_is_judged_by_others(bench: Bench) -> None:
    start(bench, journal=bench.folder / "none")


async def test_a_round_is_looked_up_once_however_much_is_told_of_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start waits for this, and a round of a thousand sites has thousands of records, and a thousand rows."""
    looked_up, look_up = list[RoundKey](), Store.round
    async with bench.engine() as engine:
        await opened(engine)
        await deliver(engine, NORTH)
        await settle(engine)

    def watched(store: Store, key: RoundKey) -> Round:
        looked_up.append(key)
        return look_up(store, key)

    monkeypatch.setattr(Store, "round", watched)
    start(bench)
    assert len(looked_up) == len(set(looked_up)) > 0
