"""`histofed-agent backup`: what a site must not lose, in a file that the journal tells of."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from agent import backup, restore
from agent.layout import Layout
from agent.outbox import folder_name
from histofed.audit.journal import Journal
from histofed.audit.verify import records
from histofed.backup import archive, snapshot
from histofed.base import durable
from histofed.base.errors import AlreadyThere, BadData, CannotWriteState, NotEnrolled, TryLater, UsageError
from histofed.pki.credentials import Credentials
from tests.support.commands import run_here
from tests.support.disk_order import disk_order
from tests.support.failing_disk import hide
from tests.support.failpoints import armed
from tests.support.pki import Federation
from tests.support.used_state import CLOCK, TASK, told, used_state


@pytest.fixture(scope="module")
def credentials() -> Credentials:
    return Federation().site("north-clinic")


@pytest.fixture
def layout(tmp_path: Path, credentials: Credentials) -> Layout:
    return used_state(tmp_path / "state", credentials)


def test_a_backup_holds_what_a_site_must_not_lose(layout: Layout, tmp_path: Path) -> None:
    made = backup.back_up(layout, tmp_path / "backup", CLOCK)
    assert backup.check(tmp_path / "backup") == made
    assert {member.name for member in made.members} == {
        *("identity/ca.pem", "identity/aggregator", "state.db", "journal/000000000001.jsonl"),
        *("private/pilot/2.safetensors", "private/pilot/3.safetensors"),
        *(f"outbox/{folder_name(TASK)}/manifest.json", f"outbox/{folder_name(TASK)}/update.safetensors"),
    }
    assert (made.rounds, made.epoch, made.open_rounds) == ({"pilot": 2}, 1, [folder_name(TASK)])
    assert b"PRIVATE KEY" not in (tmp_path / "backup").read_bytes()
    assert told(layout)[-1] == "backup.made"
    assert not (layout.root / "backup.tmp").exists()


def test_a_certificate_that_is_renewed_meanwhile_does_not_spoil_the_backup(
    layout: Layout, tmp_path: Path, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = archive.write

    def renewed(*arguments: Any) -> None:
        layout.identity.write_bytes(b"another, shorter")
        layout.aggregator.write_text("elsewhere.example:8443\n")
        write(*arguments)

    monkeypatch.setattr(archive, "write", renewed)
    backup.back_up(layout, tmp_path / "backup", CLOCK, with_identity=True)
    other = Layout(tmp_path / "other")
    restore.restore(other, tmp_path / "backup", CLOCK)
    assert Credentials.load(other.identity).serial == credentials.serial
    assert other.aggregator.read_text() == "aggregator.example:8443\n"


@pytest.mark.parametrize("folder", ["outbox", "private", "private/pilot"])
def test_what_cannot_be_listed_is_neither_left_out_nor_left_behind(
    layout: Layout, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    hide(monkeypatch, layout.root / folder)
    with pytest.raises(CannotWriteState, match="Too many open files"):
        backup.back_up(layout, tmp_path / "another", CLOCK)
    assert not (tmp_path / "another").exists()
    if folder != "outbox":
        with pytest.raises(CannotWriteState, match="Too many open files"):
            restore.restore(layout, tmp_path / "backup", CLOCK, replace=True)
        assert not (layout.root / "restore.json").exists()


def test_a_backup_that_was_made_is_noted_when_the_folder_can_be_listed(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with durable.lock(layout.lock, "the agent"):
        backup.back_up(layout, tmp_path / "backup", CLOCK)
        hide(monkeypatch, layout.root / backup.MADE, looks=1)
        with contextlib.closing(Journal(layout.journal, CLOCK, "agent-north-clinic")) as opened:
            with pytest.raises(CannotWriteState):
                backup.note_made(layout, opened)
            backup.note_made(layout, opened)
    assert told(layout)[-1] == "backup.made"


def test_a_daemon_that_runs_journals_the_backup_itself(layout: Layout, tmp_path: Path) -> None:
    with durable.lock(layout.lock, "the agent"):
        made = backup.back_up(layout, tmp_path / "backup", CLOCK)
        with pytest.raises(AlreadyThere):
            restore.restore(layout, tmp_path / "backup", CLOCK, replace=True)
        with contextlib.closing(Journal(layout.journal, CLOCK, "agent-north-clinic")) as opened:
            backup.note_made(layout, opened)
            backup.note_made(layout, opened)
    (record,) = (record for record in records(layout.journal) if record.action == "backup.made")
    assert record.subject["backup"] == made.digest


def test_a_backup_is_journalled_when_it_is_whole_and_before_it_has_its_name(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disk_order(monkeypatch, tmp_path) as calls:
        backup.back_up(layout, tmp_path / "backup", CLOCK)
    steps = ("sync .backup.DRAWN.tmp", "sync state/journal/000000000001.jsonl", "rename .backup.DRAWN.tmp backup")
    whole, journalled, named = (next(i for i, call in enumerate(calls) if call.startswith(step)) for step in steps)
    assert whole < journalled < named


@pytest.mark.parametrize(
    ("runs", "full"), [(False, "journal.before_fsync"), (True, "replace.before_rename@agent.backup._journal")]
)
def test_a_backup_that_cannot_be_journalled_leaves_no_file(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool, full: str
) -> None:
    with durable.lock(layout.lock, "the agent") if runs else contextlib.nullcontext():
        with armed(monkeypatch, f"{full}=ENOSPC"), pytest.raises(CannotWriteState):
            backup.back_up(layout, tmp_path / "backup", CLOCK, with_identity=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
        with armed(monkeypatch, "backup.written=EIO"), pytest.raises(CannotWriteState):
            backup.back_up(layout, tmp_path / "backup", CLOCK, with_identity=True)
        with contextlib.closing(Journal(layout.journal, CLOCK, "agent-north-clinic")) as opened:
            backup.note_made(layout, opened)
    made = [record.subject["backup"] for record in records(layout.journal) if record.action == "backup.made"]
    assert made == [backup.check(tmp_path / "backup").digest], "a command that dies here has said all that there is to say"


def test_a_backup_and_a_restore_exclude_each_other(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    with snapshot.room(layout.root), pytest.raises(AlreadyThere, match=r"\(a backup, process"):
        restore.restore(layout, tmp_path / "backup", CLOCK, replace=True)
    real = restore._take_rows

    def meanwhile(*arguments: Any, **words: Any) -> list[str]:
        with pytest.raises(AlreadyThere, match="histofed-agent restore"):
            backup.back_up(layout, tmp_path / "beside", CLOCK)
        return real(*arguments, **words)

    monkeypatch.setattr(restore, "_take_rows", meanwhile)
    assert restore.restore(layout, tmp_path / "backup", CLOCK, replace=True).aside


def test_a_restore_that_was_interrupted_is_not_backed_up(layout: Layout, tmp_path: Path) -> None:
    (layout.root / "restore.json").write_text("{}")
    with pytest.raises(AlreadyThere, match="a restore was interrupted"):
        backup.back_up(layout, tmp_path / "backup", CLOCK)


def test_private_tensors_that_are_lost_or_go_too_quickly(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "link", lambda source, target: False)
    with pytest.raises(TryLater):
        backup.back_up(layout, tmp_path / "backup", CLOCK)
    (layout.private / "pilot/2.safetensors").unlink()
    with pytest.raises(BadData, match="private tensors of pilot are missing"):
        backup.back_up(layout, tmp_path / "backup", CLOCK)


def test_an_emptied_journal_is_not_hidden_by_a_backups_own_record(layout: Layout, tmp_path: Path) -> None:
    for segment in layout.journal.iterdir():
        segment.write_bytes(b"")
    with pytest.raises(BadData, match="holds no record, though this site has talked to its aggregator"):
        backup.back_up(layout, tmp_path / "backup", CLOCK)
    assert not (tmp_path / "backup").exists()
    assert told(layout) == []


@pytest.mark.parametrize("place", ["nightly", "outbox/nightly"])
def test_a_backup_into_the_state_itself_is_refused(layout: Layout, place: str) -> None:
    with pytest.raises(UsageError, match="name a file outside"):
        backup.back_up(layout, layout.root / place, CLOCK)
    assert not (layout.root / place).exists()


def test_a_site_without_an_identity_has_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled):
        backup.back_up(Layout(tmp_path / "state"), tmp_path / "backup", CLOCK)


def test_the_commands(layout: Layout, tmp_path: Path) -> None:
    place = ("--state-dir", str(layout.root))
    file = str(tmp_path / "backup")
    assert "private tensors of rounds: pilot/2" in run_here("agent.cli", "backup", file, *place).out
    assert run_here("agent.cli", "backup", file, *place).code == 65
    assert "every byte" in run_here("agent.cli", "backup", file, "--check", *place).out
    assert "--replace would move it aside" in run_here("agent.cli", "restore", file, "--dry-run", *place).out
    assert run_here("agent.cli", "restore", file, *place).code == 65
    assert "the state before is in before-restore-" in run_here("agent.cli", "restore", file, "--replace", *place).out
    assert "the site's key" in run_here("agent.cli", "backup", f"{file}2", "--with-identity", *place).out
    assert "Write the site's state" in run_here("agent.cli", "backup", "--help").out
