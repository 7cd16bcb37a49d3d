"""`histofed-agent backup` and `restore`: what a site must not lose, and what never goes down."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from agent import backup, restore
from agent.layout import Layout
from agent.outbox import Outbox, folder_name
from agent.private import PrivateTensors
from agent.state import State
from histofed.audit.history import History
from histofed.audit.journal import Journal
from histofed.audit.verify import Head, records, verify
from histofed.backup import snapshot
from histofed.base import durable
from histofed.base.clock import SystemClock
from histofed.base.errors import AlreadyThere, BadData, NotEnrolled, TryLater, UsageError
from histofed.base.ids import ExperimentId, RoundKey, SiteId, TaskKey, sha256
from histofed.pki.credentials import Credentials
from histofed.pki.signing import sign
from histofed.statements import UPDATE_TYPE, File, UpdateManifest, encode
from tests.support.commands import run_here
from tests.support.pki import Federation

PILOT, CLOCK = ExperimentId("pilot"), SystemClock()
TASK = TaskKey(RoundKey(PILOT, 3), "train", SiteId("north-clinic"))


@pytest.fixture(scope="module")
def credentials() -> Credentials:
    return Federation().site("north-clinic")


@pytest.fixture
def layout(tmp_path: Path, credentials: Credentials) -> Layout:
    """A site that trained: round 2 is settled, round 3's update waits."""
    layout = Layout(tmp_path / "state")
    durable.make_directory(layout.identity.parent)
    credentials.save(layout.identity)
    layout.aggregator.write_text("aggregator.example:8443\n")
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        private = PrivateTensors(layout.private, state)
        for number in (2, 3):
            trained(layout, private, number)
        state.set_private_round(PILOT, 2)
        state.take(TASK, 1, sha256(b"a"), sha256(b"b"))
        state.note_history(credentials.ca_sha256, History(1, Head(10, "1" * 64)))
    journal(layout, "agent.started", "consent.allowed")
    update = layout.root / "written"
    update.write_bytes(b"an update")
    Outbox(layout.outbox).put(sign(UPDATE_TYPE, encode(manifest()), credentials), update, 2)
    (layout.outbox / "unreadable").mkdir()
    return layout


def trained(layout: Layout, private: PrivateTensors, number: int, data: bytes = b"") -> None:
    (layout.root / "written").write_bytes(data or b"private %d" % number)
    private.add_pending(RoundKey(PILOT, number), layout.root / "written")


def journal(layout: Layout, *actions: str) -> None:
    with contextlib.closing(Journal(layout.journal, CLOCK, "agent-north-clinic")) as opened:
        for action in actions:
            opened.append(action, subject={})


def manifest() -> UpdateManifest:
    digest = "0" * 64
    weights = File(sha256(b"an update"), 9)
    return UpdateManifest(
        "test.example", PILOT, digest, 3, "train", "north-clinic", 1, digest, "float32", weights,
        1, 1, 1, {}, 2, digest, "2026-01-01T00:00:00.000000Z",
    )  # fmt: skip


def told(layout: Layout) -> list[str]:
    return [record.action for record in records(layout.journal)]


def seen(layout: Layout, credentials: Credentials) -> History | None:
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        return state.history(credentials.ca_sha256)


def instance(layout: Layout) -> str:
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        return state.instance


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


def test_on_an_empty_machine_the_site_has_to_enrol(layout: Layout, credentials: Credentials, tmp_path: Path) -> None:
    before = instance(layout)
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    other = Layout(tmp_path / "other")
    done = restore.restore(other, tmp_path / "backup", CLOCK)
    assert any("enroll" in note for note in done.notes)
    assert any("training starts anew" in note for note in done.notes)
    assert not other.identity.exists()
    assert other.aggregator.read_text() == "aggregator.example:8443\n"
    assert len(Outbox(other.outbox)) == 1
    assert (other.private / "pilot/2.safetensors").read_bytes() == b"private 2"
    assert seen(other, credentials) == History(1, Head(10, "1" * 64))
    with contextlib.closing(State(other.state, CLOCK)) as state:
        assert state.task_in_hand() is None, "it is offered again where it is wanted"
        assert state.private_round(PILOT) == 2
    assert instance(other) != before, "another agent than the one that may still run"
    (record,) = verify(other.journal).restores
    assert (record.subject["epoch_from"], record.subject["epoch"]) == (1, 1)


def test_with_its_key_it_needs_no_enrolment(layout: Layout, tmp_path: Path, credentials: Credentials) -> None:
    backup.back_up(layout, tmp_path / "backup", CLOCK, with_identity=True)
    other = Layout(tmp_path / "other")
    restore.restore(other, tmp_path / "backup", CLOCK)
    assert Credentials.load(other.identity).serial == credentials.serial


def test_what_only_grows_is_not_lowered(layout: Layout, tmp_path: Path, credentials: Credentials) -> None:
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        private = PrivateTensors(layout.private, state)
        trained(layout, private, 3, b"private 3, later")
        assert private.settle(RoundKey(PILOT, 4), 3, backup_rounds=(2,)) == 3
        state.note_history(credentials.ca_sha256, History(4, Head(2, "2" * 64)))
    journal(layout, "consent.denied")
    with pytest.raises(AlreadyThere, match="add --replace"):
        restore.restore(layout, tmp_path / "backup", CLOCK)
    done = restore.restore(layout, tmp_path / "backup", CLOCK, replace=True)
    assert done.aside is not None
    assert seen(layout, credentials) == History(4, Head(2, "2" * 64))
    with contextlib.closing(State(layout.state, CLOCK)) as state:
        assert state.private_round(PILOT) == 3
    assert (layout.private / "pilot/3.safetensors").read_bytes() == b"private 3, later"
    assert (layout.private / "pilot/2.safetensors").exists()
    assert told(layout)[-2:] == ["consent.denied", "state.restored"], "no decision of the hospital is forgotten"
    assert verify(layout.root / done.aside / "journal").ok


def test_a_broken_state_file_is_replaced_and_said(layout: Layout, tmp_path: Path, credentials: Credentials) -> None:
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    layout.state.write_bytes(b"not a database" * 500)
    for path in layout.root.glob("state.db-*"):
        path.unlink()
    done = restore.restore(layout, tmp_path / "backup", CLOCK, replace=True)
    assert any("cannot be read" in note for note in done.notes)
    assert seen(layout, credentials) == History(1, Head(10, "1" * 64))


def test_a_backup_of_another_site_is_refused(layout: Layout, tmp_path: Path) -> None:
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    Federation().site("north-clinic").save(layout.identity)
    for write in (True, False):
        with pytest.raises(BadData, match="another name or another federation"):
            if write:
                restore.restore(layout, tmp_path / "backup", CLOCK, replace=True)
            else:
                restore.dry_run(layout, tmp_path / "backup")
    assert not (layout.root / "restore.json").exists()


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


def test_a_backup_and_a_restore_exclude_each_other(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backup.back_up(layout, tmp_path / "backup", CLOCK)
    with snapshot.room(layout.root), pytest.raises(AlreadyThere, match=r"\(a backup, process"):
        restore.restore(layout, tmp_path / "backup", CLOCK, replace=True)
    real = restore._take_over

    def meanwhile(*arguments: Any) -> list[str]:
        with pytest.raises(AlreadyThere, match="histofed-agent restore"):
            backup.back_up(layout, tmp_path / "beside", CLOCK)
        return real(*arguments)

    monkeypatch.setattr(restore, "_take_over", meanwhile)
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
